"""Figures on `matplotlib.figure.Figure` objects: no window, no global state."""

from typing import Any

from robustfusion._optional import optional

# Okabe and Ito's colors: told apart by every kind of color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def panels(count: int, width: float, height: float, columns: int = 4) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, at most `columns` beside each other."""
    matplotlib = optional("matplotlib.figure", "plots need matplotlib", "report")
    columns = min(count, columns)
    lines = -(-count // columns)
    size = (width * columns, height * lines)
    figure = matplotlib.Figure(figsize=size, layout="constrained", dpi=150)
    found = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in found[count:]:
        figure.delaxes(spare)
    for panel in found[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, found[:count]


def legend(figure: Any, panel: Any, columns: int) -> None:
    """One legend for all panels, below them."""
    handles, labels = panel.get_legend_handles_labels()
    columns = min(len(labels), columns)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
