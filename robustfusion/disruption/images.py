"""Corruption of images: PIL images and tensors of shape (C, H, W)."""

import io
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._optional import import_pillow, is_pillow
from robustfusion.disruption._draws import Severity, check_options, choose, count_of, draw_severity

ImageKind: TypeAlias = Literal[
    "mask",
    "occlusion",
    "noise",
    "low_light",
    "blur",
    "jpeg",
    "pixelate",
    "black",
    "white",
    "gray",
    "random_color",
    "half_loaded",
    "swapped",
]
ImageT = TypeVar("ImageT")
Array: TypeAlias = NDArray[Any]

NOISE_STD = 0.5  # standard deviation at severity 1, in units of full scale
BLUR_STD = 0.05  # standard deviation at severity 1, in units of the shorter side
BLOCK_SIDE = 0.25  # side of a block at severity 1, in units of the shorter side


def _full_scale(pixels: Array) -> float:
    return 255.0 if pixels.dtype == np.uint8 else 1.0


def _store(values: Array, like: Array) -> Array:
    # Clip on both sides before the cast: a negative value in uint8 would wrap around to white.
    clipped = np.clip(values, 0.0, _full_scale(like))
    return (np.rint(clipped) if like.dtype == np.uint8 else clipped).astype(like.dtype)


def _fill(pixels: Array, chosen: Array, fill: float | tuple[float, ...]) -> Array:
    channels = pixels.shape[2]
    if isinstance(fill, tuple) and len(fill) != channels:
        raise ValueError(f"fill must have one value a channel ({channels}), got {len(fill)}")
    values = np.asarray(fill, dtype=np.float64) * _full_scale(pixels)
    color = (np.rint(values) if pixels.dtype == np.uint8 else values).astype(pixels.dtype)
    if pixels.dtype == np.uint8 and not color.any():
        # A product is faster than copyto. It is only for integers, because 0 * NaN is NaN.
        if pixels.flags.c_contiguous:  # a mask of the same memory layout is faster to multiply
            keep: Array = np.repeat(~chosen, channels, axis=1).reshape(pixels.shape)
            return np.multiply(pixels, keep, dtype=np.uint8)
        return np.multiply(pixels, ~chosen[..., None], dtype=np.uint8)
    filled = pixels.copy(order="K")  # "K" keeps the memory layout
    np.copyto(filled, color, where=chosen[..., None])
    return filled


def _scattered(pixels: Array, severity: float, rng: np.random.Generator) -> Array:
    height, width = pixels.shape[:2]
    count = count_of(severity, height * width)
    return choose(height * width, count, rng).reshape(height, width)


def _rectangle(pixels: Array, severity: float, rng: np.random.Generator) -> Array:
    height, width = pixels.shape[:2]
    stretch, down, right = rng.random(3)
    tall = float(np.clip(np.sqrt(severity * 2.0 ** (2.0 * stretch - 1.0)), severity, 1.0))
    rows = count_of(tall, height)
    columns = count_of(severity * height / rows, width) if rows else 0
    top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
    chosen = np.zeros((height, width), dtype=np.bool_)
    chosen[top : top + rows, left : left + columns] = True
    return chosen


def _noise(pixels: Array, severity: float, rng: np.random.Generator) -> Array:
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return _store(pixels + noise * (severity * NOISE_STD * _full_scale(pixels)), pixels)


def _blur(pixels: Array, severity: float) -> Array:
    std = severity * BLUR_STD * min(pixels.shape[:2])
    if std < 1e-3:  # below a thousandth of a pixel nothing changes, and zero would divide by zero
        return pixels.copy()
    radius = max(1, round(3.0 * std))  # less than 0.3 % of a Gaussian lies outside
    line = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.softmax(-0.5 * (line / std).square(), dim=0)
    planes = torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 0).unsqueeze(1)
    planes = F.pad(planes, (radius, radius, radius, radius), mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    blurred = planes.squeeze(1).movedim(0, -1).numpy()
    # Blurred values stay within the range of the image, so float images need no clipping.
    return _store(blurred, pixels) if pixels.dtype == np.uint8 else blurred.astype(pixels.dtype)


def _jpeg(pixels: Array, severity: float) -> Array:
    if pixels.shape[2] not in (1, 3):
        raise ValueError(f'kind="jpeg" needs an image of 1 or 3 channels, got {pixels.shape[2]}')
    pil = import_pillow()
    scale = 255.0 / _full_scale(pixels)
    levels = np.rint(np.clip(pixels * scale, 0.0, 255.0)).astype(np.uint8)
    buffer = io.BytesIO()
    picture = pil.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    picture.save(buffer, format="JPEG", quality=round(95.0 - 94.0 * severity))
    with pil.open(buffer) as decoded:
        result = np.array(decoded).reshape(pixels.shape)
    return (result / scale).astype(pixels.dtype)


def _pixelate(pixels: Array, severity: float) -> Array:
    height, width = pixels.shape[:2]
    side = max(1, round(severity * BLOCK_SIDE * min(height, width)))
    planes = torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 0)
    # With ceil_mode the blocks at the border are smaller, and average what they hold.
    blocks = F.avg_pool2d(planes, side, ceil_mode=True)
    planes = blocks.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
    averaged = planes.movedim(0, -1).numpy()
    return _store(averaged, pixels) if pixels.dtype == np.uint8 else averaged.astype(pixels.dtype)


def _recolor(pixels: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
    """Change the pixels towards one color, which all of them have at severity 1."""
    scale = _full_scale(pixels)
    values = pixels.astype(np.result_type(pixels.dtype, np.float32))
    if kind in ("black", "white"):
        shift = severity * scale
        return _store(values - shift if kind == "black" else values + shift, pixels)
    if kind == "low_light":
        return _store(values * (1.0 - severity), pixels)
    color = 0.5 if kind == "gray" else rng.random(pixels.shape[2])
    return _store(values + severity * (np.multiply(color, scale) - values), pixels)


def _half_loaded(pixels: Array, severity: float) -> Array:
    height, width = pixels.shape[:2]
    chosen = np.zeros((height, width), dtype=np.bool_)
    chosen[height - count_of(severity, height) :] = True
    return _fill(pixels, chosen, 0.5)


def _swapped(pixels: Array, other: Array, severity: float, rng: np.random.Generator) -> Array:
    if other.shape[2] != pixels.shape[2]:
        raise ValueError(f"other must have {pixels.shape[2]} channels, got {other.shape[2]}")
    if other.shape != pixels.shape:
        planes = torch.from_numpy(other.astype(np.float32)).movedim(-1, 0)[None]
        size = pixels.shape[:2]
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True)
        resized = planes[0].movedim(0, -1).numpy()
        other = np.rint(resized).clip(0, 255) if pixels.dtype == np.uint8 else resized
    chosen = _rectangle(pixels, severity, rng)
    mixed = pixels.copy(order="K")
    np.copyto(mixed, other.astype(pixels.dtype), where=chosen[..., None])
    return mixed


def _check_range(pixels: Array, kind: str) -> None:
    if pixels.dtype == np.uint8 or not pixels.size:
        return
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f'kind="{kind}" needs a float image with values in [0, 1], got [{low:.4g}, '
            f"{high:.4g}]: corrupt the image before it is normalised"
        )


@dataclass(frozen=True, kw_only=True)
class ImageCorruption:
    """Corrupt one image, by a named kind and a severity `s` in [0, 1].

    - `mask`: a share `s` of the pixels is set to `fill`; the default, 40-80 % of them, is the
      corruption of the paper (section 4.1);
    - `occlusion`: one rectangle of `fill`, of random position and shape, hides a share `s` of the
      area;
    - `noise`: Gaussian noise with a standard deviation of s / 2 of full scale (51 gray levels at
      0.4);
    - `low_light`: x becomes (1 - s) x;
    - `black`: underexposure, x becomes max(x - s, 0); `white`: overexposure, min(x + s, 1);
    - `gray`, `random_color`: a haze, x becomes (1 - s) x + s c, with c = 0.5 or a color drawn for
      the image; with each of these kinds the image has one color at s = 1;
    - `half_loaded`: the lower share `s` of the image is gray, as when loading stopped;
    - `pixelate`: square blocks with a side of s / 4 of the shorter side are averaged;
    - `swapped`: one rectangle with a share `s` of the area shows another image;
    - `blur`: a Gaussian blur with a standard deviation of s / 20 of the shorter side;
    - `jpeg`: compression at quality 95 - 94 s.

    Args:
        kind: The damage.
        severity: A number, or a pair (low, high) from which each sample draws uniformly.
        fill: Value of the pixels that `mask` and `occlusion` hide, one for all or one for each
            channel, as a share of full scale (1 is 255 in uint8). Black is 0, or
            (0 - mean) / std of each channel in an image that is normalized already.

    Shape:
        A PIL image, or a tensor (C, H, W), uint8 or floating; floating values lie in [0, 1] for
        every kind but `mask`, `occlusion`, `blur`, `pixelate` and `swapped`. The result has the
        same type, dtype, size and device. PIL modes L, RGB and RGBA are kept (alpha is never
        changed), other modes come back as RGB.

    Raises:
        ValueError: If `kind` is unknown, `severity` not in [0, 1], or a float image out of range.
        TypeError: If the input is neither a PIL image nor such a tensor.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import ImageCorruption, sample_generator
        >>> image, noise = torch.ones(3, 10, 10), sample_generator(0, "post-17", "image")
        >>> masked = ImageCorruption(kind="mask", severity=0.4)(image, noise)
        >>> int((masked == 0).all(0).sum()), int((image == 0).sum())
        (40, 0)

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """

    kind: ImageKind = "mask"
    severity: Severity = (0.4, 0.8)
    fill: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        check_options(self.kind, ImageKind, self.severity)

    def __call__(
        self, image: ImageT, generator: np.random.Generator, other: ImageT | None = None
    ) -> ImageT:
        """Return a corrupted copy of `image`; all randomness comes from `generator`.

        The kind `swapped` takes pixels from `other`, an image of the same type.
        """
        if self.kind == "swapped" and (other is None or type(other) is not type(image)):
            raise ValueError(
                f'kind="swapped" needs other, another image of the same type, got '
                f"{type(other).__name__}"
            )
        if isinstance(image, Tensor):
            return cast("ImageT", self._tensor(image, generator, other))
        if is_pillow(image):
            return cast("ImageT", self._pil(image, generator, other))
        raise TypeError(
            f"image must be a PIL image or a tensor of shape (C, H, W), got {type(image).__name__}"
        )

    def _pixels(self, pixels: Array, generator: np.random.Generator, other: Any) -> Array:
        severity = draw_severity(self.severity, generator)
        if self.kind in ("mask", "occlusion"):
            where = _scattered if self.kind == "mask" else _rectangle
            return _fill(pixels, where(pixels, severity, generator), self.fill)
        if self.kind == "swapped":
            return _swapped(pixels, other, severity, generator)
        if self.kind == "blur":
            return _blur(pixels, severity)
        if self.kind == "pixelate":
            return _pixelate(pixels, severity)
        _check_range(pixels, self.kind)
        if self.kind == "noise":
            return _noise(pixels, severity, generator)
        if self.kind == "jpeg":
            return _jpeg(pixels, severity)
        if self.kind == "half_loaded":
            return _half_loaded(pixels, severity)
        return _recolor(pixels, self.kind, severity, generator)

    def _tensor(self, image: Tensor, generator: np.random.Generator, other: Any) -> Tensor:
        pixels = _pixels_of(image)
        others = None if other is None else _pixels_of(other)
        corrupted = self._pixels(pixels, generator, others)
        result = torch.from_numpy(np.ascontiguousarray(np.moveaxis(corrupted, -1, 0)))
        return result.to(dtype=image.dtype, device=image.device)

    def _pil(self, image: Any, generator: np.random.Generator, other: Any) -> Any:
        pil = import_pillow()
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
        colors = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
        if other is not None:
            others = np.asarray(other.convert("L" if image.mode == "L" else "RGB"))
            other = others[..., None] if others.ndim == 2 else others
        corrupted = self._pixels(colors, generator, other)
        if image.mode == "L":
            return pil.fromarray(corrupted[..., 0])
        if image.mode == "RGBA":
            corrupted = np.concatenate([corrupted, pixels[..., 3:]], axis=2)
        return pil.fromarray(corrupted)


def _pixels_of(image: Tensor) -> Array:
    """Return a tensor (C, H, W) as an array (H, W, C) on the CPU."""
    if image.ndim != 3:
        raise ValueError(
            f"image must have shape (C, H, W), got {tuple(image.shape)}: one sample at a time"
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"image must be uint8 or floating, got {image.dtype}")
    plain = image.detach().cpu()
    if plain.dtype in (torch.float16, torch.bfloat16):
        plain = plain.float()
    return plain.movedim(0, -1).numpy()
