"""MVSA-Single and MVSA-Multiple from the folders of their official release."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from robustfusion.datasets.labels import (
    SENTIMENTS,
    LabelRule,
    check_id,
    combine,
    count_lines,
    find_folder,
    read_lines,
    usable_rows,
)
from robustfusion.datasets.post_dataset import OnBad, PostDataset
from robustfusion.datasets.post_row import PostRow
from robustfusion.datasets.report import Problem

Votes = list[tuple[str, ...]]  # for each annotator, the label of the text and of the image


class MVSA(PostDataset):
    r"""Tweets with photos, each labelled positive, neutral or negative.

    Reads ``data/{ID}.jpg``, ``data/{ID}.txt`` and ``labelResultAll.txt``, which has one
    ``text,image`` column of labels in MVSA-Single and three, of three annotators, in
    MVSA-Multiple. There the text's label is what at least two say, and likewise the image's; a
    post without such a label is dropped.

    The two label rules make two data sets, never to be mixed in one table. On the official
    MVSA-Single, ``"joint"`` (Xu and Mao) leaves 4,511 posts and ``"equal"`` 2,592. Here counts
    are reported, not assumed: ``print(dataset.report())``.

    Args:
        root: folder with ``data`` and ``labelResultAll.txt``.
        label_rule: ``"joint"``: equal labels give that label, a neutral side gives way to the
            other, positive against negative is dropped. ``"equal"``: only equal labels are kept.
        on_bad: see :class:`PostDataset`, also for the arguments below and the errors.
        image_transform: applied to the decoded RGB image.
        verify: read and decode every file once at the start.
        allow_outside: also follow links to files outside of the data folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import MVSA
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "data").mkdir()
        >>> Image.new("RGB", (8, 8)).save(root / "data" / "1.jpg")
        >>> _ = (root / "data" / "1.txt").write_text("what a day")
        >>> _ = (root / "labelResultAll.txt").write_text("ID\ttext,image\n1\tneutral,positive\n")
        >>> MVSA(root)[0]["label_name"], len(MVSA(root, label_rule="equal", on_bad="raise"))
        ('positive', 0)

    Reference:
        Niu et al., Sentiment analysis on multi-view social data, MMM 2016.
        Xu and Mao, MultiSentiNet, CIKM 2017 (the joint rule and the majority vote).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        label_rule: LabelRule = "joint",
        on_bad: OnBad = "skip",
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
        allow_outside: bool = False,
    ) -> None:
        if label_rule not in ("joint", "equal"):
            raise ValueError(f'label_rule must be "joint" or "equal", got {label_rule!r}')
        folder, path = find_folder(Path(root), ("data",)), Path(root) / "labelResultAll.txt"
        votes, problems = usable_rows(path, _read_votes(path))
        super().__init__(
            [*(_label(i, pairs, label_rule) for i, pairs in votes.items()), *problems],
            folder,
            class_names=SENTIMENTS,
            on_bad=on_bad,
            image_transform=image_transform,
            verify=verify,
            allow_outside=allow_outside,
        )
        variant = "Single" if len(next(iter(votes.values()))) == 1 else "Multiple"
        self.name = f"MVSA-{variant}, label_rule={label_rule!r}"
        self.root, self.path = Path(root), path
        self._gate = count_lines(path, len(votes), len(problems))


def _label(post_id: str, votes: Votes, rule: LabelRule) -> PostRow | Problem:
    """Make one label of what the annotators said, or a problem where the rule drops the post."""
    texts, images = zip(*votes, strict=True)
    text, image = _majority(texts), _majority(images)
    label = combine(text, image, rule) if text and image else None
    if text and image and label:
        return PostRow.of_files(post_id, label)._replace(text_label=text, image_label=image)
    reason = f"text {text}, image {image}: dropped by the {rule} rule"
    if text is None or image is None:
        side, labels = ("text", texts) if text is None else ("image", images)
        reason = f"no majority for the {side}: {', '.join(labels)}"
    return Problem(post_id, "label rule", reason, "excluded")


def _majority(votes: Sequence[str]) -> str | None:
    """Return the label of more than half of the annotators, or None where there is none."""
    label, count = Counter(votes).most_common(1)[0]
    return label if 2 * count > len(votes) else None


def _read_votes(path: Path) -> Iterator[tuple[int, str, Votes, str | None]]:
    """Yield the lines, an ID and one or three tab-separated ``text,image``, as label rows."""
    lines = [(number, line) for number, line in read_lines(path) if line]
    columns = Counter(line.count("\t") for _, line in lines).most_common(1)
    # Without a header most lines tell how many annotators there were.
    annotators = max(columns[0][0], 1) if columns else 1
    for number, line in lines:
        post_id, *fields = (field.strip() for field in line.split("\t"))
        votes = [tuple(part.strip().lower() for part in field.split(",")) for field in fields]
        if post_id.lower() != "id":
            yield number, post_id, votes, check_id(post_id) or _check(fields, votes, annotators)
            continue
        annotators = len(votes)
        if annotators not in (1, 3) or set(votes) != {("text", "image")}:
            raise ValueError(
                f"{path} must have the columns 'ID' and one or three times 'text,image', got "
                f"{[post_id, *fields]}"
            )


def _check(fields: list[str], votes: Votes, annotators: int) -> str | None:
    if len(votes) != annotators:
        return f"expected {annotators} column(s) after the id, got {len(votes)}"
    for field, pair in zip(fields, votes, strict=True):
        if len(pair) != 2:
            return f"expected 'text,image' labels, got {field[:40]!r}"
        for label in pair:
            if label not in SENTIMENTS:
                return f"unknown label {label[:40]!r}, expected one of {', '.join(SENTIMENTS)}"
    return None
