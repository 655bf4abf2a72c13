"""Shared by the examples of this folder: the output folder and the style of the figures."""

import argparse
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "0.55"
sys.path.append(str(Path(__file__).parents[1]))  # so that main_job.posts can be imported


def output_dir(description: str | None) -> Path:
    """Read the output folder from the command line."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="for the figure")
    chosen: Path = parser.parse_args().output_dir
    return chosen


def new_figure(columns: int = 1, width: float = 6.0, **options: Any) -> tuple[Figure, Any]:
    """Make a figure with one or more panels in a row."""
    figure = Figure(figsize=(width, 3.4), layout="constrained", dpi=150)
    panels = figure.subplots(1, columns, **options)
    for panel in [panels] if columns == 1 else panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    return figure, panels


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Save a figure as PNG and print its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path)
    print(f"figure: {path}")
    return path
