"""The conditions of a report, the paper's and the harder ones."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustfusion.disruption import (
    DisruptedDataset,
    Disruption,
    FeatureCorruption,
    collate,
    disrupt_features,
    robustness_grid,
    sample_generator,
)
from robustfusion.disruption._draws import uniforms
from robustfusion.disruption.grid import checked_conditions
from robustfusion.disruption.plan import Draws

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
        ({"independent": (1.2,)}, "rate must be in"),
        ({"independent": ((0.5, 1.2),)}, "rate must be in"),
        ({"independent": ((0.5,),)}, "as many rates as modalities"),
        ({"independent": (0.5, 0.5)}, "'independent/0.5/C' comes twice"),
        ({"settings": ("C", "C")}, "'fixed/image/C' comes twice"),
    ],
)
def test_grid_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustness_grid(**{"modalities": BOTH, **options})


def test_names_of_conditions() -> None:
    names = ("image", "text", "audio")
    clean = Disruption(names, strategy="clean")
    assert (clean.key, clean.title, clean.setting, clean.is_seeded) == (
        "clean",
        "clean",
        None,
        False,
    )
    assert not clean.plan(IDS).disrupted.any()
    two = Disruption(names, setting="D", strategy="fixed", modality=("image", "text"))
    assert (two.key, two.title, two.is_seeded) == ("fixed/image+text/D", "image+text D", False)
    half = dataclasses.replace(two, rate=0.5)
    assert (half.key, half.title, half.is_seeded) == (
        "fixed/image+text 0.5/D",
        "image+text 0.5 D",
        True,
    )
    with pytest.raises(ValueError, match="conditions must be of the modalities"):
        checked_conditions([two], BOTH)
    with pytest.raises(ValueError, match="rate must hold one share for each"):
        Disruption(names, strategy="independent", rate=(0.5,))


def test_draws_are_made_only_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(seed: int, ids: Any, purpose: str, columns: int = 1) -> Any:
        calls.append(purpose)
        return uniforms(seed, ids, purpose, columns)

    monkeypatch.setattr("robustfusion.disruption.plan.uniforms", counting)
    draws = Draws(0, IDS, BOTH)
    for condition in robustness_grid(BOTH, settings=("C", "D"), rates=()):
        condition.plan_from(draws)
    assert not calls
    for condition in robustness_grid(BOTH):
        shared, own = condition.plan_from(draws), condition.plan(IDS)
        assert shared.counts() == own.counts()
        for name in BOTH:
            assert torch.equal(shared.corrupted[name], own.corrupted[name])
    shared_calls = [purpose for purpose in calls if purpose == "sample"]
    assert calls.count("plan:image") < len(robustness_grid(BOTH))
    assert len(shared_calls) <= 1 + 3 * 4  # once shared, and once for each rate below one


def test_independent_rates_differ_by_modality() -> None:
    condition = Disruption(BOTH, setting="C", strategy="independent", rate=(0.8, 0.2))
    named = {"text": 0.2, "image": 0.8}
    assert condition == Disruption(BOTH, setting="C", strategy="independent", rate=named)
    assert (condition.key, condition.title) == (
        "independent/0.8+0.2/C",
        "independent 0.8, 0.2 C",
    )
    plan = condition.plan(IDS)
    image, text = plan.corrupted["image"].float(), plan.corrupted["text"].float()
    assert image.mean().item() == pytest.approx(0.8, abs=0.04)
    assert text.mean().item() == pytest.approx(0.2, abs=0.04)
    # Independent: both at once as often as the product says.
    assert (image * text).mean().item() == pytest.approx(0.16, abs=0.03)
    assert not plan.spared.any()


def test_both_may_be_corrupted_but_one_is_never_missing() -> None:
    both = Disruption(BOTH, setting="C", strategy="independent").plan(IDS)
    assert all(mask.all() for mask in both.corrupted.values())
    for setting in ("D", "C+D"):
        plan = Disruption(BOTH, setting=setting, strategy="independent").plan(IDS)
        assert torch.stack(list(plan.available.values())).any(0).all()
        if setting == "D":
            assert plan.spared.all()
            assert all(0.4 < mask.float().mean() < 0.6 for mask in plan.missing.values())
    observed = {"image": torch.arange(1000) % 2 == 0}
    plan = Disruption(BOTH, setting="D", strategy="independent").plan(IDS, observed)
    assert plan.available["text"][1::2].all()
    assert not plan.missing["image"][1::2].any()


def test_a_higher_independent_rate_keeps_the_disruptions_of_a_lower_one() -> None:
    masks = []
    for rate in (0.2, 0.5, 0.9, 1.0):
        plan = Disruption(BOTH, setting="D", strategy="independent", rate=rate).plan(IDS)
        masks.append(torch.stack(list(plan.missing.values())))
    for low, high in pairwise(masks):
        assert not (low & ~high).any()


def test_rates_by_modality_are_checked() -> None:
    with pytest.raises(ValueError, match='rate must be one number for strategy="random"'):
        Disruption(BOTH, rate={"image": 0.5, "text": 0.5})
    with pytest.raises(ValueError, match="rate lacks modality 'text'"):
        Disruption(BOTH, strategy="independent", rate={"image": 0.5})
    with pytest.raises(ValueError, match='modality must be None for strategy="independent"'):
        Disruption(BOTH, strategy="independent", modality="text")


def test_a_gap_takes_tokens_of_a_sequence_and_columns_of_a_vector() -> None:
    gap = FeatureCorruption(kind="gap", severity=0.5)
    tokens = gap(torch.ones(8, 3), sample_generator(0, "a", "text"))
    assert tokens.sum(1).tolist().count(0.0) == 4
    assert set(tokens.sum(1).tolist()) == {0.0, 3.0}
    assert gap(torch.ones(8), sample_generator(0, "a", "table")).sum() == 4


def test_a_part_is_left_out_of_features_without_a_corruption_of_them() -> None:
    disruption = Disruption(BOTH, setting="P", strategy="fixed", modality="text")
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
    disruption = Disruption(names, setting="P", strategy="independent")
    found = DisruptedDataset(posts, disruption)[0]["inputs"]
    assert "one two three four five".startswith(found["text"])
    assert 0 < len(found["text"]) < 23
    assert 0.3 < (found["table"] == 0).float().mean() < 0.9
    black = np.asarray(found["image"]).max(-1) == 0
    assert 0.3 < black.mean() < 0.9
    ids = [{"inputs": {"image": torch.ones(3, dtype=torch.long), "text": "a"}}]
    with pytest.raises(TypeError, match=r'inputs\["image"\]: setting "P" has no part of a Tensor'):
        DisruptedDataset(ids, Disruption(BOTH, setting="P", strategy="independent"))[0]


def test_a_batch_in_which_every_text_was_missing_is_stacked() -> None:
    posts = [{"inputs": {"image": torch.ones(2), "text": "good"}}] * 2
    disruption = Disruption(BOTH, setting="D", strategy="fixed", modality="text")
    data = DisruptedDataset(posts, disruption, ids=["a", "b"])
    batch = collate([data[0], data[1]])
    assert batch["inputs"]["text"] == ["", ""]
    assert not batch["available"]["text"].any()
