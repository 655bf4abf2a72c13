"""Files of a post, read with distrust: every failure is a reason in words, never a surprise."""

import hashlib
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

# Far above any photo of a social network. A file whose header claims more is refused before a
# pixel is decoded: it would cost gigabytes, or more still once resized by its shorter side.
MAX_PIXELS = 50_000_000
MAX_SIDE = 30_000

HASH_SIDE = 16  # of the perceptual hash: 16 x 16 comparisons of neighbouring pixels


class BadFileError(ValueError):
    """A file of a post that cannot be used; the message is the reason."""


class TextFacts(NamedTuple):
    """What one reading of a text file tells: its text, its digest, whether bytes were lost."""

    text: str
    digest: str
    lossy: bool


class ImageFacts(NamedTuple):
    """What one decoding of an image tells: its digest and its perceptual hash.

    ``fingerprint`` is ``(256,)`` bool, or None for an image too flat to be told from others.
    """

    digest: str
    fingerprint: NDArray[np.bool_] | None


def import_pillow() -> Any:
    """Return ``PIL.Image``, or say which extra brings it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('images need Pillow: pip install "robustfusion[data]"') from error
    return Image


def read_bytes(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        BadFileError: where it is missing, empty or unreadable.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadFileError(f"{path.name} is missing") from None
    except OSError as error:
        raise BadFileError(f"{path.name} cannot be read: {error.strerror}") from error
    if not content:
        raise BadFileError(f"{path.name} is empty (0 bytes)")
    return content


def read_text(path: Path) -> TextFacts:
    """Read a text as UTF-8, with the bytes that are not UTF-8 left out.

    Raises:
        BadFileError: where it is missing, or nothing but blanks and control characters.
    """
    content = read_bytes(path)
    text = content.decode("utf-8-sig", errors="ignore").replace("\r\n", "\n").strip()
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise BadFileError(f"{path.name} holds no text ({len(content)} bytes)")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return TextFacts(text, digest(content), lossy=True)
    return TextFacts(text, digest(content), lossy=False)


def read_image(path: Path) -> "Image.Image":
    """Decode an image to RGB.

    Raises:
        BadFileError: where it is missing, truncated, no image, or too large to be a photo.
    """
    return _decode(read_bytes(path), path.name, small=False)


def inspect_image(path: Path) -> ImageFacts:
    """Decode an image once, small where the format allows it, for its digest and hash.

    Raises:
        BadFileError: as :func:`read_image`.
    """
    content = read_bytes(path)
    return ImageFacts(digest(content), fingerprint(_decode(content, path.name, small=True)))


def digest(content: bytes) -> str:
    """Return the SHA-256 of a content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def fingerprint(image: "Image.Image") -> NDArray[np.bool_] | None:
    """Return a perceptual hash: where the brightness of a 17 x 16 thumbnail rises to the right.

    It survives scaling and recompression. A nearly flat image has no such structure: None.
    """
    resample = import_pillow().Resampling.BOX
    small = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), resample), np.int16)
    if small.std() < 4:
        return None
    rises: NDArray[np.bool_] = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return rises


def _decode(content: bytes, name: str, *, small: bool) -> "Image.Image":
    pillow = import_pillow()
    try:
        image: Image.Image
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
            # Straight to RGB, Pillow warns of palettes with transparency and may garble them.
            if image.mode == "P" or "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except BadFileError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise BadFileError(f"{name} may be a decompression bomb: {error}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError ...
        # Pillow names the stream by its address in memory, which no two runs share.
        reason = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))
        raise BadFileError(f"{name} cannot be decoded: {reason}"[:200]) from error
