"""Pictures in cells of a table: base64, data URIs, and paths that nearly name a file."""

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

from robustfusion._text import is_missing
from robustfusion.datasets.pictures import BadFileError

# The first letters of a JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF file in base64.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "SUkqA", "TU0AK", "AAAA")
_URL = re.compile(r"[a-z][a-z0-9+.-]{1,15}://", re.IGNORECASE)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


def is_inline(cell: str) -> bool:
    """Tell whether a cell is no path: a picture itself, a URL, or a list."""
    long = len(cell) > 64 and (cell.startswith(_BASE64) or len(cell) > 4096)
    list_or_bytes = cell[:1] + cell[-1:] == "[]" or cell.startswith(("b'\\", 'b"\\'))
    return long or list_or_bytes or cell[:5].lower() == "data:" or bool(_URL.match(cell))


def image_of(cell: Any) -> Any:
    """Return the image of a cell: a ``Path``, bytes, or text that is no path; None for nothing.

    A :class:`ParquetCell` stays one.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if is_missing(cell):
        return None
    if isinstance(cell, str):
        cell = cell.strip()
        return cell if is_inline(cell) else Path(cell)
    return cell


def decode_inline(cell: str, name: str) -> bytes:
    """Return the bytes of a picture in a cell; what is none is a ``BadFileError``."""
    head, comma, body = cell.partition(",")
    if head[:5].lower() == "data:" and comma:
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(body)
        cell = unquote(body)
    elif _URL.match(cell):
        raise BadFileError(f"{name} is a URL, {cell[:80]}: download it and give its path")
    elif cell[:1] + cell[-1:] == "[]":
        raise BadFileError(f"{name} is a list, {cell[:60]}: a row holds one picture")
    elif cell[:1] == "b":
        raise BadFileError(f"{name} is bytes written as text, {cell[:20]}: give base64 or a path")
    letters = "".join(cell.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadFileError(f"{name} is neither a path nor base64: {cell[:40]}...") from error


def shorten(name: str) -> str:
    """Return a name that fits into a message."""
    return name if len(name) <= 120 else f"{name[:80]}...{name[-30:]}"


def explain_missing(folder: Path, cell: PurePath, listings: dict[str, dict[str, str]]) -> str:
    """Say which file or folder a path that names none nearly names, "" for none.

    Args:
        folder: the folder of the files; nothing outside of it is looked at.
        cell: a path from there.
        listings: names by folder, filled and used again by this function.
    """
    text = str(cell)
    swapped = [
        text[: -len(s)] + o for s in _SUFFIXES if text.lower().endswith(s) for o in _SUFFIXES
    ]
    slashes = text.replace("\\", "/")
    for guess in (
        *(text, slashes, unquote(text), unquote(slashes), quote(text), text.strip("\"' ")),
        *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")),
        *(PurePath(slashes).name, *swapped),
    ):
        name = _find(folder, PurePath(guess), listings)
        if name is not None and name != text:
            return f"; {name} exists"
    parent = PurePath()
    for part in cell.parts[:-1]:
        parent /= part
        if ".." not in cell.parts and not cell.is_absolute() and not (folder / parent).is_dir():
            return f": there is no folder {shorten(str(parent))!r}"
    return ""


def _find(folder: Path, path: PurePath, listings: dict[str, dict[str, str]]) -> str | None:
    """Return the path of a file, found whatever the case of its letters, from the folder."""
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    root, names = os.path.realpath(folder), list[str]()
    for part in path.parts:
        directory = os.path.realpath(os.path.join(root, *names))
        if os.path.commonpath([root, directory]) != root or not os.path.isdir(directory):
            return None  # a link that leads out, or no folder
        if directory not in listings:
            listings[directory] = {name.casefold(): name for name in sorted(os.listdir(directory))}
        if part.casefold() not in listings[directory]:
            return None
        names.append(listings[directory][part.casefold()])
    return os.path.join(*names)
