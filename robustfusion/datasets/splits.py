"""Splits by id: seeded or published, with a hash, and a test split that is opened on purpose."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor

_NAMES = ("train", "val", "test")
ALIASES = {"dev": "val", "valid": "val", "validation": "val"}


class Splits:
    """Train, validation and test ids; the test ids cannot be used by accident.

    ``train`` and ``val`` are attributes. Only :meth:`open_test` returns the test ids: it needs a
    reason and records it in ``openings``, so that choosing an epoch, an option or a temperature by
    test posts takes a line of code that says so. ``hash`` names the split in a run record.

    Args:
        train: ids to train on.
        val: ids to select by; may be empty.
        test: ids to report on.
        source: a note for people, where the split comes from.
        note: why the sizes are not those that were asked for.

    Raises:
        ValueError: for an id in two splits or twice in one, or an empty train or test split.

    Example:
        >>> from robustfusion.datasets import Splits
        >>> splits = Splits(["1", "2"], ["3"], ["4"])
        >>> splits
        Splits(train=2, val=1, test=1, hash='e615bdcdf78a9b88')
        >>> splits.open_test("final table of the README")
        ('4',)
        >>> splits.openings
        ['final table of the README']

    Reference:
        Dwork et al., "The reusable holdout: Preserving validity in adaptive data analysis",
        Science 349, 2015, for why the test part is kept apart.
    """

    def __init__(
        self,
        train: Sequence[str],
        val: Sequence[str],
        test: Sequence[str],
        *,
        source: str = "",
        note: str = "",
    ) -> None:
        self.train, self.val, self._test = tuple(train), tuple(val), tuple(test)
        self.source, self.note = source, note
        self.openings: list[str] = []
        if not self.train or not self._test:
            raise ValueError("train and test must not be empty")
        self._names: dict[str, str] = {}
        for name, ids in zip(_NAMES, (self.train, self.val, self._test), strict=True):
            for post_id in ids:
                if not isinstance(post_id, str):
                    raise TypeError(f"{name} must hold ids as str, got {post_id!r}")
                if post_id in self._names:
                    before = self._names[post_id]
                    raise ValueError(f"id {post_id!r} is in {before} and again in {name}")
                self._names[post_id] = name

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids together, for encoding features and checking duplicates."""
        return tuple(self._names)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of ids in each split."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self._test)}

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that depend on which id is in which split, not on order."""
        rows = sorted(f"{name}\t{post_id}\n" for post_id, name in self._names.items())
        return hashlib.sha256("".join(rows).encode()).hexdigest()[:16]

    def open_test(self, reason: str) -> tuple[str, ...]:
        """Return the test ids and record the reason; without one raise ``ValueError``."""
        if not reason.strip():
            raise ValueError("reason must say what the test split is opened for")
        self.openings.append(reason.strip())
        return self._test

    @property
    def test(self) -> NoReturn:
        """Raise an error: the test ids come from :meth:`open_test`."""
        raise AttributeError("the test ids are not an attribute: call splits.open_test(reason)")

    def split_of(self, post_id: str) -> str | None:
        """The name of the split that holds an id, None where none does."""
        return self._names.get(post_id)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the splits as JSON, to be read by :func:`load_splits`."""
        content = {"train": self.train, "val": self.val, "test": self._test}
        Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
        note = f", note={self.note!r}" if self.note else ""
        return f"Splits({sizes}, hash={self.hash!r}{note})"


def load_splits(path: str | os.PathLike[str]) -> Splits:
    """Read published splits: a JSON object with lists of ids under train, val (or dev) and test.

    Raises:
        ValueError: where the file is not such an object.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from robustfusion.datasets import load_splits
        >>> path = Path(tempfile.mkdtemp()) / "splits.json"
        >>> _ = path.write_text('{"train": ["1", "2"], "dev": ["3"], "test": ["4"]}')
        >>> load_splits(path)
        Splits(train=2, val=1, test=1, hash='e615bdcdf78a9b88')
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path must be a JSON file of splits, {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object of lists, got {type(content).__name__}")
    parts = {ALIASES.get(name, name): ids for name, ids in content.items()}
    lists = all(isinstance(ids, list) for ids in parts.values())
    # Two names of one split, such as "dev" and "validation", leave fewer parts than lists.
    if set(parts) != set(_NAMES) or len(parts) < len(content) or not lists:
        raise ValueError(f"{path} must hold lists under {_NAMES}, got {sorted(content)}")
    for name, listed in parts.items():
        for post_id in listed:
            if type(post_id) not in (str, int):
                raise ValueError(f"{path} must hold ids under {name!r}, got {post_id!r}")
    return Splits(*([str(i) for i in parts[name]] for name in _NAMES), source=Path(path).name)


def stratified_split(
    labels: Sequence[Hashable] | Tensor,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    *,
    seed: int,
    ids: Sequence[str],
    groups: Sequence[Hashable] | Tensor | None = None,
) -> Splits:
    """Split ids so that each class has the same share in each split, to within one group.

    Where an id goes depends on the seed and the ids alone: the order of the posts does not
    matter, and no random state is touched.

    Args:
        labels: one label for each id.
        fractions: shares of train, validation and test; they add up to 1.
        seed: decides which ids go where.
        ids: unique ids.
        groups: posts of one group, say duplicates of each other, stay in one split; a group
            counts under the label of its smallest id. Where large groups move a split by more than
            a percent of all ids from its share, ``note`` of the splits says so.

    Raises:
        ValueError: for lengths that differ, fractions that do not add up, or repeated ids.

    Example:
        >>> from robustfusion.datasets import stratified_split
        >>> splits = stratified_split(
        ...     "aaaaabbbbb", (0.6, 0.2, 0.2), seed=0, ids=list("0123456789")
        ... )
        >>> splits.sizes
        {'train': 6, 'val': 2, 'test': 2}
    """
    total = len(ids)
    for name, entries in (("labels", labels), ("groups", ids if groups is None else groups)):
        if len(entries) != total:
            raise ValueError(f"{name} must have one entry for each id: {len(entries)} for {total}")
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-9:
        raise ValueError(f"fractions must be three shares that add up to 1, got {fractions}")
    # Elements of a tensor are never equal as keys of a dictionary, their values are.
    labels = labels.tolist() if isinstance(labels, Tensor) else labels
    groups = groups.tolist() if isinstance(groups, Tensor) else groups
    label_of = dict(zip(ids, labels, strict=True))
    if len(label_of) != len(ids):
        raise ValueError(f"ids must be unique: {len(label_of)} of {len(ids)} differ")
    ids_of: defaultdict[Hashable, list[str]] = defaultdict(list)
    for group, post_id in zip(ids if groups is None else groups, ids, strict=True):
        ids_of[group].append(post_id)
    classes: defaultdict[Hashable, list[list[str]]] = defaultdict(list)
    for group_ids in map(sorted, ids_of.values()):
        classes[label_of[group_ids[0]]].append(group_ids)
    parts: list[list[str]] = [[], [], []]
    for class_groups in classes.values():
        total = sum(map(len, class_groups))
        wanted = [total * fraction for fraction in fractions]
        for group_ids in sorted(class_groups, key=lambda ids: _draw(seed, ids[0])):
            # Fill the split that lacks most: at the end none is off by more than one group.
            target = max(range(3), key=lambda part: wanted[part])
            parts[target] += group_ids
            wanted[target] -= len(group_ids)
    source = f"stratified_split(fractions={tuple(fractions)}, seed={seed})"
    order = {post_id: position for position, post_id in enumerate(ids)}
    off = max(abs(len(p) - f * len(ids)) for p, f in zip(parts, fractions, strict=True))
    largest, note = max(map(len, ids_of.values()), default=0), ""
    if groups is not None and largest > 1 and off > 0.01 * len(ids):
        note = f"{off / len(ids):.0%} off, the largest group has {largest} of {len(ids)} ids"
    return Splits(*(sorted(p, key=order.__getitem__) for p in parts), source=source, note=note)


def _draw(seed: int, post_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\t{post_id}".encode()).digest()
