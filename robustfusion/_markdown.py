"""Markdown tables, which several reports write."""

from collections.abc import Sequence


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    r"""Return the lines of a Markdown table, the last one empty; bars in cells are escaped.

    >>> table(["kind", "share"], [["a|b", "0.5"]])
    ['| kind | share |', '|---|---|', '| a\\|b | 0.5 |', '']
    """
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (head, *body)]
    lines = [f"| {' | '.join(line)} |" for line in rows]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]
