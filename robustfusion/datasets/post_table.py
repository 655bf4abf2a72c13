"""Posts of a table: a column of pictures, a column of texts, a column of labels."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustfusion.datasets.labels import LabelledPost, usable_rows
from robustfusion.datasets.pictures import BadFileError
from robustfusion.datasets.post_dataset import PostDataset
from robustfusion.datasets.reading import LIMITS, check_size
from robustfusion.datasets.report import Problem
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
        image_column: of paths, from ``root``; a cell may also be the bytes of a picture, or a
            mapping with them as "bytes", as the datasets library writes them.
        text_column: of texts, at most 1 MB each.
        label_column: of classes of any type.
        root: folder of the pictures, by default that of the table.
        allow_outside: also open pictures outside of ``root``. Tables that others wrote may name
            any file of your machine.
        image_transform: as of :class:`PostDataset`.

    Attributes:
        class_names: names of the classes, sorted, numbers by value; a subclass may say another
            order.
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

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_column: str = "image",
        text_column: str = "text",
        label_column: str = "label",
        root: str | os.PathLike[str] | None = None,
        allow_outside: bool = False,
        image_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.columns: tuple[str, ...] = ()
        self._column = {"image": image_column, "text": text_column, "label": label_column}
        self._cells: dict[str, tuple[int, Row]] = {}
        super().__init__(
            self.path.parent if root is None else root,
            on_bad="missing",
            image_transform=image_transform,
            allow_outside=allow_outside,
        )

    @property
    def rows(self) -> list[Row]:
        """The rows behind the posts, with all their columns."""
        return [self._cells[post_id][1] for post_id in self.ids]

    @property
    def splits(self) -> Splits | None:
        """What the column ``split`` says of the posts that are here, None without the column."""
        if "split" not in self.columns:
            return None
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for post_id, row in zip(self.ids, self.rows, strict=True):
            if not is_missing(row.get("split")):
                said = str(row["split"]).strip().lower()
                name = ALIASES.get(said, said)
                if name not in parts:
                    raise ValueError(
                        f"split must be train, val or test, {self._name(post_id, 'post')} has "
                        f"{str(row['split'])[:40]!r}"
                    )
                parts[name].append(post_id)
        return Splits(**parts, source=self.path.name)

    def _data_folder(self) -> Path:
        return self.root

    def _read_rows(self) -> tuple[list[LabelledPost], list[Problem]]:
        rows, self.columns = read_table(self.path)
        for argument, column in self._column.items():
            if self.columns and column not in self.columns:
                raise ValueError(
                    f"{argument}_column must be in {self.path.name}, which has the columns "
                    f"{list(self.columns)}, got {column!r}"
                )
        labels, problems = usable_rows(self.path, (self._read_row(*row) for row in rows), "row")
        names = set(labels.values())
        if not hasattr(type(self), "class_names"):
            self.class_names = _in_order(names)
        elif names - set(self.class_names):
            raise ValueError(f"class_names must hold all labels, {sorted(names)} are in the table")
        return [LabelledPost(i, label, label, label) for i, label in labels.items()], problems

    def _read_row(self, number: int, row: Row | str) -> tuple[int, str, str, str | None]:
        """The number of a row, its id, its label, and why it cannot be used."""
        if isinstance(row, str):
            return number, str(number), "", row
        cell, label = row.get("id", number), row.get(self._column["label"])
        post_id = "" if is_missing(cell) else _text(cell)
        reason = None
        if not post_id or post_id in self._cells:
            reason = "the id occurred before" if post_id else "the id is empty"
        elif is_missing(label) or isinstance(label, Mapping | list):
            reason = "there is no label"
        else:
            self._cells[post_id] = (number, row)
        return number, post_id, _text(label), reason

    def _name(self, post_id: str, modality: str) -> str:
        return f"the {modality} of row {self._cells[post_id][0]}"

    def _content(self, post_id: str, modality: str) -> bytes:
        cell = self._cells[post_id][1].get(self._column[modality])
        name = self._name(post_id, modality)
        if is_missing(cell):
            raise BadFileError(f"{name} is an empty cell", "missing")
        if modality == "text":
            cell = str(cell).encode("utf-8", "replace")
        elif isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            check_size(cell, LIMITS[modality], name)
            return cell
        if not isinstance(cell, str):
            raise BadFileError(f"{name} must be a path or bytes, got {type(cell).__name__}")
        return self._file(cell.strip(), modality)

    def _unlabelled(self) -> tuple[str, ...]:
        return ()

    def _title(self) -> str:
        return f"PostTable {self.path.name}"


def _text(value: Any) -> str:
    """The name of an id or a label: 2.0, which a table with holes makes of 2, is 2."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _in_order(names: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))
