"""Image-text posts kept as files: what MVSA and TumEmo have in common."""

import copy
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustfusion.datasets.duplicates import connect, equal_groups, near_groups, normalize_text
from robustfusion.datasets.labels import LabelledPost
from robustfusion.datasets.pictures import BadFileError, decode, import_pillow
from robustfusion.datasets.reading import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    ImageFacts,
    TextFacts,
    digest,
    inspect_image,
    inspect_text,
    read_bytes,
)
from robustfusion.datasets.report import (
    Action,
    DatasetReport,
    DuplicateKind,
    Duplicates,
    Problem,
    ProblemKind,
)
from robustfusion.datasets.samples import Sample
from robustfusion.datasets.splits import Splits

OnBad = Literal["skip", "raise", "missing"]


class _Facts(NamedTuple):
    text: TextFacts | None
    image: ImageFacts | None
    problems: tuple[tuple[ProblemKind, str], ...]

    @property
    def available(self) -> dict[str, bool]:
        bad = {kind.split()[1] for kind, _ in self.problems}
        return {"image": "image" not in bad, "text": "text" not in bad}


class PostDataset(Dataset[Sample], ABC):
    r"""Posts of one image and one text, read from a folder when they are asked for.

    A subclass says where the files are and reads its label file. Here every row of that file is
    either kept or listed with its reason; see :meth:`report`. Only regular files inside the data
    folder are opened, pictures of at most 64 MB and texts of 1 MB; how pictures of other modes
    become RGB says :func:`~robustfusion.datasets.read_image`.

    Args:
        root: folder of the data set.
        on_bad: what to do with a post whose text is missing or blank or whose image is missing
            or cannot be decoded: ``"skip"`` it, ``"raise"`` an error, or take that modality as
            ``"missing"`` (a post with neither is skipped all the same). Each is in the report.
        image_transform: applied to the decoded RGB image, also to the black placeholder that
            stands for a missing one.
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
        >>> class Folder(PostDataset):  # {id}.jpg and {id}.txt, and a label file of pairs
        ...     class_names = ("no", "yes")
        ...
        ...     def _data_folder(self):
        ...         return self.root
        ...
        ...     def _read_rows(self):
        ...         lines = (self.root / "labels.csv").read_text().splitlines()
        ...         pairs = [line.split(",") for line in lines]
        ...         return [LabelledPost(i, label, label, label) for i, label in pairs], []
        ...
        ...     def _title(self):
        ...         return "Folder"
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(root / "7.jpg")
        >>> _ = (root / "7.txt").write_text("sunny")
        >>> _ = (root / "labels.csv").write_text("7,yes\n8,no\n")
        >>> posts = Folder(root)
        >>> posts[0]["inputs"]["text"], posts[0]["label"], posts.posts[0].label_name
        ('sunny', 1, 'yes')
        >>> [problem.reason for problem in posts.report().problems]
        ['8.txt is missing', '8.jpg is missing']

    Reference:
        A folder and a transform, as the ``VisionDataset`` of torchvision.
    """

    class_names: tuple[str, ...]
    placeholder_size = 64  # side of the black image that stands for a missing one

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
        self._facts = self._examine(rows)
        self._posts, self._problems = self._select(rows, problems)
        self._index = {post.id: index for index, post in enumerate(self._posts)}
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
        return [post.id for post in self._posts]

    @property
    def labels(self) -> list[int]:
        """The labels: positions in ``class_names``."""
        return [self.class_names.index(post.label_name) for post in self._posts]

    @property
    def available(self) -> dict[str, Tensor]:
        """What was observed, bool (N,) by modality; without ``verify`` as far as it is known."""
        facts = [self._facts.get(post.id) for post in self._posts]
        return {
            modality: torch.tensor(
                [known is None or known.available[modality] for known in facts], dtype=torch.bool
            )
            for modality in ("image", "text")
        }

    @property
    def posts(self) -> list[LabelledPost]:
        """The rows behind the samples, with the labels of the text and the image."""
        return list(self._posts)

    def __len__(self) -> int:
        """Return the number of posts."""
        return len(self._posts)

    def __getitem__(self, index: int) -> Sample:
        """Read and decode one post."""
        post = self._posts[index]
        inputs: dict[str, Any] = {"text": ""}
        available = {"image": True, "text": True}
        known = self._facts.get(post.id)
        for modality in ("image", "text"):
            try:
                if known is not None and not known.available[modality]:
                    available[modality] = False
                    continue
                inputs[modality] = self._read(post.id, modality)
            except BadFileError as error:
                if self.on_bad != "missing":
                    raise BadFileError(
                        f"post {post.id!r}: {error}; verify=True finds such posts at the start"
                    ) from error
                available[modality] = False
        if not any(available.values()):
            raise BadFileError(f"post {post.id!r}: neither image nor text can be read")
        if not available["image"]:
            side = self.placeholder_size
            inputs["image"] = import_pillow().new("RGB", (side, side))
        if self.image_transform is not None:
            inputs["image"] = self.image_transform(inputs["image"])
        return {
            "id": post.id,
            "inputs": {"image": inputs["image"], "text": inputs["text"]},
            "available": available,
            "label": self.class_names.index(post.label_name),
            "label_name": post.label_name,
        }

    def select(self, ids: Sequence[str], *, absent: Literal["raise", "ignore"] = "raise") -> Self:
        """Return the same data set with the given posts only, in the given order.

        Args:
            ids: ids of posts, as from :class:`Splits`.
            absent: whether an id that is not here (skipped, say) is an error or left out.

        Raises:
            ValueError: for an absent id, naming the first few.
        """
        lost = [post_id for post_id in ids if post_id not in self._index]
        if lost and absent == "raise":
            raise ValueError(
                f"{len(lost)} ids are not in the data set, {lost[:5]}: see report(), "
                'or pass absent="ignore"'
            )
        chosen = copy.copy(self)
        chosen._posts = [self._posts[self._index[i]] for i in ids if i in self._index]
        chosen._index = {post.id: index for index, post in enumerate(chosen._posts)}
        chosen._selected = True
        return chosen

    def content_digest(self, index: int, modality: str) -> str | None:
        """Return the SHA-256 of the file behind one modality of a post, None where missing.

        Without ``verify`` the file is read and not decoded: one that cannot be has a digest too.
        """
        post_id = self._posts[index].id
        if self.verify:
            facts = self._facts[post_id]
            part = facts.text if modality == "text" else facts.image
            return None if part is None else part.digest
        try:
            return digest(self._content(post_id, modality))
        except BadFileError:
            return None

    def duplicate_groups(self) -> list[str]:
        """Return a group name for each post: equal for posts that share a text or an image.

        Hand it to ``stratified_split(groups=...)``, or for cross-validation to the ``split(ids,
        labels, groups)`` of scikit-learn's ``StratifiedGroupKFold``, and no duplicate crosses.
        """
        pairs = [
            (group.ids[0], other) for group in self._duplicates(None) for other in group.ids[1:]
        ]
        groups = connect(self.ids, pairs)
        return [groups[post_id] for post_id in self.ids]

    def report(self, splits: Splits | None = None) -> DatasetReport:
        """Return what was kept, what was not and why, and which posts are duplicates.

        Args:
            splits: also tell the splits' sizes and the duplicates across them.
        """
        names = Counter(post.label_name for post in self._posts)
        sizes = Counter(splits.split_of(post.id) or "none" for post in self._posts if splits)
        order = ("train", "val", "test", "none")
        unknown: list[str] = []
        if splits is not None:
            unknown = [post_id for post_id in splits.ids if post_id not in self._index]
        lossy = [i for i in self.ids if i in self._facts and _is_lossy(self._facts[i])]
        return DatasetReport(
            name=self._title(),
            rows=self._rows,
            kept=len(self),
            class_counts={name: names[name] for name in self.class_names},
            problems=tuple(self._problems),
            lossy_texts=tuple(lossy),
            unlabelled=self._unlabelled(),
            duplicates=tuple(self._duplicates(splits)) if self.verify else (),
            split_sizes={name: sizes[name] for name in order if sizes[name]},
            unknown_split_ids=tuple(unknown),
            verified=self.verify,
        )

    def __repr__(self) -> str:
        """Name the data set and its size."""
        part = ", a selection" if self._selected else ""
        return f"{self._title()}, on_bad={self.on_bad!r}: {len(self)} posts{part}"

    def _path(self, post_id: str, modality: str) -> Path:
        return self.folder / self._name(post_id, modality)

    def _name(self, post_id: str, modality: str) -> str:
        return f"{post_id}{'.txt' if modality == 'text' else '.jpg'}"

    def _content(self, post_id: str, modality: str) -> bytes:
        limit = MAX_TEXT_BYTES if modality == "text" else MAX_IMAGE_BYTES
        within = None if self.allow_outside else self.folder
        return read_bytes(self._path(post_id, modality), limit, within)

    def _read(self, post_id: str, modality: str) -> Any:
        content, name = self._content(post_id, modality), self._name(post_id, modality)
        return inspect_text(content, name).text if modality == "text" else decode(content, name)

    def _examine(self, rows: list[LabelledPost]) -> dict[str, _Facts]:
        if not self.verify:
            found = {entry.name for entry in os.scandir(self.folder)}
            facts = {row.id: self._look_for(row.id, found) for row in rows}
            return {post_id: fact for post_id, fact in facts.items() if fact.problems}
        # Decoding and reading release the interpreter: threads halve the time on two cores.
        with ThreadPoolExecutor() as pool:
            ids = [row.id for row in rows]
            return dict(zip(ids, pool.map(self._facts_from_files, ids), strict=True))

    def _look_for(self, post_id: str, found: set[str]) -> _Facts:
        problems: list[tuple[ProblemKind, str]] = []
        for modality in ("text", "image"):
            name = self._name(post_id, modality)
            if name not in found:
                problems.append((_kind(modality, "missing"), f"{name} is missing"))
        return _Facts(None, None, tuple(problems))

    def _facts_of(self, post_id: str) -> _Facts:
        facts = self._facts.get(post_id)
        return facts if self.verify and facts is not None else self._facts_from_files(post_id)

    def _facts_from_files(self, post_id: str) -> _Facts:
        problems: list[tuple[ProblemKind, str]] = []
        text: TextFacts | None = None
        image: ImageFacts | None = None
        for modality in ("text", "image"):
            try:
                content, name = self._content(post_id, modality), self._name(post_id, modality)
                if modality == "text":
                    text = inspect_text(content, name)
                else:
                    image = inspect_image(content, name)
            except BadFileError as error:
                problems.append((_kind(modality, error.kind), str(error)))
        return _Facts(text, image, tuple(problems))

    def _select(
        self, rows: list[LabelledPost], problems: list[Problem]
    ) -> tuple[list[LabelledPost], list[Problem]]:
        problems = list(problems)
        kept = []
        for row in rows:
            facts = self._facts.get(row.id)
            found = facts.problems if facts else ()
            usable = self.on_bad == "missing" and len({kind.split()[1] for kind, _ in found}) < 2
            action: Action = "missing modality" if usable else "skipped"
            problems += [Problem(row.id, kind, reason, action) for kind, reason in found]
            if usable or not found:
                kept.append(row)
        refused = [problem for problem in problems if problem.action == "skipped"]
        if self.on_bad == "raise" and refused:
            first = "; ".join(f"{p.id[:40]!r}: {p.reason}" for p in refused[:5])
            raise ValueError(f"{len(refused)} bad rows in {self.root}: {first}")
        return kept, problems

    def _duplicates(self, splits: Splits | None) -> list[Duplicates]:
        facts = {post_id: self._facts_of(post_id) for post_id in self.ids}
        texts = {i: normalize_text(f.text.text) or None for i, f in facts.items() if f.text}
        images = {i: f.image.digest for i, f in facts.items() if f.image}
        prints = {i: f.image.fingerprint for i, f in facts.items() if f.image}
        same = equal_groups(images)
        near = [ids for ids in near_groups(prints) if ids not in set(same)]
        label_of = {post.id: post.label_name for post in self._posts}
        kinds: tuple[tuple[DuplicateKind, list[tuple[str, ...]]], ...] = (
            ("text", equal_groups(texts)),
            ("image", same),
            ("near image", near),
        )
        return [
            Duplicates(
                kind,
                ids,
                tuple(label_of[i] for i in ids),
                tuple(splits.split_of(i) or "" for i in ids) if splits else (),
            )
            for kind, groups in kinds
            for ids in groups
        ]

    def _unlabelled(self) -> tuple[str, ...]:
        known = {post.id for post in self._posts} | {problem.id for problem in self._problems}
        if self._selected:
            return ()
        stems = {
            Path(entry.name).stem
            for entry in os.scandir(self.folder)
            if entry.name.endswith((".txt", ".jpg"))
        }
        return tuple(sorted(stems - known))


def _kind(modality: str, kind: str) -> ProblemKind:
    if modality == "text":
        kinds: dict[str, ProblemKind] = {"missing": "missing text", "empty": "empty text"}
        return kinds.get(kind, "unreadable text")
    return "missing image" if kind == "missing" else "unreadable image"


def _is_lossy(facts: _Facts) -> bool:
    return facts.text is not None and facts.text.lossy
