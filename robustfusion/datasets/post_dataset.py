"""Image-text posts kept as files: what MVSA and TumEmo have in common."""

import copy
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustfusion.datasets.duplicates import connect, equal_groups, near_groups, normalize_text
from robustfusion.datasets.labels import LabelledPost
from robustfusion.datasets.pictures import BadFileError, decode
from robustfusion.datasets.reading import (
    LIMITS,
    Facts,
    digest,
    inspect_image,
    inspect_text,
    read_bytes,
)
from robustfusion.datasets.report import (
    DatasetReport,
    DuplicateKind,
    Duplicates,
    Problem,
    ProblemKind,
)
from robustfusion.datasets.splits import Splits
from robustfusion.disruption.images import import_pillow

OnBad = Literal["skip", "raise", "missing"]
_Found = dict[str, Facts | Problem]  # what is known of a post, by modality


class Sample(TypedDict):
    """One post: ``inputs`` and ``available`` have the keys "image" and "text".

    What ``posts[0]`` of a :class:`PostDataset` returns, see the example there;
    :func:`robustfusion.disruption.collate` puts several side by side as a batch.
    """

    id: str
    inputs: dict[str, Any]
    available: dict[str, bool]
    label: int
    label_name: str


class PostDataset(Dataset[Sample], ABC):
    r"""Posts of one image and one text, read from a folder when they are asked for.

    A subclass says where the files are and reads its label file, of which every row is either
    kept or listed with its reason, see :meth:`report`. Only regular files inside the data folder
    are opened, texts of at most 1 MB, pictures as :func:`~robustfusion.datasets.read_image` does.

    Args:
        root: folder of the data set.
        on_bad: ``"skip"`` a post whose text is missing or blank or whose image is missing or
            cannot be decoded, ``"raise"`` an error, or take that modality as ``"missing"`` (a post
            with neither is skipped all the same). Each is in the report.
        image_transform: of the decoded RGB image, and of the black one that stands for a missing.
        verify: read and decode every file once at the start. Without it files are only looked
            for; a bad file then raises, or counts as missing, when its post is asked for.
        allow_outside: also follow links to files outside of the data folder.

    Raises:
        FileNotFoundError: without the folder or the label file.
        ValueError: for an unusable label file, or a bad row with ``on_bad="raise"``.
        ImportError: without Pillow.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import PostDataset
        >>> from robustfusion.datasets.labels import LabelledPost
        >>> class Folder(PostDataset):  # {id}.jpg and {id}.txt, and labels from wherever they are
        ...     class_names = ("no", "yes")
        ...
        ...     def _data_folder(self):
        ...         return self.root
        ...
        ...     def _read_rows(self):
        ...         return [LabelledPost(i, l, l, l) for i, l in (("7", "yes"), ("8", "no"))], []
        ...
        ...     def _title(self):
        ...         return "Folder"
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(root / "7.jpg")
        >>> _ = (root / "7.txt").write_text("sunny")
        >>> posts = Folder(root)
        >>> posts[0]["inputs"]["text"], posts[0]["label"]
        ('sunny', 1)
        >>> [problem.reason for problem in posts.report().problems]
        ['8.txt is missing', '8.jpg is missing']
    """

    class_names: tuple[str, ...]
    placeholder_size = 64  # side of the black image that stands for a missing one
    posts: list[LabelledPost]  #: the rows behind the samples, with labels of text and image

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        on_bad: OnBad = "skip",
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
        allow_outside: bool = False,
    ) -> None:
        if on_bad not in ("skip", "raise", "missing"):
            raise ValueError(f'on_bad must be "skip", "raise" or "missing", got {on_bad!r}')
        import_pillow()
        self.root = Path(root)
        self.on_bad: OnBad = on_bad
        self.image_transform = image_transform
        self.verify = verify
        self.allow_outside = allow_outside
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder, got {self.root}")
        self.folder = self._data_folder()
        rows, problems = self._read_rows()
        self._rows = len({row.id for row in rows}) + len(problems)
        self._found = self._look_at([row.id for row in rows])
        self.posts, self._problems = self._select(rows, problems)
        self._index = {post.id: index for index, post in enumerate(self.posts)}
        self._selected = False

    @abstractmethod
    def _data_folder(self) -> Path:
        """Return the folder of the ``{id}.txt`` and ``{id}.jpg`` files."""

    @abstractmethod
    def _read_rows(self) -> tuple[list[LabelledPost], list[Problem]]:
        """Return the labelled posts, and a problem for every other row of the label file."""

    @abstractmethod
    def _title(self) -> str:
        """Return the name of the data set for reports."""

    @property
    def ids(self) -> list[str]:
        """The ids, in the order of the label file."""
        return [post.id for post in self.posts]

    @property
    def labels(self) -> list[int]:
        """The labels: positions in ``class_names``."""
        return [self.class_names.index(post.label_name) for post in self.posts]

    @property
    def available(self) -> dict[str, Tensor]:
        """What was observed, bool (N,) by modality; without ``verify`` as far as it is known."""
        return {
            modality: torch.tensor([not self._is_bad(i, modality) for i in self.ids]).bool()
            for modality in ("image", "text")
        }

    def __len__(self) -> int:
        return len(self.posts)

    def __getitem__(self, index: int) -> Sample:
        post = self.posts[index]
        inputs: dict[str, Any] = {"image": None, "text": ""}
        available = {name: not self._is_bad(post.id, name) for name in inputs}
        for name in inputs:
            try:
                if available[name]:
                    inputs[name] = self._read(post.id, name)
            except BadFileError as error:
                if self.on_bad != "missing":
                    raise BadFileError(
                        f"post {post.id!r}: {error}; verify=True finds such posts at the start"
                    ) from error
                available[name] = False
        if not any(available.values()):
            raise BadFileError(f"post {post.id!r}: neither image nor text can be read")
        if not available["image"]:
            side = self.placeholder_size
            inputs["image"] = import_pillow().new("RGB", (side, side))
        if self.image_transform is not None:
            inputs["image"] = self.image_transform(inputs["image"])
        label, name = self.class_names.index(post.label_name), post.label_name
        return Sample(id=post.id, inputs=inputs, available=available, label=label, label_name=name)

    def select(self, ids: Sequence[str], *, absent: Literal["raise", "ignore"] = "raise") -> Self:
        """Return the same data set with the given posts only, in the given order.

        An id that is not here (skipped, say) is a ``ValueError``, or left out as ``absent`` says.
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
        """Return the SHA-256 of the file behind one modality of a post, None where missing.

        Without ``verify`` the file is read and not decoded: one that cannot be has a digest too.
        """
        post_id = self.posts[index].id
        if self.verify:
            found = self._found[post_id][modality]
            return found.digest if isinstance(found, Facts) else None
        try:
            return digest(self._content(post_id, modality))
        except BadFileError:
            return None

    def duplicate_groups(self) -> list[str]:
        """Return a group name for each post: equal for posts that share a text or an image.

        Hand it to ``stratified_split(groups=...)``, or for cross-validation to the ``split(ids,
        labels, groups)`` of scikit-learn's ``StratifiedGroupKFold``, and no duplicate crosses.
        """
        groups = connect(self.ids, [(g.ids[0], i) for g in self._duplicates(None) for i in g.ids])
        return [groups[post_id] for post_id in self.ids]

    def report(self, splits: Splits | None = None) -> DatasetReport:
        """Return what was kept, what was not and why, and which posts are duplicates.

        Given ``splits``, also their sizes and the duplicates across them.
        """
        names = Counter(post.label_name for post in self.posts)
        sizes = Counter(splits.split_of(i) or "none" for i in self.ids if splits)
        texts = {i: self._found[i].get("text") for i in self.ids}
        named = splits.ids if splits else ()
        return DatasetReport(
            name=self._title(),
            rows=self._rows,
            kept=len(self),
            class_counts={name: names[name] for name in self.class_names},
            problems=tuple(self._problems),
            lossy_texts=tuple(i for i, t in texts.items() if isinstance(t, Facts) and t.lossy),
            unlabelled=() if self._selected else self._unlabelled(),
            duplicates=tuple(self._duplicates(splits)) if self.verify else (),
            split_sizes={n: sizes[n] for n in ("train", "val", "test", "none") if sizes[n]},
            unknown_split_ids=tuple(i for i in named if i not in self._index),
            verified=self.verify,
        )

    def __repr__(self) -> str:
        part = ", a selection" if self._selected else ""
        return f"{self._title()}, on_bad={self.on_bad!r}: {len(self)} posts{part}"

    def _name(self, post_id: str, modality: str) -> str:
        return f"{post_id}{'.txt' if modality == 'text' else '.jpg'}"

    def _content(self, post_id: str, modality: str) -> bytes:
        return self._file(self._name(post_id, modality), modality)

    def _file(self, name: str, modality: str) -> bytes:
        within = None if self.allow_outside else self.folder
        return read_bytes(self.folder / name, LIMITS[modality], within)

    def _read(self, post_id: str, modality: str) -> Any:
        content, name = self._content(post_id, modality), self._name(post_id, modality)
        return inspect_text(content, name).text if modality == "text" else decode(content, name)

    def _look_at(self, ids: list[str]) -> dict[str, _Found]:
        """What is known of each post's text and image from the start."""
        if self.verify:
            # Decoding and reading release the interpreter: threads halve the time on two cores.
            with ThreadPoolExecutor() as pool:
                return dict(zip(ids, pool.map(self._inspect, ids), strict=True))
        found: dict[str, _Found] = {post_id: {} for post_id in ids}
        there = {entry.name for entry in os.scandir(self.folder)}
        for post_id, modality in product(ids, ("text", "image")):
            if (name := self._name(post_id, modality)) not in there:
                error = BadFileError(f"{name} is missing", "missing")
                found[post_id][modality] = _problem(post_id, modality, error)
        return found

    def _inspect(self, post_id: str) -> _Found:
        found: _Found = {}
        for modality, inspect in (("text", inspect_text), ("image", inspect_image)):
            try:
                content, name = self._content(post_id, modality), self._name(post_id, modality)
                found[modality] = inspect(content, name)
            except BadFileError as error:
                found[modality] = _problem(post_id, modality, error)
        return found

    def _is_bad(self, post_id: str, modality: str) -> bool:
        return isinstance(self._found[post_id].get(modality), Problem)

    def _select(
        self, rows: list[LabelledPost], problems: list[Problem]
    ) -> tuple[list[LabelledPost], list[Problem]]:
        kept, problems = [], list(problems)
        for row in rows:
            bad = [found for found in self._found[row.id].values() if isinstance(found, Problem)]
            usable = self.on_bad == "missing" and len(bad) < 2
            problems += [p._replace(action="missing modality") if usable else p for p in bad]
            if usable or not bad:
                kept.append(row)
        refused = [problem for problem in problems if problem.action == "skipped"]
        if self.on_bad == "raise" and refused:
            first = "; ".join(f"{p.id[:40]!r}: {p.reason}" for p in refused[:5])
            raise ValueError(f"{len(refused)} bad rows in {self.root}: {first}")
        return kept, problems

    def _duplicates(self, splits: Splits | None) -> list[Duplicates]:
        found = {i: self._found[i] if self.verify else self._inspect(i) for i in self.ids}
        texts, images = (
            {i: facts for i, of in found.items() if isinstance(facts := of[modality], Facts)}
            for modality in ("text", "image")
        )
        same = equal_groups({i: facts.digest for i, facts in images.items()})
        near = near_groups({i: facts.fingerprint for i, facts in images.items()})
        groups: dict[DuplicateKind, list[tuple[str, ...]]] = {
            "text": equal_groups({i: normalize_text(f.text) or None for i, f in texts.items()}),
            "image": same,
            "near image": [ids for ids in near if ids not in set(same)],
        }
        label_of = {post.id: post.label_name for post in self.posts}
        return [
            Duplicates(
                kind,
                ids,
                tuple(label_of[i] for i in ids),
                tuple(splits.split_of(i) or "" for i in ids) if splits else (),
            )
            for kind, found_ids in groups.items()
            for ids in found_ids
        ]

    def _unlabelled(self) -> tuple[str, ...]:
        known = {post.id for post in self.posts} | {problem.id for problem in self._problems}
        names = [Path(entry.name) for entry in os.scandir(self.folder)]
        return tuple(sorted({n.stem for n in names if n.suffix in (".txt", ".jpg")} - known))


def _problem(post_id: str, modality: str, error: BadFileError) -> Problem:
    kind = error.kind
    if modality == "image" and kind == "empty":
        kind = "unreadable"
    return Problem(post_id, cast("ProblemKind", f"{kind} {modality}"), str(error), "skipped")
