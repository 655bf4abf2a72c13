"""Files of a post, which may be damaged or hostile: every failure is an error that says why."""

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustfusion._text import clean_text
from robustfusion.datasets.cells import shorten
from robustfusion.datasets.pictures import BadFileError, decode, fingerprint
from robustfusion.datasets.text_gate import encoding_of

if TYPE_CHECKING:
    from PIL import Image

# The largest files of a post, far above what a social network takes.
MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 64_000_000, 1_000_000
LIMITS = {"image": MAX_IMAGE_BYTES, "text": MAX_TEXT_BYTES}


class FileInfo(NamedTuple):
    """Facts about a text or an image after one reading.

    ``fingerprint`` is ``(256,)`` bool, or None for an image too flat to be compared.
    """

    digest: str
    text: str = ""
    lossy: bool = False  # some bytes of the text are not UTF-8
    changed: bool = False  # control characters of the text were left out
    fingerprint: NDArray[np.bool_] | None = None
    narrow: bool = False  # the picture uses less than an eighth of its range of brightness


def read_bytes(path: Path, limit: int, within: Path | None = None) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes, inside ``within`` if given.

    Anything else is a ``BadFileError``, which does not say whether a file outside exists.
    """
    name = shorten(path.name)
    if within is not None and path.is_relative_to(within):
        name = shorten(
            str(path.relative_to(within))
        )  # tells in which folder the file was expected
    try:
        if within is not None:
            path = _confined(path, within)
        # Check before opening: to open a device may have effects, and a pipe waits for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFileError(f"{name} cannot be read: it is no regular file")
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadFileError(f"{name} cannot be read: it is no regular file")
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise BadFileError(f"{name} is missing", "missing") from None
    except OSError as error:
        raise BadFileError(f"{name} cannot be read: {error.strerror}") from error
    except (RuntimeError, ValueError) as error:  # a loop of links, a name with a NUL
        if isinstance(error, BadFileError):
            raise
        raise BadFileError(f"{name!r} cannot be read: {error}") from error
    if not content:
        raise BadFileError(f"{name} is empty (0 bytes)", "empty")
    check_size(content, limit, name)
    return content


def _confined(path: Path, within: Path) -> Path:
    """Return the file that a path names, which must lie in a folder."""
    top, name = Path(os.path.realpath(within)), path.name
    if path.absolute().is_relative_to(within.absolute()):
        path = top / path.absolute().relative_to(within.absolute())
    # Resolve ".." as text first: "../X/../data/a.jpg", or a link outside that leads back in,
    # would reveal by success or failure whether X exists.
    path = Path(os.path.abspath(path))
    real = Path(os.path.realpath(path))
    if not (path.is_relative_to(top) and real.is_relative_to(top)):
        raise BadFileError(f"{name} lies outside of the data folder")
    return real


def check_size(content: bytes, limit: int, name: str) -> None:
    """Raise ``BadFileError`` where a content is larger than ``limit`` bytes."""
    if len(content) > limit:
        raise BadFileError(f"{name} has more than {limit // 1_000_000} MB")


def inspect_text(content: bytes, name: str) -> FileInfo:
    """Read a text as UTF-8 without invalid bytes; a text of blanks is a bad file.

    A byte order mark may say UTF-16 instead. Control characters are left out.
    """
    encoding = encoding_of(content)
    decoded = content.decode(encoding, errors="ignore")
    text = clean_text(decoded)
    changed, text = text != decoded, text.replace("\r\n", "\n").strip()
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise BadFileError(f"{name} holds no text ({len(content)} bytes)", "empty")
    lossy = content.decode(encoding, "replace") != decoded
    return FileInfo(digest(content), text, lossy, changed)


def inspect_image(content: bytes, name: str) -> FileInfo:
    """Decode an image once, at small size where the format allows it, for its digest and hash."""
    gray = decode(content, name, small=True).convert("L")
    levels = np.ptp(np.asarray(gray))
    narrow = bool(0 < levels < 32)  # a constant picture has no range to scale
    return FileInfo(digest(content), fingerprint=fingerprint(gray), narrow=narrow)


def read_image(
    path: str | os.PathLike[str], *, within: str | os.PathLike[str] | None = None
) -> "Image.Image":
    """Read a picture as RGB, upright and in 8 bit.

    The EXIF orientation is applied, and transparent parts show a white ground. 16-bit values are
    scaled by their full range, floats in [0, 1] by theirs, other integers and floats above 255 or
    below 0 from their smallest value to their greatest. An animation gives its first frame.

    Args:
        path: a regular file of at most 64 MB.
        within: the folder that the file must lie in, also after links are followed; for paths
            that others wrote. None allows any folder.

    Raises:
        BadFileError: where it is missing, outside, truncated, no image, or too large to be a
            photo (50 million pixels); the message is the reason. It does not tell whether a file
            outside of ``within`` exists.
        ImportError: without Pillow.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import read_image
        >>> path = Path(tempfile.mkdtemp()) / "clear.png"
        >>> Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(path)
        >>> read_image(path).getpixel((0, 0))
        (255, 255, 255)
    """
    file, folder = Path(path), None if within is None else Path(within)
    return decode(read_bytes(file, MAX_IMAGE_BYTES, folder), file.name)


def digest(content: bytes) -> str:
    """Return the SHA-256 of a content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
