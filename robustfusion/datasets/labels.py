"""Label files: reading them line by line, and the published rules that make one label of two."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from robustfusion.datasets.report import Problem

LabelRule = Literal["joint", "equal"]

SENTIMENTS = ("positive", "neutral", "negative")

# An id becomes a file name: nothing that could leave the data folder may pass.
_SAFE_ID = re.compile(r"[A-Za-z0-9_\-]+")
_LINE_END = re.compile(r"\r\n|\r|\n")


class LabelledPost(NamedTuple):
    """One row of a label file after its rule: the post's label and those of its two sides.

    Example:
        >>> from robustfusion.datasets.labels import LabelledPost, combine
        >>> LabelledPost("7", combine("neutral", "positive", "joint"), "neutral", "positive")
        LabelledPost(id='7', label_name='positive', text_label='neutral', image_label='positive')
    """

    id: str
    label_name: str
    text_label: str
    image_label: str


class Votes(NamedTuple):
    """One row of an MVSA label file: what each annotator said of the text and of the image."""

    id: str
    text: tuple[str, ...]
    image: tuple[str, ...]


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a text file that are not blank.

    Any line ending and any encoding that extends ASCII is read; bytes that are not UTF-8 are left
    out.
    """
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise OSError("it is no regular file")
        text = path.read_bytes().decode("utf-8-sig", errors="ignore")
    except OSError as error:
        raise FileNotFoundError(f"root must hold the label file {path}: {error}") from error
    split = enumerate(_LINE_END.split(text), start=1)
    lines = ((number, line.strip()) for number, line in split)
    return [(number, line) for number, line in lines if line]


def check_id(post_id: str) -> str | None:
    """Say why an id cannot be the name of a file, or None where it can."""
    if _SAFE_ID.fullmatch(post_id):
        return None
    return f"the id {post_id[:40]!r} is not made of letters, digits, '_' and '-'"


def majority(votes: Sequence[str]) -> str | None:
    """Return what more than half of the annotators said, or None where there is no such label.

    Example:
        >>> majority(["positive", "neutral", "positive"])
        'positive'
        >>> majority(["positive", "neutral", "negative"]) is None
        True
    """
    label, count = Counter(votes).most_common(1)[0]
    return label if 2 * count > len(votes) else None


def combine(text: str, image: str, rule: LabelRule) -> str | None:
    """Make one label of a text's and an image's, or None where the rule drops the pair.

    Args:
        text: label of the text.
        image: label of the image.
        rule: ``"joint"``: equal labels give that label, a neutral side gives way to the other,
            positive against negative is dropped. ``"equal"``: only equal labels are kept.

    Returns:
        The label of the pair, or None.

    Example:
        >>> combine("neutral", "positive", "joint")
        'positive'
        >>> combine("neutral", "positive", "equal") is None
        True
    """
    if text == image:
        return text
    if rule == "equal":
        return None
    if "neutral" not in (text, image):
        return None
    return image if text == "neutral" else text


def read_votes(path: Path) -> tuple[list[Votes], list[Problem]]:
    """Read an MVSA label file: ``ID``, then one or three tab-separated ``text,image`` columns.

    Args:
        path: the label file.

    Returns:
        The rows that could be read, and a problem for each that could not.

    Raises:
        FileNotFoundError: without the file.
        ValueError: for a header that lacks a column, or where no row can be read.
    """
    rows: list[Votes] = []
    problems: list[Problem] = []
    seen: dict[str, Votes] = {}
    annotators: int | None = None
    lines = read_lines(path)
    columns = Counter(line.count("\t") for _, line in lines)  # for a file without a header
    for number, line in lines:
        fields = [field.strip() for field in line.split("\t")]
        if fields[0].lower() == "id":
            annotators = _check_header(fields, path)
            continue
        annotators = annotators or max(columns.most_common(1)[0][0], 1)
        reason = check_id(fields[0]) or _check_row(fields, annotators)
        if reason is None:
            pairs = [_split_pair(field) for field in fields[1:]]
            row = Votes(fields[0], tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))
            if row.id not in seen:
                seen[row.id] = row
                rows.append(row)
                continue
            same = "same" if seen[row.id] == row else "different"
            reason = f"the id occurred before, with the {same} labels; the first row counts"
        problems.append(Problem(fields[0], "label row", f"line {number}: {reason}", "skipped"))
    if not rows:
        detail = f"; {problems[0].reason}" if problems else ""
        raise ValueError(f"no row of {path} could be read{detail}")
    return rows, problems


def _split_pair(field: str) -> list[str]:
    return [part.strip().lower() for part in field.split(",")]


def _check_header(fields: list[str], path: Path) -> int:
    pairs = [_split_pair(field) for field in fields[1:]]
    if len(pairs) not in (1, 3) or any(pair != ["text", "image"] for pair in pairs):
        raise ValueError(
            f"{path} must have the columns 'ID' and one or three times 'text,image', got {fields}"
        )
    return len(pairs)


def _check_row(fields: list[str], annotators: int) -> str | None:
    if len(fields) - 1 != annotators:
        return f"expected {annotators} column(s) after the id, got {len(fields) - 1}"
    for field in fields[1:]:
        pair = _split_pair(field)
        if len(pair) != 2:
            return f"expected 'text,image' labels, got {field[:40]!r}"
        unknown = [label for label in pair if label not in SENTIMENTS]
        if unknown:
            return f"unknown label {unknown[0][:40]!r}, expected one of {', '.join(SENTIMENTS)}"
    return None
