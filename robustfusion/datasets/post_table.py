"""Posts of a table: a column of pictures, a column of texts, a column of labels."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from robustfusion._text import is_missing
from robustfusion.datasets.cells import image_of
from robustfusion.datasets.labels import usable_rows
from robustfusion.datasets.parquet import ParquetCell
from robustfusion.datasets.post_dataset import PostDataset, Stock
from robustfusion.datasets.post_files import EmptyCellError
from robustfusion.datasets.post_row import PostRow
from robustfusion.datasets.splits import ALIASES, Splits
from robustfusion.datasets.table_columns import TableColumns, as_number, holds_numbers
from robustfusion.datasets.tables import Row, near_equal, read_table
from robustfusion.datasets.targets import TargetReader
from robustfusion.datasets.text_gate import MISSING_WORDS
from robustfusion.tasks import Task


class PostTable(PostDataset):
    r"""Posts of your own: a CSV, TSV, JSON lines or Parquet file with one post a row.

    A cell that is empty (nothing, blanks, null, NaN) is a missing modality, and so is a picture
    that cannot be read; a row without both, without a label or with a repeated id is left out.
    All of it is listed by :meth:`report`. Every other column comes along in ``rows``; two of them
    are read: ``id``, unique names of the posts (else the numbers of the rows, from 1), and
    ``split``, with "train", "val" (or "dev") and "test".

    Args:
        path: the table.
        image_column: paths, relative to ``root``; a cell may also be a picture itself: its bytes,
            a mapping with them as "bytes", as the datasets library writes them, base64 or a
            ``data:`` URI. None for none.
        text_column: texts, at most 1 MB each. None for none.
        label_column: classes of any type. None reads a table without labels, to predict them:
            posts then are named by the numbers of their rows, so that no repeated id is left out.
        task: ``"multilabel"`` reads several labels: from one column, where ``label_sep`` stands
            between them or a cell is a list (a cell with nothing but the separator, or an empty
            list, has none), or from a list of columns with 0, 1 or a probability, where an empty
            cell or −1 is a label that is not known. ``"regression"`` reads numbers from one or
            several columns; an empty cell is not known. A row of which nothing is known is left
            out.
        label_sep: what stands between the labels of a cell.
        weight_column: weights of the posts in the training loss, 0 or more.
        table_columns: columns of numbers or words that are a third modality, "table"; see
            :class:`TableColumns`.
        root: folder of the pictures, by default that of the table.
        allow_outside: also open pictures outside of ``root``. Tables that others wrote may name
            any file of your machine.
        image_transform: as in :class:`PostDataset`.
        verify: as in :class:`PostDataset`.
        encoding: encoding of a CSV, TSV or JSON lines file that is neither UTF-8 nor starts with a
            byte order mark.
        missing_words: words that mean a missing value in this table, such as "nan" or "N/A",
            whatever their case. Without them the report warns of such words.
        stock: as in :class:`PostDataset`.

    Attributes:
        class_names: names of the classes, sorted, numbers by value; a subclass may set another
            order as a class attribute. With ``task="regression"`` names of the numbers.
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
        label_column: str | Sequence[str] | None = "label",
        task: Task = "multiclass",
        label_sep: str = "",
        weight_column: str | None = None,
        table_columns: TableColumns | None = None,
        root: str | os.PathLike[str] | None = None,
        allow_outside: bool = False,
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
        encoding: str | None = None,
        missing_words: Collection[str] = (),
        stock: Stock = "keep",
    ) -> None:
        self.path = Path(path)
        table = read_table(self.path, encoding)
        self.columns = table.columns
        names = [label_column] if isinstance(label_column, str) else [*(label_column or ())]
        columns: dict[str, str | None] = {"image": image_column, "text": text_column}
        columns |= {"label": names[0] if names else None, "weight": weight_column}
        used = [*columns.items(), *(("label", name) for name in names[1:])]
        for argument, name in used:
            if self.columns and name is not None and name not in self.columns:
                raise ValueError(
                    f"{argument}_column must be in {self.path.name}, which has the columns "
                    f"{list(self.columns)}, got {name!r}"
                )
        for name in table_columns.names if table_columns is not None else ():
            if name not in self.columns or name in (value for _, value in used):
                raise ValueError(
                    f"table_columns must be columns of {self.path.name} without another use, "
                    f"{list(self.columns)}, got {name!r}"
                )
        targets = TargetReader(names, task, label_sep) if names else None
        self.task = task if names else "multiclass"
        several = targets if task != "multiclass" else None
        reader = _RowReader(columns, missing_words, several)
        read = map(reader.read, count(1), table.rows)
        posts, problems = usable_rows(self.path, read, "row", reader.advice)
        class_names = getattr(type(self), "class_names", None)
        if several is not None:
            class_names, rows = several.finish([reader.targets[post_id] for post_id in posts])
            pairs = zip(posts.items(), rows, strict=True)
            posts = {post_id: post._replace(target=target) for (post_id, post), target in pairs}
        super().__init__(
            [*posts.values(), *problems],
            self.path.parent if root is None else root,
            class_names=class_names,
            on_bad="missing",
            image_transform=image_transform,
            verify=verify,
            allow_outside=allow_outside,
            stock=stock,
            table_columns=table_columns,
        )
        self._used = {name for _, name in used if name is not None} | {"id", "split"}
        self._used |= set(() if table_columns is None else table_columns.names)
        self.name = f"PostTable {self.path.name}"
        self._table = [(row, posts.get(str(number))) for number, row in enumerate(table.rows, 1)]
        self._gate = table.gate
        self._gate.warnings += reader.warnings()

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows behind the posts, with all their columns.

        A binary cell of a Parquet file is an object whose ``read()`` returns the bytes.
        """
        return [post.cells for post in self.posts]

    @property
    def unused_numbers(self) -> list[str]:
        """The columns that hold numbers and are used for nothing."""
        return [
            name
            for name in self.columns
            if name not in self._used and holds_numbers(row.get(name) for row in self.rows)
        ]

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
        row = {name: None if isinstance(c, ParquetCell) else c for name, c in row.items()}
        values, errors = self._read(post)
        if not values:
            return row, {}, f"neither image nor text: {'; '.join(map(str, errors.values()))}"
        reasons = [str(e) for e in errors.values() if not isinstance(e, EmptyCellError)]
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
        for name in ("train", "test"):
            if not parts[name]:
                raise ValueError(self._why_empty(name))
        return Splits(parts["train"], parts["val"], parts["test"], source=self.path.name)

    def _why_empty(self, name: str) -> str:
        """Return why no post is in a split."""
        names = [str(row.get("split")).lower() for row, _ in self._table if isinstance(row, dict)]
        count, reasons = names.count(name), [problem.reason for problem in self._problems]
        reason = f"; the first: {reasons[0]}" if count and reasons else ""
        return f"no post is in the split {name}: {count} rows name it and were left out{reason}"


class _RowReader:
    """Makes posts of rows, one after the other, and notes what may be a mistake in them."""

    def __init__(
        self,
        columns: Mapping[str, str | None],
        missing_words: Collection[str],
        target: TargetReader | None,
    ) -> None:
        self.columns = columns
        self.target = target  # None where the label is a class
        self.targets: dict[str, Any] = {}  # by id
        self.missing_words = {word.strip().casefold() for word in missing_words}
        self.ids: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.lists = 0  # texts that are lists or mappings
        self.words: Counter[tuple[str, str]] = Counter()  # by column and word

    def read(self, number: int, row: Row | str) -> tuple[int, str, PostRow, str | None]:
        """Return the number of a row, its id, its post, and why it cannot be used."""
        if isinstance(row, str):
            return number, str(number), PostRow(str(number), None, None, None), row
        column = self.columns["label"]
        labeled = column is not None
        several = self.target is not None
        label = None if several else self.cell(row, column)
        text = self.cell(row, self.columns["text"])
        target, refused = ((), "") if self.target is None else self.target.read(row)
        weight, heavy = self.weight(row)
        post_id = _text(self.cell(row, "id") if labeled and "id" in row else number)
        self.lists += isinstance(text, list | Mapping)
        reason = None
        if not post_id or post_id in self.ids:
            reason = "the id occurred before" if post_id else "the id is empty"
        elif refused or heavy:
            reason = refused or heavy
        elif labeled and not several and label is None:
            reason = f"there is no label (column {column!r})"
        elif isinstance(label, Mapping | list):
            kind = "a list" if isinstance(label, list) else "a mapping"
            reason = f"the column {column!r} holds {kind}, {str(label)[:40]}"
        else:
            self.ids[post_id] += 1
            self.targets[post_id] = target
            names = [_text(label)] if self.target is None else target if self.target.lists else ()
            for name in names:
                self.labels[name] += labeled
        post = PostRow(
            post_id,
            _text(label) if labeled and not several else None,
            image_of(self.cell(row, self.columns["image"])),
            None if text is None else str(text),
            origin=f"row {number}",
            cells=row,
            weight=weight,
        )
        return number, post_id, post, reason

    def advice(self, reason: str) -> str:
        """Return what to do where no row can be used for a reason."""
        if "holds a" in reason:
            return ": one class a row is read, task='multilabel' reads several"
        return ": label_column=None reads posts without labels" if "no label" in reason else ""

    def weight(self, row: Row) -> tuple[float, str]:
        """Return the weight of a row, and why it cannot be used."""
        column = self.columns["weight"]
        if column is None:
            return 1.0, ""
        weight = as_number(row.get(column))
        if weight >= 0:
            return weight, ""
        return 1.0, f"the column {column!r} holds no weight: {str(row.get(column))[:40]!r}"

    def cell(self, row: Row, column: str | None) -> Any:
        """Return a cell, None where it is missing."""
        value = row.get(column or "")
        if isinstance(value, ParquetCell) and column != self.columns["image"]:
            value = value.read()
            value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if column is None or is_missing(value):
            return None
        if isinstance(value, str) and len(value) < 20:
            word = value.strip().casefold()
            if word in self.missing_words:
                return None
            if word in MISSING_WORDS:
                self.words[column, value.strip()] += 1
        return value

    def warnings(self) -> list[str]:
        """Return what may be a mistake in the rows."""
        warnings = [
            f"the column {column!r} holds the word {word!r} {n} times, which counts as a value: "
            f'missing_words=["{word}"] makes it a missing one'
            for (column, word), n in sorted(self.words.items())
        ]
        if self.lists:
            warnings.append(f"{self.lists} texts are lists or mappings, read as they are written")
        for name, values in (("ids", self.ids), ("labels", self.labels)):
            groups = near_equal(values)
            more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
            if groups:
                warnings.append(
                    f"{name} differ only by case, blanks or '.0': {'; '.join(groups[:5])}{more}"
                )
        return warnings


def _text(value: Any) -> str:
    """Return the name of an id or a label; 2.0, which a table with gaps makes of 2, is "2"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()
