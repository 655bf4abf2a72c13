"""Figures on `matplotlib.figure.Figure` objects, which open no window and have no global state."""

from typing import Any

from robustfusion._optional import optional

# Okabe and Ito's colors, which people with any kind of color vision can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def panels(count: int, width: float, height: float, columns: int = 4) -> tuple[Any, list[Any]]:
    """Return a figure with `count` panels, at most `columns` in a line."""
    matplotlib = optional("matplotlib.figure", "plots need matplotlib", "report")
    columns = min(count, columns)
    lines = -(-count // columns)
    size = (width * columns, height * lines)
    figure = matplotlib.Figure(figsize=size, layout="constrained", dpi=150)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in axes[count:]:
        figure.delaxes(spare)
    for panel in axes[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, axes[:count]


def legend(figure: Any, panel: Any, columns: int) -> None:
    """Draw one legend for all panels, below them."""
    handles, labels = panel.get_legend_handles_labels()
    columns = min(len(labels), columns)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
