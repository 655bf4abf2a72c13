"""The images and texts of posts: files below a folder, or cells of a table."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from robustfusion._text import clean_text
from robustfusion.datasets.cells import decode_inline, explain_missing, image_of, shorten
from robustfusion.datasets.parquet import ParquetCell
from robustfusion.datasets.pictures import BadFileError, decode
from robustfusion.datasets.post_row import PostRow
from robustfusion.datasets.reading import (
    LIMITS,
    FileInfo,
    check_size,
    inspect_image,
    inspect_text,
    read_bytes,
)

MODALITIES = ("image", "text")
Known = dict[str, FileInfo | BadFileError]  # by modality, as far as it was looked at


class EmptyCellError(BadFileError):
    """A post lacks a modality."""


class PostFiles:
    """Reads the images and texts of posts; what cannot be read is a ``BadFileError``.

    Args:
        folder: paths start there.
        allow_outside: also follow paths and links to files outside of ``folder``.
    """

    def __init__(self, folder: Path, *, allow_outside: bool) -> None:
        self.folder, self.allow_outside = folder, allow_outside
        self._listings: dict[str, dict[str, str]] = {}  # names by folder, for hints

    def load(self, post: PostRow, modality: str) -> Any:
        """Return the decoded image or the text of a post."""
        content, name = self.content(post, modality), post.describe(modality)
        return inspect_text(content, name).text if modality == "text" else decode(content, name)

    def content(self, post: PostRow, modality: str) -> bytes:
        """Return the bytes of one modality of a post."""
        cell, name = getattr(post, modality), post.describe(modality)
        if isinstance(cell, ParquetCell):
            cell = image_of(cell.read())
        if cell is None:
            raise EmptyCellError(f"{name} is an empty cell", "missing")
        if isinstance(cell, PurePath):
            within = None if self.allow_outside else self.folder
            try:
                return read_bytes(self.folder / cell, LIMITS[modality], within)
            except BadFileError as error:
                if error.kind == "missing":
                    raise self._missing(cell) from error
                raise
        if isinstance(cell, str):
            is_text = modality == "text"
            cell = clean_text(cell).encode() if is_text else decode_inline(cell, name)
        if not isinstance(cell, bytes):
            raise BadFileError(f"{name} must be a path or bytes, got {type(cell).__name__}")
        check_size(cell, LIMITS[modality], name)
        return cell

    def inspect_all(self, posts: Mapping[str, PostRow]) -> dict[str, Known]:
        """Read and decode the image and the text of each post."""
        # Decoding and reading release the interpreter: threads halve the time on two cores.
        with ThreadPoolExecutor() as pool:
            return dict(zip(posts, pool.map(self.inspect, posts.values()), strict=True))

    def find_absent(self, posts: Mapping[str, PostRow]) -> dict[str, Known]:
        """Return an error for each image and text that is absent, without opening a file."""
        known: dict[str, Known] = {}
        names = {entry.name for entry in os.scandir(self.folder)}
        for post in posts.values():
            known[post.id] = {}
            for modality in MODALITIES:
                cell, label = getattr(post, modality), post.describe(modality)
                if cell is None:
                    known[post.id][modality] = EmptyCellError(
                        f"{label} is an empty cell", "missing"
                    )
                elif (
                    isinstance(cell, PurePath) and not cell.parent.parts and cell.name not in names
                ):
                    known[post.id][modality] = self._missing(cell)
        return known

    def inspect(self, post: PostRow) -> Known:
        """Read and decode the image and the text of a post."""
        known: Known = {}
        for modality, inspect in (("text", inspect_text), ("image", inspect_image)):
            try:
                known[modality] = inspect(self.content(post, modality), post.describe(modality))
            except BadFileError as error:
                known[modality] = error
        return known

    def _missing(self, cell: PurePath) -> BadFileError:
        hint = explain_missing(self.folder, cell, self._listings)
        return BadFileError(f"{shorten(str(cell))} is missing{hint}", "missing")
