"""Image-text posts: rows that say where each picture and text is, read when they are asked for."""

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustfusion._optional import import_pillow
from robustfusion.datasets.duplicates import connect, find_duplicates, normalize_text
from robustfusion.datasets.pictures import BadFileError
from robustfusion.datasets.post_files import MODALITIES, EmptyCellError, Known, PostFiles
from robustfusion.datasets.post_row import PostRow, Sample
from robustfusion.datasets.reading import FileInfo, digest
from robustfusion.datasets.report import (
    DatasetReport,
    DuplicateKind,
    Duplicates,
    Problem,
    ProblemKind,
)
from robustfusion.datasets.splits import Splits
from robustfusion.datasets.table_columns import TableColumns
from robustfusion.datasets.targets import bins, rarest
from robustfusion.datasets.text_gate import Gate
from robustfusion.tasks import Task

OnBad = Literal["skip", "raise", "missing"]
Stock = Literal["keep", "missing"]
PLACEHOLDER_SIDE = 64  # pixels of the black image that stands for a missing one


class PostDataset(Dataset[Sample]):
    r"""Posts of one image and one text, read when they are asked for.

    A reader of your own makes a :class:`PostRow` of each usable row of a label file and a
    :class:`Problem` of each other; the data set then looks at the files and lists each one that
    cannot be used with its reason, see :meth:`report`. Only regular files inside ``root`` are
    opened: texts of at most 1 MB, pictures as by :func:`~robustfusion.datasets.read_image`.

    Args:
        rows: the posts, with unique ids, and the problems of rows that are none.
        root: folder that the paths of images and texts are relative to.
        class_names: label names in the order of the classes; by default those of the rows,
            sorted, numbers by value.
        on_bad: ``"skip"`` a post whose text is missing or blank or whose image is missing or
            cannot be decoded, ``"raise"`` an error, or take that modality as ``"missing"`` (a post
            with neither is skipped all the same). Each is in the report.
        image_transform: applied to the decoded RGB image, and to the black one in the place of a
            missing image.
        verify: read and decode every file once at the start. Otherwise the constructor only looks
            whether files exist; a bad file then raises, or counts as missing, when its post is
            asked for.
        allow_outside: also follow paths and links to files outside of ``root``.
        table_columns: columns of the rows' ``cells`` that make the modality "table"; fit them to
            the training rows before a post is asked for.
        stock: ``"missing"`` takes an image or a text under many posts that differ otherwise, such
            as a "no picture" image, for a missing one; ``"keep"`` only reports it.

    Attributes:
        posts: the rows behind the samples.
        class_names: names of the classes; empty where no post has a label.
        name: name of the data set in reports.
        modalities: names of the inputs: "image" and "text", and "table" in a table with columns.
        task: what the targets are, as in :mod:`robustfusion.tasks`; "multiclass" unless a table
            says otherwise.
        path: the label file, None where there is none.

    Raises:
        FileNotFoundError: without the folder.
        ValueError: for a bad row with ``on_bad="raise"``, repeated ids, or a label that
            ``class_names`` lacks.
        ImportError: without Pillow.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import PostDataset, PostRow
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(root / "7.jpg")
        >>> rows = [PostRow("7", "yes", Path("7.jpg"), "sunny")]
        >>> rows += [PostRow("8", "no", Path("8.jpg"), "rain again")]
        >>> posts = PostDataset(rows, root)
        >>> posts[0]["inputs"]["text"], posts[0]["label"]
        ('sunny', 1)
        >>> [problem.reason for problem in posts.report().problems]
        ['8.jpg is missing']
    """

    class_names: tuple[str, ...]
    posts: list[PostRow]
    path: Path | None = None
    task: Task = "multiclass"

    def __init__(
        self,
        rows: Iterable[PostRow | Problem],
        root: str | os.PathLike[str],
        *,
        class_names: Sequence[str] | None = None,
        on_bad: OnBad = "skip",
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
        allow_outside: bool = False,
        stock: Stock = "keep",
        table_columns: TableColumns | None = None,
    ) -> None:
        if stock not in ("keep", "missing") or (stock == "missing" and not verify):
            raise ValueError(f'stock must be "keep", or "missing" with verify=True, got {stock!r}')
        if on_bad not in ("skip", "raise", "missing"):
            raise ValueError(f'on_bad must be "skip", "raise" or "missing", got {on_bad!r}')
        import_pillow()
        self.name = type(self).__name__
        self.root = self.folder = Path(root)
        self.on_bad: OnBad = on_bad
        self.image_transform = image_transform
        self.verify = verify
        self.allow_outside = allow_outside
        if not self.folder.is_dir():
            raise FileNotFoundError(f"root must be a folder, got {self.folder}")
        self.table_columns = table_columns
        self.modalities = MODALITIES if table_columns is None else (*MODALITIES, "table")
        self._files = PostFiles(self.folder, allow_outside=allow_outside)
        rows = list(rows)
        posts = [row for row in rows if isinstance(row, PostRow)]
        self._row_count = len(rows)
        classes = [post for post in posts if post.target is None]
        self.class_names = _order_classes(classes, class_names)
        inspect = self._files.inspect_all if verify else self._files.find_absent
        self._inspected = inspect({post.id: post for post in posts})
        for post in posts:
            self._inspected[post.id] |= self._inspect_cells(post)
        if len(self._inspected) < len(posts):
            raise ValueError(f"ids must be unique, {len(posts)} rows have {len(self._inspected)}")
        if stock == "missing":
            self._drop_stock()
        self.posts, self._problems = self._select(rows)
        self._index = {post.id: index for index, post in enumerate(self.posts)}
        self._selected = False
        self._gate = Gate()

    @property
    def ids(self) -> list[str]:
        """The ids, in the order of the label file."""
        return [post.id for post in self.posts]

    @property
    def labels(self) -> list[Any]:
        """The labels: positions in ``class_names``; ``ValueError`` where a post has none.

        With several labels, or numbers, those of each post in a list, NaN where not known.
        """
        if self.task != "multiclass":
            return [list(post.target or ()) for post in self.posts]
        names = [post.label_name for post in self.posts]
        if None in names:
            raise ValueError(f"{names.count(None)} of {len(names)} posts have no label")
        return [self.class_names.index(name) for name in names if name is not None]

    @property
    def strata(self) -> list[int]:
        """The groups that a split balances: the class, or the rarest label of a post.

        For numbers, the fifth of all posts in which the first number of the post lies.
        """
        if self.task == "multiclass":
            return cast("list[int]", self.labels)
        targets = [post.target or () for post in self.posts]
        return rarest(targets) if self.task == "multilabel" else bins(targets)

    @property
    def weights(self) -> list[float]:
        """The weight of each post in the training loss, 1 without a column of weights."""
        return [post.weight for post in self.posts]

    @property
    def available(self) -> dict[str, Tensor]:
        """Availability of each modality, bool (N,); without ``verify`` as far as it is known."""
        return {
            modality: torch.tensor([not self._is_bad(i, modality) for i in self.ids]).bool()
            for modality in self.modalities
        }

    def __len__(self) -> int:
        return len(self.posts)

    def __getitem__(self, index: int) -> Sample:
        post = self.posts[index]
        values, errors = self.read(index)
        for name, error in errors.items():
            if self.on_bad != "missing" and not self._is_bad(post.id, name):
                raise BadFileError(
                    f"post {post.id!r}: {error}; verify=True finds such posts at the start"
                ) from error
        if len(errors) == len(self.modalities):
            raise BadFileError(f"post {post.id!r}: neither image nor text can be read")
        black = import_pillow().new("RGB", (PLACEHOLDER_SIDE, PLACEHOLDER_SIDE))
        inputs = {"image": values.get("image", black), "text": values.get("text", "")}
        if self.table_columns is not None:
            blank = torch.zeros(self.table_columns.dim)
            inputs["table"] = values.get("table", blank)
        if self.image_transform is not None:
            inputs["image"] = self.image_transform(inputs["image"])
        available = {name: name not in errors for name in self.modalities}
        sample = Sample(id=post.id, inputs=inputs, available=available)
        if post.target is not None:
            sample["label"] = torch.tensor(post.target)
        elif post.label_name is not None:
            sample["label"] = self.class_names.index(post.label_name)
        if post.label_name is not None:
            sample["label_name"] = post.label_name
        return sample

    def read(self, index: int) -> tuple[dict[str, Any], dict[str, BadFileError]]:
        """Read the image and the text of a post as far as they can be read.

        Returns:
            The modalities that can be read, without ``image_transform``, and an error for each
            other one.
        """
        return self._read(self.posts[index])

    def _read(self, post: PostRow) -> tuple[dict[str, Any], dict[str, BadFileError]]:
        values, errors = {}, {}
        for name in self.modalities:
            known = self._inspected[post.id].get(name)
            try:
                if isinstance(known, BadFileError):
                    raise known
                if name == "table" and self.table_columns is not None:
                    values[name] = self.table_columns(post.cells)
                else:
                    values[name] = self._files.load(post, name)
            except BadFileError as error:
                errors[name] = error
        return values, errors

    def select(self, ids: Sequence[str], *, absent: Literal["raise", "ignore"] = "raise") -> Self:
        """Return the same data set with the given posts only, in the given order.

        An id that the data set lacks, because it was skipped, say, is a ``ValueError``, or is left
        out with ``absent="ignore"``.
        """
        lost = [post_id for post_id in ids if post_id not in self._index]
        if lost and absent == "raise":
            raise ValueError(
                f"{len(lost)} ids are not in the data set, {lost[:5]}: see report(), "
                'or pass absent="ignore"'
            )
        chosen = copy.copy(self)
        chosen.posts = [self.posts[self._index[i]] for i in ids if i in self._index]
        chosen._index = {post.id: index for index, post in enumerate(chosen.posts)}
        chosen._selected = True
        return chosen

    def content_digest(self, index: int, modality: str) -> str | None:
        """Return the SHA-256 of the content of one modality of a post, None where missing.

        Without ``verify`` a file is read and not decoded, so that a broken one has a digest too.
        """
        post = self.posts[index]
        if self.verify or modality == "table":
            info = self._inspected[post.id][modality]
            return info.digest if isinstance(info, FileInfo) else None
        try:
            return digest(self._files.content(post, modality))
        except BadFileError:
            return None

    def duplicate_groups(self) -> list[str]:
        """Return a group name for each post: equal for posts that share a text or an image.

        Pass it to ``stratified_split(groups=...)``, or for cross-validation to the ``split(ids,
        labels, groups)`` of scikit-learn's ``StratifiedGroupKFold``, and no duplicate crosses.
        """
        duplicates = [g for g in self._duplicates(None) if not g.kind.startswith("stock")]
        groups = connect(self.ids, [(g.ids[0], i) for g in duplicates for i in g.ids])
        return [groups[post_id] for post_id in self.ids]

    def report(self, splits: Splits | None = None) -> DatasetReport:
        """Return the counts of posts, the rows left out and why, and the duplicates.

        With ``splits`` it also has their sizes and the duplicates across them.
        """
        names = Counter(post.label_name for post in self.posts)
        if self.task != "multiclass":
            names = self._count_targets()
        sizes = Counter(splits.split_of(i) or "none" for i in self.ids if splits)
        texts = {i: self._inspected[i].get("text") for i in self.ids}
        split_ids = splits.ids if splits else ()
        cleaned = Counter(self._gate.cells)
        cleaned["control characters"] += sum(
            isinstance(t, FileInfo) and t.changed for t in texts.values()
        )
        return DatasetReport(
            name=self.name,
            rows=self._row_count,
            posts=len(self),
            class_counts={name: names[name] for name in self.class_names},
            problems=tuple(self._problems),
            lossy_texts=tuple(i for i, t in texts.items() if isinstance(t, FileInfo) and t.lossy),
            files_without_row=() if self._selected else self._files_without_row(),
            duplicates=tuple(self._duplicates(splits)) if self.verify else (),
            split_sizes={n: sizes[n] for n in ("train", "val", "test", "none") if sizes[n]},
            unknown_split_ids=tuple(i for i in split_ids if i not in self._index),
            verified=self.verify,
            lines=dict(self._gate.lines),
            cleaned={name: n for name, n in cleaned.items() if n},
            warnings=(*self._gate.warnings, *self._narrow_pictures()),
        )

    def __repr__(self) -> str:
        part = ", a selection" if self._selected else ""
        return f"{self.name}, on_bad={self.on_bad!r}: {len(self)} posts{part}"

    def _count_targets(self) -> Counter[str | None]:
        """Return how many posts have each label, or a known number."""
        counts: Counter[str | None] = Counter()
        for post in self.posts:
            for name, value in zip(self.class_names, post.target or (), strict=True):
                counts[name] += value > 0.5 if self.task == "multilabel" else value == value
        return counts

    def _inspect_cells(self, post: PostRow) -> Known:
        """Look at the columns that are a modality."""
        columns = self.table_columns
        if columns is None:
            return {}
        if not columns.has_value(post.cells):
            return {"table": EmptyCellError(f"{post.describe('table')} is empty", "missing")}
        cells = "\0".join(str(post.cells.get(name)) for name in columns.names)
        return {"table": FileInfo(digest(cells.encode("utf-8", "replace")))}

    def _drop_stock(self) -> None:
        """Take stock images and texts as missing."""
        groups = _find_duplicates(self._inspected)
        for modality in MODALITIES:
            for ids in groups[cast("DuplicateKind", f"stock {modality}")]:
                error = BadFileError(f"a stock {modality} that {len(ids)} posts share", "stock")
                for post_id in ids:
                    self._inspected[post_id][modality] = error

    def _is_bad(self, post_id: str, modality: str) -> bool:
        return isinstance(self._inspected[post_id].get(modality), BadFileError)

    def _select(
        self, rows: Sequence[PostRow | Problem]
    ) -> tuple[list[PostRow], tuple[Problem, ...]]:
        """Return the posts that can be used, and the problems of all rows."""
        posts: list[PostRow] = []
        problems = [row for row in rows if isinstance(row, Problem)]
        for row in rows:
            if isinstance(row, Problem):
                continue
            inspected = self._inspected[row.id].items()
            bad = {m: e for m, e in inspected if isinstance(e, BadFileError)}
            errors = {m: bad[m] for m in self.modalities if m in bad}
            missing = self.on_bad == "missing" and len(errors) < len(self.modalities)
            action: Any = "missing modality" if missing else "skipped"
            if len(errors) == len(self.modalities):
                reason = f"neither image nor text: {'; '.join(map(str, errors.values()))}"
                problems.append(Problem(row.id, "no modality", reason, action))
            else:
                problems += [
                    Problem(row.id, _kind(m, e), str(e), action) for m, e in errors.items()
                ]
            if missing or not errors:
                posts.append(row)
        refused = [problem for problem in problems if problem.action == "skipped"]
        if self.on_bad == "raise" and refused:
            first = "; ".join(f"{p.id[:40]!r}: {p.reason}" for p in refused[:5])
            raise ValueError(f"{len(refused)} bad rows in {self.folder}: {first}")
        return posts, tuple(problems)

    def _duplicates(self, splits: Splits | None) -> list[Duplicates]:
        inspected = {
            post.id: self._inspected[post.id] if self.verify else self._files.inspect(post)
            for post in self.posts
        }
        groups = _find_duplicates(inspected)
        label_of = {post.id: post.label_name or "" for post in self.posts}
        return [
            Duplicates(
                kind,
                ids,
                tuple(label_of[i] for i in ids),
                tuple(splits.split_of(i) or "" for i in ids) if splits else (),
            )
            for kind, groups_of_kind in groups.items()
            for ids in groups_of_kind
        ]

    def _narrow_pictures(self) -> list[str]:
        images = {i: self._inspected[i].get("image") for i in self.ids}
        ids = [i for i, info in images.items() if isinstance(info, FileInfo) and info.narrow]
        some = ", ".join(ids[:5])
        return [
            f"{len(ids)} pictures use less than an eighth of their range of brightness, as 12-bit "
            f"values in 16 bits do: {some}"
        ] * bool(ids)

    def _files_without_row(self) -> tuple[str, ...]:
        """Return the names of posts whose files are there and whose row is not."""
        if not any(isinstance(post.text, PurePath) for post in self.posts):
            return ()  # a table: the folder may hold anything
        known = {post.id for post in self.posts} | {problem.id for problem in self._problems}
        names = [Path(entry.name) for entry in os.scandir(self.folder)]
        return tuple(sorted({n.stem for n in names if n.suffix in (".txt", ".jpg")} - known))


def _find_duplicates(
    inspected: Mapping[str, Known],
) -> dict[DuplicateKind, list[tuple[str, ...]]]:
    texts, images = (
        {i: info for i, known in inspected.items() if isinstance(info := known[name], FileInfo)}
        for name in ("text", "image")
    )
    return find_duplicates(
        {i: normalize_text(info.text) or None for i, info in texts.items()},
        {i: info.digest for i, info in images.items()},
        {i: info.fingerprint for i, info in images.items()},
        len(inspected),
    )


def _kind(modality: str, error: BadFileError) -> ProblemKind:
    kind = "unreadable" if modality == "image" and error.kind == "empty" else error.kind
    return cast("ProblemKind", f"{kind} {modality}")


def _order_classes(posts: Sequence[PostRow], names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the given class names, or those of the posts: numbers by value, others as text."""
    labels = {post.label_name for post in posts if post.label_name is not None}
    if names is None:
        try:
            return tuple(sorted(labels, key=float))
        except ValueError:
            return tuple(sorted(labels))
    if labels - set(names):
        raise ValueError(f"class_names must hold all labels, {sorted(labels)} are in the data")
    return tuple(names)
