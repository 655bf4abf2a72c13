"""Candidates against sets of names."""

from itertools import product

import pytest
import torch
from torch import nn

from robustfusion import DRFHead, PaperDRFHead
from robustfusion.candidates import Candidates, candidate_names

NAMES = "abcdef"


@pytest.mark.parametrize("modalities", [2, 3, 4, 6])
def test_the_mask_is_that_of_the_names(modalities: int) -> None:
    names = NAMES[:modalities]
    candidates = Candidates(names)
    expected = [[float(name in candidate) for name in names] for candidate in candidates]
    assert candidates.mask.tolist() == expected
    assert (
        len(set(candidates)) == len(candidates) == (3 if modalities == 2 else 2 * modalities + 1)
    )
    sizes = [len(candidate) for candidate in candidates]
    assert sizes == sorted(sizes, reverse=True)
    assert candidates[0] == tuple(names)


@pytest.mark.parametrize("modalities", [2, 3, 4, 6])
def test_restricted_candidates_are_distinct_sets(modalities: int) -> None:
    candidates = Candidates(NAMES[:modalities])
    available = torch.tensor(list(product([True, False], repeat=modalities)))
    trusted, usable = candidates.restrict(available)
    for row, sets, use in zip(available, trusted, usable, strict=True):
        restricted = {tuple(((mask > 0) & row).tolist()) for mask in candidates.mask}
        restricted -= {(False,) * modalities}
        remaining = [tuple(s.tolist()) for s, keep in zip(sets, use, strict=True) if keep]
        # Every set that is left of a candidate occurs once, and no empty one.
        assert len(remaining) == len(set(remaining))
        assert set(remaining) == restricted


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_a_pattern_is_the_candidate_with_exactly_these_names(modalities: int) -> None:
    names = NAMES[:modalities]
    candidates = Candidates(names)
    available = list(product([True, False], repeat=modalities))
    found = candidates.pattern(torch.tensor(available)).tolist()
    for row, index in zip(available, found, strict=True):
        subset = tuple(name for name, present in zip(names, row, strict=True) if present)
        expected = (
            list(candidates).index(subset) if subset in list(candidates) else len(candidates)
        )
        assert index == expected


def test_names_are_those_of_the_model_s_candidates() -> None:
    head = DRFHead({"image": 8, "text": 4}, num_classes=3)
    assert candidate_names(nn.Sequential(head), 3) == ("image+text", "image", "text")
    paper = PaperDRFHead({"image": 8, "text": 4}, 3, expansion=False)
    assert candidate_names(paper, 1) == ("image+text",)
    assert candidate_names(nn.Linear(1, 1), 2) == ("candidate 0", "candidate 1")
    assert candidate_names(head, 2) == ("candidate 0", "candidate 1")
