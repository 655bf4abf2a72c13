"""Label files: their lines, the rows that count, and the rules that make one label of two."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

from robustfusion._text import clean_text
from robustfusion.datasets.report import Problem
from robustfusion.datasets.text_gate import Gate, encoding_of

LabelRule = Literal["joint", "equal"]
T = TypeVar("T")

SENTIMENTS = ("positive", "neutral", "negative")

# An id becomes a file name, so it must not be able to leave the data folder.
_SAFE_ID = re.compile(r"[A-Za-z0-9_\-]+")
_LINE_END = re.compile(r"\r\n|\r|\n")


def find_folder(root: Path, names: tuple[str, ...]) -> Path:
    """Return the folder of the posts' files, the first of some names under ``root``."""
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}")
    for name in names:
        if (root / name).is_dir():
            return root / name
    listed = " or ".join(map(repr, names))
    raise FileNotFoundError(
        f"root must hold the folder {listed} with the posts' files, {root} does not"
    )


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the numbered lines, blank ones as "", of any line ending and ASCII encoding."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise OSError("it is no regular file")
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"root must hold the label file {path}: {error}") from error
    text = clean_text(content.decode(encoding_of(content), errors="ignore"))
    lines = [*map(str.strip, _LINE_END.split(text))]
    return list(enumerate(lines if lines[-1] else lines[:-1], start=1))


def count_lines(path: Path, rows: int, bad: int) -> Gate:
    """Return the lines of a label file, counted for the report by what they hold."""
    lines = read_lines(path)
    blank = sum(not line for _, line in lines)
    header = len(lines) - blank - rows - bad
    return Gate(Counter({"header": header, "rows": rows, "bad rows": bad, "blank": blank}))


def check_id(post_id: str) -> str | None:
    """Say why an id cannot be the name of a file, or None where it can."""
    if _SAFE_ID.fullmatch(post_id):
        return None
    return f"the id {post_id[:40]!r} is not made of letters, digits, '_' and '-'"


def usable_rows(
    path: Path,
    rows: Iterable[tuple[int, str, T, str | None]],
    unit: str = "line",
    advice: Callable[[str], str] = lambda reason: "",
) -> tuple[dict[str, T], list[Problem]]:
    """Split rows into the content of usable ones, by id, and a problem for each other.

    A row is its number, counted in ``unit``, its id, its content, and why it cannot be used.
    ``advice`` says what to do where no row is usable, by the first reason.
    """
    contents: dict[str, T] = {}
    problems: list[Problem] = []
    for number, post_id, content, reason in rows:
        if reason is None and post_id in contents:
            same = "same" if contents[post_id] == content else "different"
            reason = f"the id occurred before, with the {same} labels; the first row counts"
        if reason is None:
            contents[post_id] = content
        else:
            problems.append(Problem(post_id, "label row", f"{unit} {number}: {reason}", "skipped"))
    if not contents:
        detail = ""
        if problems:
            reason = problems[0].reason.partition(": ")[2]
            count = sum(problem.reason.endswith(reason) for problem in problems)
            detail = f"; {problems[0].reason} ({count} of {len(problems)} {unit}s)"
            detail += advice(reason)
        raise ValueError(f"no row of {path} could be read{detail}")
    return contents, problems


def combine(text: str, image: str, rule: LabelRule) -> str | None:
    """Make one label of a text's and an image's, or None where the rule drops the pair.

    The rules are those of :class:`~robustfusion.datasets.MVSA`.

    Example:
        >>> from robustfusion.datasets.labels import combine
        >>> combine("neutral", "positive", "joint")
        'positive'
        >>> combine("neutral", "positive", "equal") is None
        True
    """
    if text == image:
        return text
    if rule == "equal" or "neutral" not in (text, image):
        return None
    return image if text == "neutral" else text
