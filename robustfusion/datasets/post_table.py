"""Posts of a table: a column of pictures, a column of texts, a column of labels."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustfusion.datasets.labels import usable_rows
from robustfusion.datasets.post_dataset import PostDataset, PostRow
from robustfusion.datasets.splits import ALIASES, Splits
from robustfusion.datasets.tables import Row, read_table
from robustfusion.disruption.data import is_missing


class PostTable(PostDataset):
    r"""Posts of your own: a CSV, TSV, JSON lines or Parquet file with one post a row.

    A cell that is empty (nothing, blanks, null, NaN) is a missing modality, and so is a picture
    that cannot be read; a row without both, without a label or with a repeated id is left out.
    All of it is listed by :meth:`report`. Every other column comes along in ``rows``; two of them
    are read: ``id``, unique names of the posts (else the numbers of the rows, from 1), and
    ``split``, with "train", "val" (or "dev") and "test".

    Args:
        path: the table.
        image_column: paths, relative to ``root``; a cell may also be the bytes of a picture, or a
            mapping with them as "bytes", as the datasets library writes them. None for none.
        text_column: texts, at most 1 MB each. None for none.
        label_column: classes of any type. None reads a table without labels, to predict them:
            posts then are named by the numbers of their rows, so that no repeated id is left out.
        root: folder of the pictures, by default that of the table.
        allow_outside: also open pictures outside of ``root``. Tables that others wrote may name
            any file of your machine.
        image_transform: as in :class:`PostDataset`.
        verify: as in :class:`PostDataset`.

    Attributes:
        class_names: names of the classes, sorted, numbers by value; a subclass may set another
            order as a class attribute.
        columns: names of all columns.

    Raises:
        FileNotFoundError: without the table.
        ValueError: for a table that cannot be read, lacks a column, or has no usable row.
        ImportError: without Pillow, or for Parquet without pyarrow.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import PostTable
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8), "navy").save(root / "sea.png")
        >>> _ = (root / "posts.csv").write_text(
        ...     "photo,caption,mood,user\nsea.png,what a day,good,ann\n,rain again,bad,bob\n"
        ... )
        >>> names = {"image_column": "photo", "text_column": "caption", "label_column": "mood"}
        >>> posts = PostTable(root / "posts.csv", **names)
        >>> posts.class_names, posts.labels, posts.available["image"]
        (('bad', 'good'), [1, 0], tensor([ True, False]))
        >>> posts[0]["inputs"]["text"], posts.rows[1]["user"]
        ('what a day', 'bob')
    """

    path: Path

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_column: str | None = "image",
        text_column: str | None = "text",
        label_column: str | None = "label",
        root: str | os.PathLike[str] | None = None,
        allow_outside: bool = False,
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
    ) -> None:
        self.path = Path(path)
        rows, self.columns = read_table(self.path)
        column = {"image": image_column, "text": text_column, "label": label_column}
        for argument, name in column.items():
            if self.columns and name is not None and name not in self.columns:
                raise ValueError(
                    f"{argument}_column must be in {self.path.name}, which has the columns "
                    f"{list(self.columns)}, got {name!r}"
                )
        used: set[str] = set()
        read = (_read_row(number, row, column, used) for number, row in rows)
        posts, problems = usable_rows(self.path, read, "row")
        super().__init__(
            [*posts.values(), *problems],
            self.path.parent if root is None else root,
            class_names=getattr(type(self), "class_names", None),
            on_bad="missing",
            image_transform=image_transform,
            verify=verify,
            allow_outside=allow_outside,
        )
        self.name = f"PostTable {self.path.name}"
        self._table = [(row, posts.get(str(number))) for number, row in rows]

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows behind the posts, with all their columns."""
        return [post.cells for post in self.posts]

    @property
    def row_count(self) -> int:
        """Number of rows of the table, those included that are no posts."""
        return len(self._table)

    def read_row(self, number: int) -> tuple[Mapping[str, Any], dict[str, Any], str]:
        """Read a row of a table without labels, numbered from 1, whether it is a post or not.

        Returns:
            Its cells by column, the modalities that can be read, and what is wrong with it, "" for
            nothing. An empty cell is not wrong, but a row without image and text is.
        """
        row, post = self._table[number - 1]
        if isinstance(row, str) or post is None:
            return {}, {}, str(row)
        values, errors = self._read(post)
        if not values:
            return row, {}, f"neither image nor text: {'; '.join(map(str, errors.values()))}"
        reasons = [str(e) for name, e in errors.items() if getattr(post, name) is not None]
        return row, values, "; ".join(reasons)

    @property
    def splits(self) -> Splits | None:
        """The splits that the column ``split`` names, None without the column."""
        if "split" not in self.columns:
            return None
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for post in self.posts:
            cell = post.cells.get("split")
            if not is_missing(cell):
                name = str(cell).strip().lower()
                name = ALIASES.get(name, name)
                if name not in parts:
                    raise ValueError(
                        f"split must be train, val or test, {post.origin} has {str(cell)[:40]!r}"
                    )
                parts[name].append(post.id)
        return Splits(**parts, source=self.path.name)


def _read_row(
    number: int, row: Row | str, column: Mapping[str, str | None], used: set[str]
) -> tuple[int, str, PostRow, str | None]:
    """Return the number of a row, its id, its post, and why it cannot be used."""
    if isinstance(row, str):
        return number, str(number), PostRow(str(number), None, None, None), row
    labeled = column["label"] is not None
    cell = row.get("id", number) if labeled else number
    label = row.get(column["label"] or "")
    post_id = "" if is_missing(cell) else _text(cell)
    reason = None
    if not post_id or post_id in used:
        reason = "the id occurred before" if post_id else "the id is empty"
    elif labeled and (is_missing(label) or isinstance(label, Mapping | list)):
        reason = "there is no label"
    else:
        used.add(post_id)
    post = PostRow(
        post_id,
        _text(label) if labeled else None,
        _image(row.get(column["image"] or "")),
        _cell(row.get(column["text"] or "")),
        origin=f"row {number}",
        cells=row,
    )
    return number, post_id, post, reason


def _image(cell: Any) -> Any:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if is_missing(cell):
        return None
    return Path(cell.strip()) if isinstance(cell, str) else cell


def _cell(cell: Any) -> str | None:
    return None if is_missing(cell) else str(cell)


def _text(value: Any) -> str:
    """Return the name of an id or a label; 2.0, which a table with gaps makes of 2, is "2"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
