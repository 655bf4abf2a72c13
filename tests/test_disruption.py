"""The disruption protocol: who is disrupted, how, and what must never be touched."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from robustfusion._tree import leaves, map_tensors
from robustfusion.disruption import (
    DisruptedCollate,
    DisruptedDataset,
    Disruption,
    FeatureCorruption,
    ImageCorruption,
    TextCorruption,
    TokenCorruption,
    collate,
    disrupt_features,
    placeholder,
    sample_generator,
)
from robustfusion.disruption._draws import choose, count_of, uniforms

BOTH = ("image", "text")
IMAGE_KINDS: tuple[Any, ...] = ("mask", "occlusion", "noise", "low_light", "blur", "jpeg")
TEXT_KINDS: tuple[Any, ...] = ("mask", "characters", "mojibake", "truncate")
FEATURE_KINDS: tuple[Any, ...] = ("mask", "noise", "shuffle")
SETTINGS: tuple[Any, ...] = ("C", "D", "C+D")
GOLDEN_UNIFORMS = [0.14970534982177042, 0.5444378643502861]
GOLDEN_RAW = 17660806670476821973
TEXT = "What a lovely day at the beach, the sun is shining and café Zoë is open 😀"


def generator(name: str | int = "post", seed: int = 0) -> np.random.Generator:
    return sample_generator(seed, name, "any")


def photo(size: tuple[int, int] = (32, 24), channels: int = 3) -> Tensor:
    """A smooth picture with some texture, uint8, (C, H, W), values away from 0 and 255."""
    width, height = size
    ramp = torch.linspace(0, 6, height)[:, None] + torch.linspace(0, 9, width)
    planes = [(ramp * (1 + c)).sin() * 80 + 120 + (ramp * 40).cos() * 25 for c in range(channels)]
    return torch.stack(planes).round().to(torch.uint8)


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.movedim(0, -1).numpy())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


@pytest.fixture(autouse=True)
def _global_randomness_untouched() -> Iterator[None]:
    """No test in this file may advance or reset any global random state."""
    before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index] # noqa: NPY002
    yield
    after = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index] # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


# ---------------------------------------------------------------------------------------------
# Draws
# ---------------------------------------------------------------------------------------------


def test_draws_have_not_changed() -> None:
    # A published number rests on these: a change of them is a breaking change.
    assert uniforms(0, ["post-1", 7], "sample")[:, 0].tolist() == GOLDEN_UNIFORMS
    first = sample_generator(3, "post-1", "image").bit_generator.random_raw()
    assert first == GOLDEN_RAW


def test_draws_are_uniform_and_not_correlated_between_purposes_seeds_and_ids() -> None:
    ids = range(20_000)
    columns = np.stack(
        [
            uniforms(0, ids, "sample")[:, 0],
            uniforms(1, ids, "sample")[:, 0],
            uniforms(0, ids, "plan:image")[:, 0],
            uniforms(0, map(str, ids), "sample")[:, 0],
            np.array([sample_generator(0, i, "image").random() for i in ids]),
            np.array([sample_generator(0, i, "text").random() for i in ids]),
        ]
    )
    assert np.abs(columns.mean(axis=1) - 0.5).max() < 0.02
    assert np.abs(np.sort(columns, axis=1) - np.linspace(0, 1, 20_000)).max() < 0.015
    assert np.abs(np.corrcoef(columns) - np.eye(6)).max() < 0.035  # five standard errors


def test_ids_cannot_imitate_each_other() -> None:
    rows = {
        draw
        for name in ("1", 1, "1 sample", "s 1", " 1", "1 ")
        for draw in uniforms(0, [name], "sample")[:, 0]
    }
    assert len(rows) == 6


def test_numpy_and_tensor_integers_are_the_same_id() -> None:
    expected = uniforms(0, [17], "sample")
    assert np.array_equal(expected, uniforms(0, [np.int64(17)], "sample"))
    assert np.array_equal(expected, uniforms(0, [torch.tensor(17)], "sample"))


@pytest.mark.parametrize("bad", [True, 1.5, None, ("a",), torch.tensor([1]), torch.tensor(1.0)])
def test_other_ids_are_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="sample id must be a str or an int"):
        Disruption(BOTH).plan([bad])


@given(total=st.integers(0, 400), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_choose_takes_exactly_the_count_and_smaller_counts_are_subsets(
    total: int, share: float, seed: int
) -> None:
    count = count_of(share, total)
    chosen = choose(total, count, generator(seed))
    assert chosen.sum() == count
    fewer = choose(total, count // 2, generator(seed))
    assert not (fewer & ~chosen).any()


def test_choose_settles_ties() -> None:
    class Ties:
        class bit_generator:
            @staticmethod
            def random_raw(count: int) -> NDArray[np.uint64]:
                return np.zeros(count, dtype=np.uint64)

    assert choose(9, 4, Ties()).sum() == 4  # type: ignore[arg-type]


def test_choose_reaches_every_place_equally() -> None:
    hits = sum(choose(10, 3, generator(i)).astype(int) for i in range(3000))
    assert np.abs(np.asarray(hits) / 3000 - 0.3).max() < 0.04


# ---------------------------------------------------------------------------------------------
# The protocol
# ---------------------------------------------------------------------------------------------


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
        disruption_rate=draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])),
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
    corrupted, discarded = plan.corrupted, plan.discarded
    for name in disruption.modalities:
        assert not (corrupted[name] & discarded[name]).any()
        assert not ((corrupted[name] | discarded[name]) & ~observed[name]).any()
        assert torch.equal(plan.available[name], observed[name] & ~discarded[name])
        if disruption.setting == "C":
            assert not discarded[name].any()
        if disruption.setting == "D":
            assert not corrupted[name].any()
    some = torch.stack([observed[n] for n in disruption.modalities]).any(0)
    intact = torch.stack(
        [observed[n] & ~corrupted[n] & ~discarded[n] for n in disruption.modalities]
    ).any(0)
    assert torch.equal(intact, some), "a sample was left without an intact modality"
    if disruption.strategy == "random":
        hits = sum(corrupted[n].int() + discarded[n].int() for n in disruption.modalities)
        assert int(torch.as_tensor(hits).max() if count else 0) <= 1
    counts = plan.counts()
    assert counts["samples"] == count
    assert counts["disrupted"] + counts["intact"] == count
    assert counts["disrupted"] == int(plan.disrupted.sum())
    assert counts["corrupted"] == {n: int(corrupted[n].sum()) for n in disruption.modalities}
    assert counts["discarded"] == {n: int(discarded[n].sum()) for n in disruption.modalities}
    # Row by row and backwards, the plan is the same.
    for i in reversed(range(count)):
        alone = disruption.plan([ids[i]], {n: observed[n][i : i + 1] for n in observed})
        for name in disruption.modalities:
            assert bool(alone.corrupted[name][0]) == bool(corrupted[name][i])
            assert bool(alone.discarded[name][0]) == bool(discarded[name][i])


@pytest.mark.parametrize("setting", SETTINGS)
def test_fixed_disrupts_the_named_modality_of_every_sample(setting: Any) -> None:
    plan = Disruption(BOTH, setting=setting, strategy="fixed", modality="text").plan(range(500))
    counts = plan.counts()
    assert counts["disrupted"] == 500
    assert counts["corrupted"]["image"] == counts["discarded"]["image"] == 0
    assert counts["corrupted"]["text"] + counts["discarded"]["text"] == 500
    share = {"C": 1.0, "D": 0.0, "C+D": 0.5}[setting]
    assert counts["corrupted"]["text"] / 500 == pytest.approx(share, abs=0.07 * (share == 0.5))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_rate_is_the_share_disrupted_not_the_share_kept(rate: float) -> None:
    plan = Disruption(("a", "b", "c"), disruption_rate=rate, seed=4).plan(range(3000))
    counts = plan.counts()
    assert counts["disrupted"] / 3000 == pytest.approx(rate, abs=0.03 * (0 < rate < 1))
    for name in ("a", "b", "c"):
        total = counts["corrupted"][name] + counts["discarded"][name]
        assert total / 3000 == pytest.approx(rate / 3, abs=0.03)
        assert counts["corrupted"][name] == pytest.approx(total / 2, abs=60)


def test_a_higher_rate_keeps_the_disruptions_of_a_lower_one() -> None:
    low = Disruption(BOTH, disruption_rate=0.4).plan(range(400))
    high = Disruption(BOTH, disruption_rate=0.8).plan(range(400))
    for name in BOTH:
        assert torch.equal(high.corrupted[name] & low.disrupted, low.corrupted[name])
        assert torch.equal(high.discarded[name] & low.disrupted, low.discarded[name])


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
        assert torch.equal(one.discarded[name], other.discarded[name])


def test_the_last_observed_modality_is_spared() -> None:
    observed = {"text": torch.tensor([True, False])}
    plan = Disruption(BOTH, setting="D", strategy="fixed", modality="image").plan(
        ["a", "b"], observed
    )
    assert plan.discarded["image"].tolist() == [True, False]
    assert plan.spared.tolist() == [False, True]
    assert plan.available["text"].tolist() == [True, False]
    assert plan.counts()["spared"] == 1


def test_another_process_draws_the_same() -> None:
    script = (
        "import json, sys; from robustfusion.disruption import *\n"
        "plan = Disruption(('image', 'text'), seed=5).plan([f'post-{i}' for i in range(40)])\n"
        "noise = sample_generator(5, 'post-1', 'text')\n"
        "text = TextCorruption()('one two three four five', noise)\n"
        "masks = [plan.corrupted['text'].tolist(), plan.discarded['image'].tolist()]\n"
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
    expected = [plan.corrupted["text"].tolist(), plan.discarded["image"].tolist(), text]
    assert [json.loads(run) for run in runs] == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modalities": ("image",)}, "modalities must be two or more"),
        ({"modalities": ("image", "image")}, "modalities must be two or more different"),
        ({"setting": "D+C"}, "setting must be one of"),
        ({"strategy": "both"}, "strategy must be one of"),
        ({"disruption_rate": 70}, r"disruption_rate must be in \[0, 1\], got 70"),
        ({"disruption_rate": float("nan")}, "disruption_rate must be"),
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
        with pytest.raises(TypeError, match="disruption_rate must be a number, got"):
            Disruption(BOTH, disruption_rate=rate)  # type: ignore[arg-type]
    half: Any = np.float32(0.5)
    assert Disruption(BOTH, disruption_rate=half).plan(["a"])


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


# ---------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_image_type_is_kept_and_the_input_untouched(kind: Any) -> None:
    corrupt = ImageCorruption(kind=kind)
    byte = photo()
    for image in (byte, byte.float() / 255, (byte / 255).half(), byte.double() / 255, byte[:1]):
        before = image.clone()
        result = corrupt(image, generator())
        assert (result.dtype, result.shape) == (image.dtype, image.shape)
        assert torch.equal(image, before)
        assert not torch.equal(result, image)
        assert result.data_ptr() != image.data_ptr()
    for mode in ("RGB", "L", "RGBA"):
        pil = as_pil(byte).convert(mode)
        before_bytes = pil.tobytes()
        out = corrupt(pil, generator())
        assert isinstance(out, Image.Image)
        assert (out.mode, out.size) == (mode, pil.size)
        assert pil.tobytes() == before_bytes
        assert out.tobytes() != before_bytes
    assert corrupt(as_pil(byte).convert("P"), generator()).mode == "RGB"


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_pil_and_tensors_are_corrupted_alike(kind: Any) -> None:
    corrupt, byte = ImageCorruption(kind=kind, severity=0.5), photo()
    expected = corrupt(byte, generator())
    assert torch.equal(as_tensor(corrupt(as_pil(byte), generator())), expected)
    real = corrupt(byte.float() / 255, generator())
    assert float((real * 255 - expected).abs().max()) <= 0.51


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_image_severity_is_monotone_and_deterministic(kind: Any) -> None:
    image = photo((64, 48))
    errors = []
    for severity in (0.2, 0.4, 0.6, 0.8, 1.0):
        corrupt = ImageCorruption(kind=kind, severity=severity)
        result = corrupt(image, generator())
        assert torch.equal(result, corrupt(image, generator()))
        errors.append(float((result.double() - image.double()).square().mean()))
    assert errors == sorted(errors)
    assert errors[0] > 0
    assert errors[-1] > 2 * errors[0]


@settings(deadline=None)
@given(
    severity=st.floats(0, 1),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    name=st.text(max_size=5),
)
def test_mask_hides_exactly_its_share(severity: float, width: int, height: int, name: str) -> None:
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    result = ImageCorruption(severity=severity)(image, generator(name))
    black = (result == 0).all(0)
    assert int(black.sum()) == count_of(severity, width * height)
    assert bool((result[:, ~black] == 200).all())


def test_mask_draws_its_share_between_40_and_80_percent() -> None:
    image = torch.ones(1, 40, 40, dtype=torch.float64)
    shares = torch.stack([1 - ImageCorruption()(image, generator(i)).mean() for i in range(400)])
    assert 0.4 <= float(shares.min()) < 0.41
    assert 0.79 < float(shares.max()) <= 0.8
    assert float(shares.mean()) == pytest.approx(0.6, abs=0.02)
    assert len(set(shares.tolist())) > 200


@pytest.mark.parametrize("kind", ["mask", "noise", "occlusion"])
def test_every_sample_has_noise_of_its_own(kind: Any) -> None:
    # One field's benchmark seeded its generator inside the call: equal noise for all images.
    corrupt, image = ImageCorruption(kind=kind, severity=0.5), photo((200, 150))
    results = {corrupt(image, generator(i)).numpy().tobytes() for i in range(20)}
    assert len(results) == 20


def test_noise_clips_on_both_sides_and_never_wraps_around() -> None:
    # Added in floating point and cast unclipped, -5 becomes 251: dark pixels turn white.
    corrupt = ImageCorruption(kind="noise", severity=0.1)  # standard deviation 12.75
    for level in (0, 2, 253, 255):
        image = torch.full((3, 64, 64), level, dtype=torch.uint8)
        result = corrupt(image, generator()).int()
        assert int((result - level).abs().max()) < 80
        assert len(set(result.flatten().tolist())) > 10
        real = corrupt(image / 255, generator())
        assert 0.0 <= float(real.min()) <= float(real.max()) <= 1.0


def test_noise_has_the_stated_deviation() -> None:
    image = torch.full((3, 100, 100), 0.5, dtype=torch.float64)
    result = ImageCorruption(kind="noise", severity=0.2)(image, generator())
    assert float((result - image).std()) == pytest.approx(0.1, rel=0.02)


def test_low_light_scales() -> None:
    image = torch.tensor([[[0, 100, 255]]], dtype=torch.uint8)
    result = ImageCorruption(kind="low_light", severity=0.75)(image, generator())
    assert result.tolist() == [[[0, 25, 64]]]


@pytest.mark.parametrize("severity", [0.1, 0.5, 0.9, 1.0])
def test_occlusion_hides_one_rectangle_of_its_share(severity: float) -> None:
    for i in range(20):
        image = torch.ones(1, 100, 80)
        hidden = ImageCorruption(kind="occlusion", severity=severity)(image, generator(i))[0] == 0
        rows, columns = hidden.any(1).nonzero(), hidden.any(0).nonzero()
        box = hidden[rows[0, 0] : rows[-1, 0] + 1, columns[0, 0] : columns[-1, 0] + 1]
        assert bool(box.all())
        assert float(hidden.float().mean()) == pytest.approx(severity, abs=0.01)


def test_blur_matches_a_direct_convolution_and_keeps_constants() -> None:
    image = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(0))
    result = ImageCorruption(kind="blur", severity=1.0)(image, generator())
    std, radius = 1.0, 3  # a twentieth of 20
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(image.numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    expected = np.zeros(image.shape)
    for y in range(2 * radius + 1):
        for x in range(2 * radius + 1):
            expected += kernel[y, x] * padded[:, y : y + 20, x : x + 30]
    assert np.abs(result.numpy() - expected).max() < 1e-5
    flat = torch.full((3, 9, 9), 77, dtype=torch.uint8)
    assert torch.equal(ImageCorruption(kind="blur", severity=1.0)(flat, generator()), flat)


def test_jpeg_is_the_jpeg_of_that_quality() -> None:
    pil = as_pil(photo((64, 48)))
    buffer = io.BytesIO()
    pil.save(buffer, format="JPEG", quality=48)
    expected = np.array(Image.open(buffer))
    result = ImageCorruption(kind="jpeg", severity=0.5)(pil, generator())
    assert np.array_equal(np.array(result), expected)


def test_fill_is_a_share_of_full_scale_one_a_channel() -> None:
    corrupt = ImageCorruption(severity=1.0, fill=(0.0, 0.5, 1.0))
    assert corrupt(photo(), generator())[:, 0, 0].tolist() == [0, 128, 255]
    normalised = torch.full((3, 4, 4), -2.0)
    assert ImageCorruption(severity=1.0, fill=(-2.1, 0.5, 1.5))(normalised, generator())[
        :, 0, 0
    ].tolist() == pytest.approx([-2.1, 0.5, 1.5])
    with pytest.raises(ValueError, match=r"fill must have one value a channel \(1\), got 3"):
        corrupt(photo(channels=1), generator())


def test_mask_hides_nan() -> None:
    result = ImageCorruption(severity=1.0)(torch.full((1, 3, 3), float("nan")), generator())
    assert torch.equal(result, torch.zeros(1, 3, 3))


@pytest.mark.parametrize("kind", ["noise", "low_light", "jpeg"])
def test_normalised_floats_are_refused_not_clipped_in_silence(kind: Any) -> None:
    for image in (torch.full((3, 4, 4), -0.5), torch.full((3, 4, 4), 200.0)):
        with pytest.raises(ValueError, match="before it is normalised"):
            ImageCorruption(kind=kind)(image, generator())


def test_alpha_is_kept() -> None:
    pil = as_pil(photo()).convert("RGBA")
    pil.putalpha(ImageOps.invert(pil.convert("L")))
    result = ImageCorruption(severity=1.0)(pil, generator())
    assert np.array_equal(np.array(result)[..., 3], np.array(pil)[..., 3])
    assert not np.array(result)[..., :3].any()


def test_wrong_images_are_named() -> None:
    with pytest.raises(TypeError, match="image must be a PIL image or a tensor"):
        ImageCorruption()("photo.jpg", generator())
    with pytest.raises(ValueError, match=r"image must have shape \(C, H, W\), got \(2, 3, 4, 4\)"):
        ImageCorruption()(torch.zeros(2, 3, 4, 4), generator())
    with pytest.raises(TypeError, match="image must be uint8 or floating"):
        ImageCorruption()(torch.zeros(3, 4, 4, dtype=torch.int64), generator())
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        ImageCorruption(kind="jpeg")(torch.zeros(2, 8, 8), generator())


@pytest.mark.parametrize(
    "corruption", [ImageCorruption, TextCorruption, FeatureCorruption, TokenCorruption]
)
def test_wrong_kind_and_severity_are_named(corruption: Any) -> None:
    extra = {"mask_token_id": 1} if corruption is TokenCorruption else {}
    with pytest.raises(ValueError, match=r"kind must be one of 'mask', .* got 'fog'"):
        corruption(kind="fog", **extra)
    for bad in (-0.1, 1.1, (0.8, 0.4), (0.1, 0.2, 0.3), "0.5", float("nan"), True, None):
        with pytest.raises(ValueError, match="severity must be a number in"):
            corruption(severity=bad, **extra)


def test_package_does_not_import_pillow() -> None:
    script = (
        "import sys, torch\nsys.modules['PIL'] = None\n"
        "from robustfusion.disruption import ImageCorruption, sample_generator\n"
        "g = sample_generator(0, 1, 'image')\n"
        "ImageCorruption()(torch.ones(3, 4, 4), g)\n"
        "try:\n    ImageCorruption(kind='jpeg')(torch.ones(3, 4, 4), g)\n"
        "except ImportError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "robustfusion[data]" in run.stdout


# ---------------------------------------------------------------------------------------------
# Texts and tokens
# ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(text=st.text(max_size=60), severity=st.floats(0, 1), name=st.integers(0, 9))
def test_text_kinds_return_strings_and_are_deterministic(
    text: str, severity: float, name: int
) -> None:
    for kind in TEXT_KINDS:
        corrupt = TextCorruption(kind=kind, severity=severity)
        result = corrupt(text, generator(name))
        assert isinstance(result, str)
        assert result == corrupt(text, generator(name))
        if severity == 0:
            assert result == text


@given(words=st.integers(0, 30), severity=st.floats(0, 1), name=st.integers(0, 9))
def test_mask_replaces_exactly_its_share_of_the_words(
    words: int, severity: float, name: int
) -> None:
    text = "  ".join(f"w{i}" for i in range(words))
    result = TextCorruption(severity=severity, mask_token="<mask>")(text, generator(name))
    pieces = result.split("  ") if words else []
    assert pieces.count("<mask>") == count_of(severity, words)
    assert all(new in (f"w{i}", "<mask>") for i, new in enumerate(pieces))


def test_mask_default_is_40_to_80_percent_of_the_words() -> None:
    text = " ".join("word" for _ in range(100))
    counts = [TextCorruption()(text, generator(i)).count("[MASK]") for i in range(300)]
    assert min(counts) in (40, 41)
    assert max(counts) in (79, 80)
    assert np.mean(counts) == pytest.approx(60, abs=2)
    masked = {TextCorruption(severity=0.5)(TEXT, generator(i)) for i in range(20)}
    assert len(masked) > 15


def test_white_space_is_kept() -> None:
    assert TextCorruption(severity=1.0)(" a\n\nb\tc ", generator()) == " [MASK]\n\n[MASK]\t[MASK] "


def test_a_short_text_loses_a_word_and_an_empty_one_stays() -> None:
    assert TextCorruption(severity=0.4)("good", generator()) == "[MASK]"
    for kind in TEXT_KINDS:
        assert TextCorruption(kind=kind)("", generator()) == ""


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_text_severity_is_monotone(kind: Any) -> None:
    text = " ".join(f"word{i}" for i in range(40))
    kept = []
    for severity in (0.0, 0.1, 0.4, 0.8, 1.0):
        result = TextCorruption(kind=kind, severity=severity)(text, generator())
        kept.append(len(set(result.split()) & set(text.split())))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 40
    assert kept[-1] == 0


def test_characters_hits_exactly_its_share() -> None:
    # Replaced letters are counted where nothing is lost or doubled, by an alignment.
    text = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 2
    result = TextCorruption(kind="characters", severity=0.25)(text, generator())
    gone = sum(1 for letter in result if letter.islower())
    lost_or_doubled = 13 - gone
    assert 0 < gone < 13
    assert abs(len(result) - len(text)) <= lost_or_doubled
    alphabet = TextCorruption(kind="characters", severity=1.0)("aaaa", generator())
    assert alphabet != "aaaa"


def test_mojibake_is_a_wrong_decoding_that_can_be_undone() -> None:
    corrupt = TextCorruption(kind="mojibake", severity=1.0)
    assert corrupt("Zoë", generator()) == "ZoÃ«"
    ascii_word = corrupt("good", generator())
    assert ascii_word != "good"
    assert ascii_word.encode("utf-16-le") == b"good"
    assert corrupt("day", generator()).encode("utf-16-le") == b"day "


@given(text=st.text(min_size=1, max_size=50), severity=st.floats(0, 1))
def test_truncate_leaves_a_beginning(text: str, severity: float) -> None:
    result = TextCorruption(kind="truncate", severity=severity)(text, generator())
    assert result
    assert text.startswith(result)
    assert len(result) == max(1, len(text) - count_of(severity, len(text)))


def test_text_must_be_a_string() -> None:
    with pytest.raises(TypeError, match="text must be a str, got list"):
        TextCorruption()(["a"], generator())  # type: ignore[arg-type]


def tokens(left: bool = False) -> dict[str, Tensor]:
    ids = [101, 11, 12, 13, 14, 15, 102]
    ids = [0, 0, *ids] if left else [*ids, 0, 0]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor([int(i != 0) for i in ids]),
        "token_type_ids": torch.zeros(9, dtype=torch.long),
    }


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("severity", [0.0, 0.2, 0.6, 1.0])
def test_tokens_mask_keeps_special_tokens_and_padding(severity: float, left: bool) -> None:
    corrupt = TokenCorruption(mask_token_id=103, special_token_ids=(101, 102), severity=severity)
    before, given_ = tokens(left), tokens(left)
    result = corrupt(given_, generator())
    assert all(torch.equal(given_[key], before[key]) for key in before)
    assert torch.equal(result["attention_mask"], before["attention_mask"])
    special = (before["input_ids"] < 11) | (before["input_ids"] > 100)
    assert torch.equal(result["input_ids"][special], before["input_ids"][special])
    assert int((result["input_ids"] == 103).sum()) == round(severity * 5)


@pytest.mark.parametrize("left", [False, True])
def test_tokens_truncate_moves_the_end_up(left: bool) -> None:
    corrupt = TokenCorruption(
        mask_token_id=103, special_token_ids=(101, 102), kind="truncate", severity=0.6
    )
    result = corrupt(tokens(left), generator())
    kept = [101, 11, 12, 102]
    expected = [0] * 5 + kept if left else kept + [0] * 5
    assert result["input_ids"].tolist() == expected
    assert result["attention_mask"].tolist() == [int(i != 0) for i in expected]


def test_tokens_as_a_plain_tensor() -> None:
    corrupt = TokenCorruption(mask_token_id=9, special_token_ids=(0,), severity=1.0)
    ids = torch.tensor([0, 5, 6], dtype=torch.int32)
    result = corrupt(ids, generator())
    assert result.tolist() == [0, 9, 9]
    assert result.dtype == torch.int32
    assert ids.tolist() == [0, 5, 6]


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ("text", TypeError, "tokens must be a tensor of ids or a mapping"),
        ({"ids": 1}, TypeError, "tokens must be"),
        (torch.zeros(2, 3).long(), ValueError, r"input_ids must have shape \(L,\), got \(2, 3\)"),
        (torch.zeros(2), TypeError, "input_ids must be integers"),
        (
            {"input_ids": torch.zeros(3).long(), "attention_mask": torch.ones(2).long()},
            ValueError,
            r"attention_mask must have the shape of input_ids, \(3,\), got \(2,\)",
        ),
    ],
)
def test_wrong_tokens_are_named(bad: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TokenCorruption(mask_token_id=1)(bad, generator())


# ---------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FEATURE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_keep_type_shape_and_input(kind: Any, dtype: torch.dtype) -> None:
    source = torch.linspace(-2, 3, 24).to(dtype)
    for features in (source, source.reshape(2, 12)):
        before = features.clone()
        result = FeatureCorruption(kind=kind)(features, generator())
        assert (result.dtype, result.shape) == (dtype, features.shape)
        assert torch.equal(features, before)
        assert not torch.equal(result, features)


@given(width=st.integers(1, 60), severity=st.floats(0, 1), name=st.integers(0, 9))
@settings(deadline=None)
def test_features_mask_and_shuffle_touch_their_share(
    width: int, severity: float, name: int
) -> None:
    features, count = torch.arange(1.0, width + 1), count_of(severity, width)
    masked = FeatureCorruption(kind="mask", severity=severity)(features, generator(name))
    assert int((masked == 0).sum()) == count
    assert torch.equal(masked[masked != 0], features[masked != 0])
    shuffled = FeatureCorruption(kind="shuffle", severity=severity)(features, generator(name))
    assert torch.equal(shuffled.sort().values, features)
    assert int((shuffled != features).sum()) <= count


@pytest.mark.parametrize("kind", FEATURE_KINDS)
def test_feature_severity_is_monotone(kind: Any) -> None:
    features = torch.linspace(-1, 1, 500).tan()
    errors = [
        float((FeatureCorruption(kind=kind, severity=s)(features, generator()) - features).norm())
        for s in (0.0, 0.1, 0.4, 1.0)
    ]
    assert errors == sorted(errors)
    assert errors[0] == 0 < errors[1]


def test_feature_noise_scales_with_the_vector() -> None:
    features = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 7 + 100
    result = FeatureCorruption(kind="noise", severity=0.5)(features, generator())
    assert float((result - features).std()) == pytest.approx(7, rel=0.05)


def test_rows_do_not_depend_on_the_batch() -> None:
    features, corrupt = torch.arange(60.0).reshape(6, 10), FeatureCorruption()
    ids = list("abcdef")
    whole = corrupt.rows(features, ids, seed=1, modality="audio")
    order = [4, 1, 5]
    some = corrupt.rows(features[order], [ids[i] for i in order], seed=1, modality="audio")
    assert torch.equal(some, whole[order])
    equal_rows = corrupt.rows(torch.arange(10.0).expand(6, 10), ids, seed=1, modality="audio")
    assert len({tuple(row.tolist()) for row in equal_rows}) == 6
    assert corrupt.rows(features[:0], [], seed=1, modality="audio").shape == (0, 10)
    with pytest.raises(ValueError, match=r'features\["audio"\] must have shape \(6, ..., D\)'):
        corrupt.rows(features[0], ids, seed=1, modality="audio")


def test_wrong_features_are_named() -> None:
    with pytest.raises(TypeError, match=r"features must be a floating tensor, got torch\.int64"):
        FeatureCorruption()(torch.arange(3), generator())
    with pytest.raises(ValueError, match="features must have shape"):
        FeatureCorruption()(torch.tensor(1.0), generator())


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
    disruption = Disruption(names, setting=setting, disruption_rate=rate, seed=2)
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


def test_discarded_nan_never_comes_through(cache: dict[str, Tensor]) -> None:
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
    disruption = Disruption(("image", "text"), disruption_rate=1.0, seed=3)
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


# ---------------------------------------------------------------------------------------------
# Datasets and collate functions
# ---------------------------------------------------------------------------------------------


class Posts(torch.utils.data.Dataset[dict[str, Any]]):
    """Posts of a tensor image and a text; `fail` counts reads."""

    def __init__(self, count: int = 24, *, own_ids: bool = True) -> None:
        self.count, self.reads = count, 0
        self.image = photo((8, 6))
        if own_ids:
            self.ids = [f"post-{i}" for i in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        text = f"post {index} says that it is a very fine day today"
        sample = {"inputs": {"image": self.image, "text": text}, "label": index % 3}
        return sample | ({"id": self.ids[index]} if hasattr(self, "ids") else {})


CORRUPTIONS: dict[str, Any] = {"image": ImageCorruption(kind="noise"), "text": TextCorruption()}


def everything(batches: Any) -> dict[str, tuple[bytes, str, bool, bool]]:
    found = {}
    for batch in batches:
        for i, name in enumerate(batch["id"]):
            inputs, available = batch["inputs"], batch["available"]
            found[name] = (
                inputs["image"][i].numpy().tobytes(),
                inputs["text"][i],
                bool(available["image"][i]),
                bool(available["text"][i]),
            )
    return found


def test_dataset_collate_order_batch_and_workers_agree() -> None:
    posts, disruption = Posts(), Disruption(BOTH, disruption_rate=0.8, seed=3)
    data = DisruptedDataset(posts, disruption, CORRUPTIONS)
    assert posts.reads == 0
    reference = everything([collate([data[i] for i in range(24)])])
    assert len(reference) == 24
    fork = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        loaders = [
            DataLoader(data, batch_size=5, shuffle=True, collate_fn=collate, generator=fork),
            DataLoader(data, batch_size=4, num_workers=2, collate_fn=collate),
            DataLoader(posts, batch_size=7, collate_fn=DisruptedCollate(disruption, CORRUPTIONS)),
        ]
        for loader in loaders:
            assert everything(loader) == reference


def test_dataset_does_what_the_plan_says_and_nothing_else() -> None:
    posts = Posts()
    data = DisruptedDataset(posts, Disruption(BOTH, disruption_rate=0.7), CORRUPTIONS)
    hits = dict.fromkeys(BOTH, 0)
    for i in range(24):
        sample, clean = data[i], posts[i]
        assert sample["label"] == clean["label"]
        assert sample["id"] == f"post-{i}"
        image, text = sample["inputs"]["image"], sample["inputs"]["text"]
        for name in BOTH:
            assert sample["available"][name] == bool(data.plan.available[name][i])
            assert sample["corrupted"][name] == bool(data.plan.corrupted[name][i])
            hits[name] += sample["corrupted"][name] + (not sample["available"][name])
        if not sample["available"]["image"]:
            assert not image.any()
        else:
            changed = not torch.equal(image, clean["inputs"]["image"])
            assert changed == sample["corrupted"]["image"]
        if not sample["available"]["text"]:
            assert text == ""
        else:
            assert (text != clean["inputs"]["text"]) == sample["corrupted"]["text"]
    counts = data.plan.counts()
    assert hits == {n: counts["corrupted"][n] + counts["discarded"][n] for n in BOTH}
    assert sum(hits.values()) == counts["disrupted"]
    assert torch.equal(posts.image, photo((8, 6)))


def test_transforms_come_after_the_disruption() -> None:
    posts = [{"inputs": {"image": as_pil(photo()), "text": "good day"}, "label": 1}]
    data = DisruptedDataset(
        posts,
        Disruption(BOTH, setting="D", strategy="fixed", modality="image"),
        transforms={"image": lambda image: as_tensor(image) / 255 - 0.5, "text": str.upper},
    )
    sample = data[0]
    assert torch.equal(sample["inputs"]["image"], torch.full((3, 24, 32), -0.5))
    assert sample["inputs"]["text"] == "GOOD DAY"
    assert sample["id"] == 0


def test_ids_come_from_the_argument_the_dataset_or_the_index() -> None:
    plan = Disruption(BOTH, setting="D")
    assert DisruptedDataset(Posts(2), plan).plan.ids == ("post-0", "post-1")
    bare = Posts(2, own_ids=False)
    assert DisruptedDataset(bare, plan).plan.ids == (0, 1)
    assert DisruptedDataset(bare, plan, ids=["x", "y"])[1]["id"] == "y"


def test_a_sample_that_lacks_a_modality_keeps_its_last() -> None:
    class Half(Posts):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "available": {"image": False, "text": True}}

    half = Half(10)
    disruption = Disruption(BOTH, setting="D")
    data = DisruptedDataset(half, disruption)
    samples = [data[i] for i in range(10)]
    assert all(s["available"] == {"image": False, "text": True} for s in samples)
    assert all(s["inputs"]["text"] for s in samples)
    assert not any(s["inputs"]["image"].any() for s in samples), "unobserved content stays hidden"
    collated = DisruptedCollate(disruption)([half[i] for i in range(10)])
    assert not collated["available"]["image"].any()
    assert collated["available"]["text"].all()


def test_counts_are_realised_where_it_is_said_what_is_missing() -> None:
    class Some(Posts):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "available": {"image": index % 3 > 0}}

    image = torch.arange(24) % 3 > 0
    for setting in SETTINGS:
        disruption = Disruption(BOTH, setting=setting, seed=1)
        data = DisruptedDataset(Some(), disruption, CORRUPTIONS, available={"image": image})
        samples = [data[i] for i in range(24)]
        counts = data.plan.counts()
        for name in BOTH:
            assert counts["corrupted"][name] == sum(s["corrupted"][name] for s in samples)
        gone = sum(not s["available"]["image"] for s in samples)
        assert counts["discarded"]["image"] + 8 == gone
        assert counts["spared"] == 8  # disrupted at rate 1, but their only modality stays
        # What a sample says of itself counts, told before or not.
        assert everything([collate(samples)]) == everything(
            [collate([DisruptedDataset(Some(), disruption, CORRUPTIONS)[i] for i in range(24)])]
        )


def test_wrong_datasets_are_named() -> None:
    disruption = Disruption(BOTH, setting="C", strategy="fixed", modality="text")
    with pytest.raises(ValueError, match=r'corruptions\["text"\] is needed: 24 samples'):
        DisruptedDataset(Posts(), disruption)
    with pytest.raises(ValueError, match="corruptions has the key 'sound'"):
        DisruptedDataset(Posts(), disruption, {"sound": TextCorruption()})
    with pytest.raises(ValueError, match="transforms has the key 'sound'"):
        DisruptedDataset(Posts(), disruption, CORRUPTIONS, transforms={"sound": str})
    with pytest.raises(ValueError, match="ids must be unique, 'a' occurs"):
        DisruptedDataset(Posts(2), disruption, CORRUPTIONS, ids=["a", "a"])
    with pytest.raises(ValueError, match="ids must name 24 samples, got 1"):
        DisruptedDataset(Posts(), disruption, CORRUPTIONS, ids=["a"])
    with pytest.raises(ValueError, match="has the id 'post-0', but was planned as 'a'"):
        DisruptedDataset(Posts(1), disruption, CORRUPTIONS, ids=["a"])[0]
    with pytest.raises(ValueError, match="inputs must have the keys"):
        DisruptedDataset([{"inputs": {"text": "a"}}], disruption, CORRUPTIONS)[0]
    with pytest.raises(ValueError, match="every sample must have an id"):
        DisruptedCollate(disruption, CORRUPTIONS)([Posts(own_ids=False)[0]])
    with pytest.raises(ValueError, match=r'corruptions\["text"\] is needed'):
        DisruptedCollate(disruption)([Posts()[0]])


def test_collate_works_on_an_iterable_dataset() -> None:
    class Stream(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            posts = Posts()
            yield from (posts[i] for i in range(24))

    disruption = Disruption(BOTH, seed=3)
    collate_fn = DisruptedCollate(disruption, CORRUPTIONS)
    with torch.random.fork_rng():
        found = everything(DataLoader(Stream(), batch_size=9, collate_fn=collate_fn))
    data = DisruptedDataset(Posts(), disruption, CORRUPTIONS)
    assert found == everything([collate([data[i] for i in range(24)])])


def test_collate_shapes() -> None:
    sample = {"inputs": {"image": as_pil(photo()), "text": tokens()}, "label": 2, "id": "a"}
    batch = collate([sample, sample])
    assert batch["inputs"]["text"]["input_ids"].shape == (2, 9)
    assert len(batch["inputs"]["image"]) == 2
    assert batch["available"]["image"].tolist() == [True, True]
    assert batch["label"].tolist() == [2, 2]
    assert batch["label"].dtype == torch.long
    assert "corrupted" not in batch
    with pytest.raises(ValueError, match="samples must not be empty"):
        collate([])
    uneven = [{"inputs": {"text": torch.zeros(n).long()}} for n in (3, 4)]
    with pytest.raises(ValueError, match=r'inputs\["text"\] has rows of different shapes'):
        collate(uneven)


def test_collate_names_what_does_not_fit() -> None:
    one = {"inputs": {"image": torch.zeros(2)}, "label": 1, "id": "a"}
    for label in (np.int64(1), torch.tensor(1), True):
        assert collate([{**one, "label": label}])["label"].tolist() == [1]
    for wrong in (0.7, torch.tensor(0.7), "1", None):
        with pytest.raises(TypeError, match="label must be an integer, got"):
            collate([{**one, "label": wrong}])
    with pytest.raises(ValueError, match="inputs must have the same keys in all samples"):
        collate([one, {**one, "inputs": {"text": torch.zeros(2)}}])
    for key in ("label", "id"):
        rest = {name: value for name, value in one.items() if name != key}
        for pair in ([one, rest], [rest, one]):
            with pytest.raises(ValueError, match=f"{key} must be in all 2 samples or none, got 1"):
                collate(pair)


def test_placeholders_hold_nothing_of_the_content() -> None:
    image = placeholder(as_pil(photo()))
    assert (image.mode, image.size, image.getextrema()) == ("RGB", (32, 24), ((0, 0),) * 3)
    empty = placeholder(tokens())
    assert not empty["input_ids"].any()
    assert empty["attention_mask"].tolist() == [1] + [0] * 8
    assert tokens()["input_ids"].any()
    assert placeholder("secret") == ""
    assert torch.equal(placeholder(torch.full((2,), float("nan"))), torch.zeros(2))
    with pytest.raises(TypeError, match="no placeholder for an input of type int"):
        placeholder(3)
