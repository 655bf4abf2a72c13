"""Who is disrupted, and what must never be touched."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_inputs import BOTH, SETTINGS
from torch import Tensor

from robustfusion.disruption import (
    Disruption,
    TextCorruption,
    sample_generator,
)


@st.composite
def disruptions(draw: st.DrawFn) -> Disruption:
    names = ("image", "text", "audio", "depth")[: draw(st.integers(2, 4))]
    strategy: Any = draw(st.sampled_from(["fixed", "random"]))
    modality: Any = None
    if strategy == "fixed":
        some = st.lists(st.sampled_from(names), min_size=1, max_size=len(names) - 1, unique=True)
        modality = tuple(draw(some))
    return Disruption(
        names,
        setting=draw(st.sampled_from(SETTINGS)),
        strategy=strategy,
        modality=modality,
        rate=draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])),
        seed=draw(st.integers(0, 3)),
    )


@settings(deadline=None)
@given(disruption=disruptions(), count=st.integers(0, 30), pattern=st.integers(0, 2**32 - 1))
def test_plan_properties(disruption: Disruption, count: int, pattern: int) -> None:
    observed = {
        name: torch.tensor([pattern >> (i * 5 + m) & 7 != 0 for i in range(count)]).bool()
        for m, name in enumerate(disruption.modalities)
    }
    ids = [f"post-{i}" for i in range(count)]
    plan = disruption.plan(ids, observed)
    corrupted, missing = plan.corrupted, plan.missing
    for name in disruption.modalities:
        assert not (corrupted[name] & missing[name]).any()
        assert not ((corrupted[name] | missing[name]) & ~observed[name]).any()
        assert torch.equal(plan.available[name], observed[name] & ~missing[name])
        if disruption.setting == "C":
            assert not missing[name].any()
        if disruption.setting == "D":
            assert not corrupted[name].any()
    some = torch.stack([observed[n] for n in disruption.modalities]).any(0)
    intact = torch.stack(
        [observed[n] & ~corrupted[n] & ~missing[n] for n in disruption.modalities]
    ).any(0)
    assert torch.equal(intact, some), "a sample was left without an intact modality"
    if disruption.strategy == "random":
        hits = sum(corrupted[n].int() + missing[n].int() for n in disruption.modalities)
        assert int(torch.as_tensor(hits).max() if count else 0) <= 1
    counts = plan.counts()
    assert counts["samples"] == count
    assert counts["disrupted"] + counts["intact"] == count
    assert counts["disrupted"] == int(plan.disrupted.sum())
    assert counts["corrupted"] == {n: int(corrupted[n].sum()) for n in disruption.modalities}
    assert counts["missing"] == {n: int(missing[n].sum()) for n in disruption.modalities}
    # Row by row and backwards, the plan is the same.
    for i in reversed(range(count)):
        alone = disruption.plan([ids[i]], {n: observed[n][i : i + 1] for n in observed})
        for name in disruption.modalities:
            assert bool(alone.corrupted[name][0]) == bool(corrupted[name][i])
            assert bool(alone.missing[name][0]) == bool(missing[name][i])


@pytest.mark.parametrize("setting", SETTINGS)
def test_fixed_disrupts_the_named_modality_of_every_sample(setting: Any) -> None:
    plan = Disruption(BOTH, setting=setting, strategy="fixed", modality="text").plan(range(500))
    counts = plan.counts()
    assert counts["disrupted"] == 500
    assert counts["corrupted"]["image"] == counts["missing"]["image"] == 0
    assert counts["corrupted"]["text"] + counts["missing"]["text"] == 500
    share = {"C": 1.0, "D": 0.0, "C+D": 0.5}[setting]
    assert counts["corrupted"]["text"] / 500 == pytest.approx(share, abs=0.07 * (share == 0.5))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_rate_is_the_share_disrupted_not_the_share_kept(rate: float) -> None:
    plan = Disruption(("a", "b", "c"), rate=rate, seed=4).plan(range(3000))
    counts = plan.counts()
    assert counts["disrupted"] / 3000 == pytest.approx(rate, abs=0.03 * (0 < rate < 1))
    for name in ("a", "b", "c"):
        total = counts["corrupted"][name] + counts["missing"][name]
        assert total / 3000 == pytest.approx(rate / 3, abs=0.03)
        assert counts["corrupted"][name] == pytest.approx(total / 2, abs=60)


def test_a_higher_rate_keeps_the_disruptions_of_a_lower_one() -> None:
    low = Disruption(BOTH, rate=0.4).plan(range(400))
    high = Disruption(BOTH, rate=0.8).plan(range(400))
    for name in BOTH:
        assert torch.equal(high.corrupted[name] & low.disrupted, low.corrupted[name])
        assert torch.equal(high.missing[name] & low.disrupted, low.missing[name])


def test_seeds_are_independent() -> None:
    base = Disruption(BOTH)
    plans = [dataclasses.replace(base, seed=s).plan(range(2000)) for s in range(2)]
    first, second = (plan.corrupted["text"].double() for plan in plans)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.08


def test_order_of_modalities_does_not_matter() -> None:
    one = Disruption(("image", "text", "audio")).plan(range(200))
    other = Disruption(("audio", "image", "text")).plan(range(200))
    for name in one.corrupted:
        assert torch.equal(one.corrupted[name], other.corrupted[name])
        assert torch.equal(one.missing[name], other.missing[name])


def test_the_last_observed_modality_is_spared() -> None:
    observed = {"text": torch.tensor([True, False])}
    plan = Disruption(BOTH, setting="D", strategy="fixed", modality="image").plan(
        ["a", "b"], observed
    )
    assert plan.missing["image"].tolist() == [True, False]
    assert plan.spared.tolist() == [False, True]
    assert plan.available["text"].tolist() == [True, False]
    assert plan.counts()["spared"] == 1


def test_another_process_draws_the_same() -> None:
    script = (
        "import json, sys; from robustfusion.disruption import *\n"
        "plan = Disruption(('image', 'text'), seed=5).plan([f'post-{i}' for i in range(40)])\n"
        "noise = sample_generator(5, 'post-1', 'text')\n"
        "text = TextCorruption()('one two three four five', noise)\n"
        "masks = [plan.corrupted['text'].tolist(), plan.missing['image'].tolist()]\n"
        "print(json.dumps([*masks, text]))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    plan = Disruption(BOTH, seed=5).plan([f"post-{i}" for i in range(40)])
    text = TextCorruption()("one two three four five", sample_generator(5, "post-1", "text"))
    expected = [plan.corrupted["text"].tolist(), plan.missing["image"].tolist(), text]
    assert [json.loads(run) for run in runs] == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modalities": ("image",)}, "modalities must be two or more"),
        ({"modalities": ("image", "image")}, "modalities must be two or more different"),
        ({"setting": "D+C"}, "setting must be one of"),
        ({"strategy": "both"}, "strategy must be one of"),
        ({"rate": 70}, r"rate must be in \[0, 1\], got 70"),
        ({"rate": float("nan")}, "rate must be"),
        ({"strategy": "fixed"}, "modality must name"),
        ({"strategy": "fixed", "modality": "sound"}, "modality must be among .* got 'sound'"),
        ({"strategy": "fixed", "modality": BOTH}, "modality must leave one of"),
        ({"modality": "text"}, "modality must be None for strategy"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Disruption(**{"modalities": BOTH, **arguments})


def test_wrong_types_are_named() -> None:
    with pytest.raises(TypeError, match="modalities must be a sequence"):
        Disruption("image")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be an int"):
        Disruption(BOTH, seed=0.5)  # type: ignore[arg-type]
    for rate in ("0.5", True, None):
        with pytest.raises(TypeError, match="rate must be a number, got"):
            Disruption(BOTH, rate=rate)  # type: ignore[arg-type]
    half: Any = np.float32(0.5)
    assert Disruption(BOTH, rate=half).plan(["a"])


@pytest.mark.parametrize(
    ("available", "words"),
    [
        ({"sound": torch.ones(2).bool()}, "available has the key 'sound'"),
        ({"text": torch.ones(2)}, r'available\["text"\] must be a bool tensor'),
        ({"text": torch.ones(3).bool()}, r"must be a bool tensor of shape \(2,\), got .*\(3,\)"),
    ],
)
def test_wrong_masks_are_named(available: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Disruption(BOTH).plan(["a", "b"], available)
