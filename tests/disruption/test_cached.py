"""Disruption of cached features."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_inputs import SETTINGS
from torch import Tensor

from robustfusion._tree import leaves, map_tensors
from robustfusion.disruption import (
    Disruption,
    FeatureCorruption,
    disrupt_features,
    sample_generator,
)


@pytest.fixture
def cache() -> dict[str, Tensor]:
    shapes = {"image": (50, 4), "text": (50, 3, 2), "audio": (50, 5)}
    return {name: torch.arange(1.0, 1 + math.prod(s)).reshape(s) for name, s in shapes.items()}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_cached_features_follow_the_plan(
    cache: dict[str, Tensor], setting: Any, rate: float
) -> None:
    names = tuple(cache)
    disruption = Disruption(names, setting=setting, rate=rate, seed=2)
    observed = {"text": torch.arange(50) % 7 != 0}
    before = {name: values.clone() for name, values in cache.items()}
    corrupted: Any = {
        "image": -cache["image"],
        "text": torch.stack([-cache["text"], -2 * cache["text"]]),
        "audio": FeatureCorruption(),
    }
    ids = [f"post-{i}" for i in range(50)]
    out = disrupt_features(disruption, ids, cache, corrupted, available=observed)
    plan = disruption.plan(ids, observed)
    for name in names:
        assert torch.equal(cache[name], before[name])
        assert torch.equal(out.available[name], plan.available[name])
        for i in range(50):
            row, clean = out.inputs[name][i], cache[name][i]
            if not plan.available[name][i]:
                assert not row.any()
            elif not plan.corrupted[name][i]:
                assert torch.equal(row, clean)
            elif name == "image":
                assert torch.equal(row, -clean)
            elif name == "text":
                assert torch.equal(row, -clean) or torch.equal(row, -2 * clean)
            else:
                generator_ = sample_generator(2, ids[i], name)
                assert torch.equal(row, FeatureCorruption()(clean, generator_))
    assert out.plan.counts() == plan.counts()
    # In another order, the same rows.
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    again = disrupt_features(
        disruption,
        [ids[i] for i in order],
        {name: values[order] for name, values in cache.items()},
        {
            "image": corrupted["image"][order],
            "text": corrupted["text"][:, order],
            "audio": corrupted["audio"],
        },
        available={"text": observed["text"][order]},
    )
    for name in names:
        assert torch.equal(again.inputs[name], out.inputs[name][order])


def test_independent_draws_of_cached_corruption_are_all_used(cache: dict[str, Tensor]) -> None:
    names = tuple(cache)
    disruption = Disruption(names, setting="C", strategy="fixed", modality="image")
    draws = torch.stack([torch.full((50, 4), float(r)) for r in range(3)])
    rows = disrupt_features(disruption, range(50), cache, {"image": draws}).inputs["image"][:, 0]
    assert set(rows.tolist()) == {0.0, 1.0, 2.0}


def test_missing_nan_never_comes_through(cache: dict[str, Tensor]) -> None:
    cache["image"] = torch.full_like(cache["image"], float("nan"))
    disruption = Disruption(tuple(cache), setting="D", strategy="fixed", modality="image")
    out = disrupt_features(disruption, range(50), cache)
    assert torch.equal(out.inputs["image"], torch.zeros(50, 4))


def test_wrong_caches_are_named(cache: dict[str, Tensor]) -> None:
    disruption = Disruption(tuple(cache), setting="C", strategy="fixed", modality="image")
    with pytest.raises(ValueError, match=r'corrupted\["image"\] is needed: 50 rows'):
        disrupt_features(disruption, range(50), cache)
    with pytest.raises(ValueError, match=r'corrupted\["image"\] must have shape \(50, 4\) or'):
        disrupt_features(disruption, range(50), cache, {"image": torch.zeros(50, 5)})
    with pytest.raises(ValueError, match="corrupted has the key 'sound'"):
        disrupt_features(disruption, range(50), cache, {"sound": torch.zeros(50, 4)})
    with pytest.raises(ValueError, match=r'features\["image"\] must have shape \(9, ..., D\)'):
        disrupt_features(disruption, range(9), cache)
    with pytest.raises(ValueError, match="features must have the keys"):
        disrupt_features(disruption, range(50), {"image": cache["image"]})


def test_caches_must_be_tensors_of_one_kind(cache: dict[str, Tensor]) -> None:
    disruption = Disruption(tuple(cache), setting="C", strategy="fixed", modality="image")
    ids, whole = range(50), {**cache, "image": cache["image"].long()}
    for values in (cache["image"].numpy(), cache["image"].tolist()):
        found = type(values).__name__
        with pytest.raises(TypeError, match=rf'features\["image"\] must be a tensor, got {found}'):
            disrupt_features(disruption, ids, {**cache, "image": values}, cache)
        with pytest.raises(TypeError, match=rf'corrupted\["image"\] must be .* got {found}'):
            disrupt_features(disruption, ids, cache, {"image": values})
    # Integers would take a corruption rounded.
    with pytest.raises(TypeError, match=r'corrupted\["image"\] must be torch\.int64 as'):
        disrupt_features(disruption, ids, whole, {"image": cache["image"] + 0.5})
    with pytest.raises(TypeError, match=r'features\["image"\] must be a floating .* torch\.int64'):
        disrupt_features(disruption, ids, whole, {"image": FeatureCorruption()})


def test_pixels_and_token_ids_are_picked_too() -> None:
    disruption = Disruption(("image", "text"), rate=1.0, seed=3)
    ids = list(range(40))
    clean: dict[str, Any] = {
        "image": torch.ones(40, 3, 4, 4, dtype=torch.uint8),
        "text": {"input_ids": torch.full((40, 5), 7), "attention_mask": torch.ones(40, 5)},
    }
    by_seed: dict[str, Any] = {
        name: {2: map_tensors(torch.zeros_like, value), 3: map_tensors(lambda x: x + 2, value)}
        for name, value in clean.items()
    }
    made = disrupt_features(disruption, ids, clean, by_seed)
    for name, corrupted in made.plan.corrupted.items():
        for leaf in leaves(made.inputs[name]):
            assert leaf[corrupted].unique().tolist() in ([3], [9])
    gone = ~made.available["text"]
    assert bool(gone.any())
    assert made.inputs["text"]["attention_mask"][gone].sum(1).unique().tolist() == [1]
    assert made.inputs["image"].dtype == torch.uint8
    assert clean["text"]["input_ids"].unique().tolist() == [7]
