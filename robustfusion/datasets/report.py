"""The report on a data set: its posts, the rows left out, each with its reason, and duplicates."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

ProblemKind = Literal[
    "label row", "label rule", "missing text", "missing image", "empty text", "unreadable text",
    "unreadable image", "missing table", "no modality", "stock text", "stock image",
]  # fmt: skip
Action = Literal["skipped", "excluded", "missing modality"]
DuplicateKind = Literal["text", "image", "near image", "stock text", "stock image"]
MAX_LISTED = 3  # problems of a kind that the printed report lists one by one


class Problem(NamedTuple):
    """One thing wrong with one post, and what was done: ``problems`` of :class:`DatasetReport`."""

    id: str
    kind: ProblemKind
    reason: str
    action: Action


class Duplicates(NamedTuple):
    """Posts that share a text or an image.

    ``kind`` is "text" (equal up to RT, handles, URLs, case and punctuation), "image" (equal
    bytes) or "near image" (nearly equal perceptual hash); "stock text" and "stock image" are
    contents under many posts that differ otherwise, which are no duplicates. ``labels`` and, where
    splits were given, ``splits`` are aligned with ``ids``.

    Example:
        >>> from robustfusion.datasets import Duplicates
        >>> group = Duplicates("text", ("1", "8"), ("positive", "neutral"), ("train", "test"))
        >>> group.crosses_splits, group.labels_conflict
        (True, True)

    Reference:
        The hash of "near image": Krawetz, "Kind of Like That", 2013 (dHash). Why duplicates across
        splits count: Barz and Denzler, "Do We Train on Test Data?", Journal of Imaging 6, 2020.
    """

    kind: DuplicateKind
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...] = ()

    @property
    def crosses_splits(self) -> bool:
        """Tell whether the posts lie in more than one split."""
        return len(set(self.splits) - {""}) > 1

    @property
    def labels_conflict(self) -> bool:
        """Tell whether the same text or image carries different labels."""
        return len(set(self.labels)) > 1


@dataclass(frozen=True)
class DatasetReport:
    r"""The report on a data set: each row of the label file is a post or a listed problem.

    ``str(report)`` is the readable form.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from robustfusion.datasets import PostTable
        >>> table = Path(tempfile.mkdtemp()) / "posts.csv"
        >>> _ = table.write_text("id,image,text,label\n7,,what a day,good\n8,,,bad\n")
        >>> report = PostTable(table).report()
        >>> report.rows, report.posts, report.problems[0].reason
        (2, 1, 'the image of row 1 is an empty cell')
        >>> print(str(report).splitlines()[0])
        PostTable posts.csv: 1 posts of 2 rows in the label file
    """

    name: str  #: which data set, with its label rule
    rows: int  #: rows of the label file, the header left out
    posts: int  #: posts in the data set
    class_counts: Mapping[str, int]  #: posts for each label name
    problems: tuple[Problem, ...]  #: every row left out, every modality taken as missing
    lossy_texts: tuple[str, ...]  #: ids of posts with bytes that are not UTF-8, left out
    files_without_row: tuple[str, ...]  #: ids with files but without a row in the label file
    duplicates: tuple[Duplicates, ...]  #: groups of posts with the same text or image
    split_sizes: Mapping[str, int]  #: posts in each split, empty without splits
    unknown_split_ids: tuple[str, ...]  #: ids that the splits name and the data set lacks
    verified: bool  #: whether every file was read and decoded
    lines: Mapping[str, int] = field(default_factory=dict)  #: lines of a table by what they hold
    cleaned: Mapping[str, int] = field(default_factory=dict)  #: cells that were changed, by why
    warnings: tuple[str, ...] = ()  #: what is valid and may be a mistake

    def groups(self, kind: DuplicateKind) -> tuple[Duplicates, ...]:
        """Return the duplicate groups of one kind."""
        return tuple(group for group in self.duplicates if group.kind == kind)

    def leaked(self, kind: DuplicateKind, split: str = "test", into: str = "train") -> int:
        """Count the posts of ``split`` that have a duplicate in ``into``."""
        return sum(
            group.splits.count(split) for group in self.groups(kind) if into in group.splits
        )

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.posts} posts of {self.rows} rows in the label file"]
        lines.append("  labels: " + _counts(self.class_counts, self.posts))
        if self.lines:
            parts = ", ".join(f"{count} {name}" for name, count in self.lines.items() if count)
            lines.append(f"  lines of the file: {sum(self.lines.values())} ({parts})")
        lines += [f"  cells with {name} (cleaned): {n}" for name, n in self.cleaned.items()]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        if self.split_sizes:
            lines.append("  splits: " + _counts(self.split_sizes))
        if self.unknown_split_ids:
            lines.append(
                f"  named by the splits, not in the data set: {_some(self.unknown_split_ids)}"
            )
        counts = Counter((problem.kind, problem.action) for problem in self.problems)
        for (kind, action), count in sorted(counts.items()):
            lines.append(f"  {kind} ({action}): {count}")
            examples = [p for p in self.problems if (p.kind, p.action) == (kind, action)]
            lines += [f"    {p.id[:40]}: {p.reason}" for p in examples[:MAX_LISTED]]
            if count > MAX_LISTED:
                lines.append(f"    and {count - MAX_LISTED} more in .problems")
        if not self.verified:
            return "\n".join([*lines, "  file contents were not checked (verify=False)"])
        lines.append(f"  texts with bytes that are not UTF-8 (left out): {len(self.lossy_texts)}")
        if self.files_without_row:
            lines.append(f"  files without a label row: {_some(self.files_without_row)}")
        duplicates = [self._duplicate_line(kind) for kind in get_args(DuplicateKind)]
        return "\n".join([*lines, *filter(None, duplicates)])

    def _duplicate_line(self, kind: DuplicateKind) -> str:
        groups = self.groups(kind)
        if kind.startswith("stock"):
            counts = ", ".join(f"{len(g.ids)} posts (first: {g.ids[0][:40]})" for g in groups)
            return (
                f"  {kind}, no duplicates (stock='missing' drops it): {counts}" if counts else ""
            )
        line = f"  duplicates by {kind}: {len(groups)} groups, {sum(len(g.ids) for g in groups)} "
        line += f"posts, {sum(g.labels_conflict for g in groups)} groups with conflicting labels"
        if self.split_sizes:
            leaked, size = self.leaked(kind), self.split_sizes.get("test", 0)
            line += f", {sum(g.crosses_splits for g in groups)} groups across splits"
            line += f", {leaked} of {size} test posts occur in train"
        return line


def _counts(counts: Mapping[str, int], total: int = 0) -> str:
    total = max(total or sum(counts.values()), 1)
    return ", ".join(f"{name} {n} ({100 * n / total:.1f} %)" for name, n in counts.items())


def _some(ids: tuple[str, ...]) -> str:
    more = ", ..." if len(ids) > 5 else ""
    return f"{len(ids)} ({', '.join(ids[:5])}{more})"
