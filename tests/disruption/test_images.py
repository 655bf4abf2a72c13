"""Corruption of images."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from small_inputs import as_pil, as_tensor, generator, photo

from robustfusion.disruption import (
    IMAGE_DAMAGE,
    ImageCorruption,
)
from robustfusion.disruption._draws import count_of

IMAGE_KINDS: tuple[Any, ...] = tuple(kind for kind in IMAGE_DAMAGE if kind != "swapped")


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


@pytest.mark.parametrize(
    "kind", ["noise", "low_light", "jpeg", "black", "white", "gray", "random_color", "half_loaded"]
)
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


def test_one_color_by_hand() -> None:
    image = torch.tensor([[[0, 100, 255]]], dtype=torch.uint8)
    by_hand = {"black": [0, 36, 191], "white": [64, 164, 255], "gray": [32, 107, 223]}
    kind: Any
    for kind, expected in by_hand.items():
        result = ImageCorruption(kind=kind, severity=0.25)(image, generator())
        assert result[0, 0].tolist() == pytest.approx(expected, abs=0.51)
    whole = {"black": 0, "low_light": 0, "white": 255, "gray": 128}
    for kind, level in whole.items():
        result = ImageCorruption(kind=kind, severity=1.0)(photo(), generator())
        assert set(result.flatten().tolist()) == {level}
    colors = set()
    for i in range(20):
        result = ImageCorruption(kind="random_color", severity=1.0)(photo(), generator(i))
        (color,) = set(map(tuple, result.flatten(1).T.tolist()))
        colors.add(color)
    assert len(colors) == 20


@pytest.mark.parametrize("severity", [0.1, 0.5, 1.0])
def test_half_loaded_is_gray_from_below(severity: float) -> None:
    image = torch.full((3, 40, 7), 200, dtype=torch.uint8)
    result = ImageCorruption(kind="half_loaded", severity=severity)(image, generator())
    rows = round(severity * 40)
    assert (result[:, 40 - rows :] == 128).all()
    assert (result[:, : 40 - rows] == 200).all()


def test_pixelate_averages_blocks() -> None:
    image = torch.rand(2, 21, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = ImageCorruption(kind="pixelate", severity=0.8)(image, generator())
    side = 4  # 0.8 of a quarter of 21 is 4.2
    for top in range(0, 21, side):
        for left in range(0, 32, side):
            block = slice(top, top + side), slice(left, left + side)
            for channel in range(2):
                mean = image[channel][block].mean()
                values = result[channel][block]
                assert torch.allclose(values, mean.expand_as(values), atol=1e-6)
    same = ImageCorruption(kind="pixelate", severity=0.0)(image, generator())
    assert torch.allclose(same, image, atol=1e-6)


def test_swapped_shows_a_rectangle_of_another_image() -> None:
    image, other = torch.zeros(3, 30, 20), torch.ones(3, 30, 20)
    for severity in (0.0, 0.2, 0.6, 1.0):
        result = ImageCorruption(kind="swapped", severity=severity)(image, generator(), other)
        assert float(result.mean()) == pytest.approx(severity, abs=0.03)
        assert set(result.flatten().tolist()) <= {0.0, 1.0}
    larger = torch.full((3, 64, 64), 9, dtype=torch.uint8)
    byte = photo()
    result = ImageCorruption(kind="swapped", severity=1.0)(byte, generator(), larger)
    assert torch.equal(result, torch.full_like(byte, 9))
    pil = ImageCorruption(kind="swapped", severity=1.0)(as_pil(byte), generator(), as_pil(larger))
    assert torch.equal(as_tensor(pil), result)
    wrong: Any
    for wrong in (None, as_pil(byte)):
        with pytest.raises(ValueError, match='kind="swapped" needs other, another image'):
            ImageCorruption(kind="swapped")(byte, generator(), wrong)
    with pytest.raises(ValueError, match="other must have 3 channels, got 1"):
        ImageCorruption(kind="swapped")(byte, generator(), byte[:1])


def test_wrong_images_are_named() -> None:
    with pytest.raises(TypeError, match="image must be a PIL image or a tensor"):
        ImageCorruption()("photo.jpg", generator())
    with pytest.raises(ValueError, match=r"image must have shape \(C, H, W\), got \(2, 3, 4, 4\)"):
        ImageCorruption()(torch.zeros(2, 3, 4, 4), generator())
    with pytest.raises(TypeError, match="image must be uint8 or floating"):
        ImageCorruption()(torch.zeros(3, 4, 4, dtype=torch.int64), generator())
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        ImageCorruption(kind="jpeg")(torch.zeros(2, 8, 8), generator())


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
