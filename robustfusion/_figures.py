"""Figures on `matplotlib.figure.Figure` objects with the Agg canvas: no window, no global state."""

from typing import Any

# Okabe and Ito's colors: told apart by every kind of color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def panels(count: int, width: float, height: float, columns: int = 4) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, at most `columns` beside each other."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "robustfusion[report]"') from error
    columns = min(count, columns)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
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
