"""Pictures of any mode as 8-bit RGB; every failure is an error that says why."""

import re
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustfusion._optional import import_pillow

if TYPE_CHECKING:
    from PIL import Image

# Far above any photo of a social network. A file whose header claims more is refused before a
# pixel is decoded, because it would cost gigabytes.
MAX_PIXELS = 50_000_000
MAX_SIDE = 30_000

HASH_SIDE = 16  # the perceptual hash compares 16 x 16 pairs of neighboring pixels


class BadFileError(ValueError):
    """A file of a post cannot be used; the message is the reason, ``kind`` its kind.

    Example:
        >>> from robustfusion.datasets import BadFileError, read_image
        >>> try:
        ...     read_image("nothing.jpg")
        ... except BadFileError as error:
        ...     print(error, "-", error.kind)
        nothing.jpg is missing - missing
    """

    def __init__(self, reason: str, kind: str = "unreadable") -> None:
        super().__init__(reason)
        self.kind = kind


def decode(content: bytes, name: str, *, small: bool = False) -> "Image.Image":
    """Decode a picture to RGB as :func:`~robustfusion.datasets.read_image` does.

    With ``small`` it comes at an eighth of the size where the format allows it.
    """
    pillow = import_pillow()
    try:
        from PIL import ImageOps

        with pillow.open(BytesIO(content)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise BadFileError(
                    f"{name} claims {width} x {height} pixels, more than {MAX_PIXELS:,} "
                    f"or a side longer than {MAX_SIDE:,}"
                )
            if small:
                # JPEG decodes at an eighth of the size, still reading the file to its end.
                image.draft("RGB", (64, 64))
            image.load()
            with suppress(Exception):  # a broken EXIF block leaves the pixels whole
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except BadFileError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise BadFileError(f"{name} may be a decompression bomb: {error}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError ...
        # Pillow names the stream by its address in memory, which no two runs share.
        reason = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))
        raise BadFileError(f"{name} cannot be decoded: {reason}"[:200]) from error


def fingerprint(image: "Image.Image") -> NDArray[np.bool_] | None:
    """Return a perceptual hash: where the brightness of a 17 x 16 thumbnail rises to the right.

    It survives scaling and recompression. A nearly flat image has no such structure: None.
    """
    resample = import_pillow().Resampling.BOX
    small = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), resample), np.int16)
    if small.std() < 4:  # below 4 of 255 levels the comparisons would be noise
        return None
    rises: NDArray[np.bool_] = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return rises


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Convert a picture of any mode to 8-bit RGB, with white behind transparent parts."""
    pillow = import_pillow()
    if image.mode.startswith("I") or image.mode == "F":
        return pillow.fromarray(_eight_bits(image)).convert("RGB")  # type: ignore[no-any-return]
    clear = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if not clear:
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground: Image.Image = pillow.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _eight_bits(image: "Image.Image") -> NDArray[np.uint8]:
    """Scale values that Pillow would clip: 16 bit by its full range, others by their own."""
    values = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0
    # Until Pillow 11 a PNG of 16 bit had the mode of 32 bit integers.
    if not image.mode.startswith("I;16") and image.format != "PNG":
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 255:
            low, high = 0.0, 1.0 if image.mode == "F" and high <= 1 else 255.0
    scaled = np.rint((values - low) * (255 / max(high - low, 1e-12)))  # constant: black
    eight: NDArray[np.uint8] = scaled.clip(0, 255).astype(np.uint8)
    return eight
