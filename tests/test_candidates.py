"""The closed forms of candidates against sets of names."""

from itertools import product

import pytest
import torch
from torch import nn

from robustfusion import DRFHead, PaperDRFHead
from robustfusion.candidates import (
    candidate_names,
    distinct_candidates,
    enumerate_candidates,
    trusted_by,
)

NAMES = "abcdef"


@pytest.mark.parametrize("modalities", [2, 3, 4, 6])
def test_masks_are_those_of_the_names(modalities: int) -> None:
    names = NAMES[:modalities]
    candidates = enumerate_candidates(names)
    expected = [[name in candidate for name in names] for candidate in candidates]
    assert trusted_by(modalities, torch.device("cpu")).tolist() == expected
    assert (
        len(set(candidates)) == len(candidates) == (3 if modalities == 2 else 2 * modalities + 1)
    )


@pytest.mark.parametrize("modalities", [2, 3, 4, 6])
def test_distinct_candidates_are_distinct_sets(modalities: int) -> None:
    trusted = trusted_by(modalities, torch.device("cpu"))
    present = torch.tensor(list(product([True, False], repeat=modalities)))
    members, usable = distinct_candidates(trusted, present)
    for here, sets, use in zip(present, members, usable, strict=True):
        restricted = {tuple((row & here).tolist()) for row in trusted} - {(False,) * modalities}
        kept = [tuple(row.tolist()) for row, keep in zip(sets, use, strict=True) if keep]
        # Every set that is left of a candidate, once, and none that is empty.
        assert len(kept) == len(set(kept))
        assert set(kept) == restricted


def test_names_are_those_of_the_model_s_candidates() -> None:
    head = DRFHead({"image": 8, "text": 4}, num_classes=3)
    assert candidate_names(nn.Sequential(head), 3) == ("image+text", "image", "text")
    paper = PaperDRFHead({"image": 8, "text": 4}, 3, expansion=False)
    assert candidate_names(paper, 1) == ("image+text",)
    assert candidate_names(nn.Linear(1, 1), 2) == ("candidate 0", "candidate 1")
    assert candidate_names(head, 2) == ("candidate 0", "candidate 1")
