"""The conditions of a report, the paper's and the harder ones."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustfusion.disruption import (
    Condition,
    DisruptedDataset,
    Disruption,
    FeatureCorruption,
    collate,
    disrupt_features,
    robustness_grid,
    sample_generator,
)

BOTH = ("image", "text")
IDS = [f"post-{i}" for i in range(1000)]


def test_grid_has_the_papers_conditions() -> None:
    keys = [condition.key for condition in robustness_grid(BOTH)]
    assert len(keys) == len(set(keys)) == 1 + 2 * 3 + 5 * 3
    assert keys[:3] == ["clean", "fixed/image/C", "fixed/image/D"]
    assert keys[-1] == "random/1/C+D"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("image",)}, "at least two"),
        ({"settings": ("X",)}, "settings must be among"),
        ({"rates": (0.0,)}, "rates must lie in"),
        ({"rates": (1.2,)}, "rates must lie in"),
        ({"independent": (1.2,)}, "disruption_rate must be in"),
        ({"independent": ((0.5, 1.2),)}, "disruption_rate must be in"),
        ({"independent": ((0.5,),)}, "as many rates as modalities"),
        ({"independent": (0.5, 0.5)}, "'independent/0.5/C' comes twice"),
    ],
)
def test_grid_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustness_grid(**{"modalities": BOTH, **options})


def test_independent_rates_differ_by_modality() -> None:
    condition = Condition("independent", "C", None, (0.8, 0.2))
    assert (condition.key, condition.title) == (
        "independent/0.8+0.2/C",
        "independent 0.8, 0.2 C",
    )
    plan = condition.disruption(BOTH, 0).plan(IDS)
    image, text = plan.corrupted["image"].float(), plan.corrupted["text"].float()
    assert image.mean().item() == pytest.approx(0.8, abs=0.04)
    assert text.mean().item() == pytest.approx(0.2, abs=0.04)
    # Independent: both at once as often as the product says.
    assert (image * text).mean().item() == pytest.approx(0.16, abs=0.03)
    assert not plan.spared.any()


def test_both_may_be_corrupted_but_one_is_never_discarded() -> None:
    both = Disruption(BOTH, "C", strategy="independent").plan(IDS)
    assert all(mask.all() for mask in both.corrupted.values())
    for setting in ("D", "C+D"):
        plan = Disruption(BOTH, setting, strategy="independent").plan(IDS)
        assert torch.stack(list(plan.available.values())).any(0).all()
        if setting == "D":
            assert plan.spared.all()
            assert all(0.4 < mask.float().mean() < 0.6 for mask in plan.discarded.values())
    observed = {"image": torch.arange(1000) % 2 == 0}
    plan = Disruption(BOTH, "D", strategy="independent").plan(IDS, observed)
    assert plan.available["text"][1::2].all()
    assert not plan.discarded["image"][1::2].any()


def test_a_higher_independent_rate_keeps_the_disruptions_of_a_lower_one() -> None:
    masks = []
    for rate in (0.2, 0.5, 0.9, 1.0):
        plan = Disruption(BOTH, "D", strategy="independent", disruption_rate=rate).plan(IDS)
        masks.append(torch.stack(list(plan.discarded.values())))
    for low, high in pairwise(masks):
        assert not (low & ~high).any()


def test_rates_by_modality_are_checked() -> None:
    with pytest.raises(ValueError, match='must be one number for strategy="random"'):
        Disruption(BOTH, disruption_rate={"image": 0.5, "text": 0.5})
    with pytest.raises(ValueError, match="disruption_rate lacks modality 'text'"):
        Disruption(BOTH, strategy="independent", disruption_rate={"image": 0.5})
    with pytest.raises(ValueError, match='modality must be None for strategy="independent"'):
        Disruption(BOTH, strategy="independent", modality="text")


def test_a_gap_takes_tokens_of_a_sequence_and_columns_of_a_vector() -> None:
    gap = FeatureCorruption(kind="gap", severity=0.5)
    tokens = gap(torch.ones(8, 3), sample_generator(0, "a", "text"))
    assert tokens.sum(1).tolist().count(0.0) == 4
    assert set(tokens.sum(1).tolist()) == {0.0, 3.0}
    assert gap(torch.ones(8), sample_generator(0, "a", "table")).sum() == 4


def test_a_part_is_left_out_of_features_without_a_corruption_of_them() -> None:
    disruption = Disruption(BOTH, "P", strategy="fixed", modality="text")
    clean = {"image": torch.ones(2, 10), "text": torch.ones(2, 10, 4)}
    made = disrupt_features(disruption, ["a", "b"], clean)
    assert made.inputs["image"].equal(clean["image"])
    gone = (made.inputs["text"] == 0).all(-1).sum(1)
    assert ((gone >= 4) & (gone <= 8)).all()
    assert made.available["text"].all()


def test_a_part_is_left_out_of_raw_inputs() -> None:
    picture = Image.new("RGB", (20, 20), "white")
    posts = [
        {"inputs": {"image": picture, "text": "one two three four five", "table": torch.ones(9)}}
    ]
    names = ("image", "text", "table")
    disruption = Disruption(names, "P", strategy="independent")
    found = DisruptedDataset(posts, disruption)[0]["inputs"]
    assert "one two three four five".startswith(found["text"])
    assert 0 < len(found["text"]) < 23
    assert 0.3 < (found["table"] == 0).float().mean() < 0.9
    black = np.asarray(found["image"]).max(-1) == 0
    assert 0.3 < black.mean() < 0.9
    ids = [{"inputs": {"image": torch.ones(3, dtype=torch.long), "text": "a"}}]
    with pytest.raises(TypeError, match=r'inputs\["image"\]: setting "P" has no part of a Tensor'):
        DisruptedDataset(ids, Disruption(BOTH, "P", strategy="independent"))[0]


def test_a_batch_in_which_every_text_was_discarded_is_stacked() -> None:
    posts = [{"inputs": {"image": torch.ones(2), "text": "good"}}] * 2
    disruption = Disruption(BOTH, "D", strategy="fixed", modality="text")
    data = DisruptedDataset(posts, disruption, ids=["a", "b"])
    batch = collate([data[0], data[1]])
    assert batch["inputs"]["text"] == ["", ""]
    assert not batch["available"]["text"].any()
