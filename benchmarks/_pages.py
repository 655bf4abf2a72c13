"""Fill the pages of the docs from records: tables, sources, and words for conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "pages"
ASSETS = DOCS / "assets"
SETTINGS = {"C": "corrupted", "D": "missing", "C+D": "corrupted or missing"}
# Renamed after a record was written; pages show the command that runs today.
RENAMED = {
    "benchmarks/unseen.py": "benchmarks/other_corruptions.py",
    "benchmarks/retrofit.py": "benchmarks/fuse_two_models.py",
    "benchmarks/long_run.py": "benchmarks/stability.py",
    "benchmarks/paper_choices.py": "benchmarks/ablate_paper.py",
    " VotingHead ": " NeighborVoteHead ",
}

Blocks = Mapping[str, Sequence[str]]


def filled(text: str, blocks: Blocks) -> str:
    """Put each block between its two comments, ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: a comment does not stand exactly once in the text.
    """
    for name, lines in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page must hold {begin} and {end} once each")
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = before + "\n".join([begin, "", *lines, "", end]) + after
    return text


def table(
    head: Sequence[str], body: Iterable[Sequence[str]], left: Sequence[int] = (0,)
) -> list[str]:
    """Lines of a Markdown table; all columns but those in `left` are aligned to the right."""
    rule = ["---" if column in left else "---:" for column in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Hide lines behind a title that opens them."""
    return [f"<details markdown><summary>{title}</summary>", "", *lines, "", "</details>"]


def command_of(record: Mapping[str, Any]) -> str:
    """The command of a record, as it is typed today."""
    command = str(record["command"])
    for old, new in RENAMED.items():
        command = command.replace(old, new)
    return command


def source(record: Mapping[str, Any]) -> str:
    """The command, commit, date, seeds and machine of a record."""
    machine, seeds = record["machine"], ", ".join(map(str, record["seeds"]))
    return (
        f"`{command_of(record)}` at commit `{record['commit']}` on {record['date']}, "
        f"{counted(len(record['seeds']), 'seed')} ({seeds}); robustfusion "
        f"{machine['robustfusion']}, torch {machine['torch']}, "
        f"{counted(machine['threads'], 'thread')}."
    )


def counted(number: int, thing: str) -> str:
    """A number with its noun, such as "1 seed" or "3 seeds"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def condition(key: str) -> str:
    """Words for a condition: ``"image C"`` and ``"fixed/image/C"`` are "image corrupted"."""
    if key == "clean":
        return "intact"
    modality, _, setting = key.removeprefix("fixed/").replace("/", " ").rpartition(" ")
    return f"{modality} {SETTINGS[setting]}" if setting in SETTINGS else key


def p_value(value: float | None) -> str:
    """A p-value to three digits; None belongs to the row that the others are compared with."""
    if value is None:
        return "best"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def canvas(
    lines: int = 1, columns: int = 1, size: tuple[float, float] = (5.6, 3.1), **axes: Any
) -> tuple[Any, Any]:
    """A figure of the house, and its panels as an array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, **axes)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, panels


Render = Callable[[], Blocks]
