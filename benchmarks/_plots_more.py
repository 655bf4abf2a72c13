"""Pictures of the paper's tables, of the drift monitor and of what can be recovered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _pages import canvas, condition
from _record import read_record
from _render_cross_validation import TITLES, data_sets
from _render_paper import FIXED, WHOLE

STYLES = {
    "DRFHead": ("#0072B2", "o"),
    WHOLE: ("#CC79A7", "D"),
    "Concatenation + modality dropout": ("#D55E00", "s"),
    "Concatenation": ("#4d4d4d", "x"),
}
WAYS = {
    "references": ("with references", "#0072B2", "o"),
    "own past": ("own past", "#D55E00", "s"),
    "with a margin": ("with a margin", "#4d4d4d", "^"),
}


def draw_paper(path: Path) -> None:
    """Accuracy of four heads in the conditions of Tables 1 and 3."""
    results = read_record("mvsa")["results"]
    keys = ("clean", *FIXED)
    figure, panels = canvas(size=(9, 4.2))
    panel = panels[0][0]
    for step, (head, (color, marker)) in enumerate(STYLES.items()):
        scores = results["rows"][head]["scores"]
        values = [100 * np.array(scores[key]["accuracy"]) for key in keys]
        means = [runs.mean() for runs in values]
        reach = [2 * runs.std(ddof=1) / len(runs) ** 0.5 for runs in values]
        x = np.arange(len(keys)) + 0.14 * (step - 1.5)
        panel.errorbar(x, means, yerr=reach, fmt=marker, ms=6, lw=1.2, color=color, label=head)
    seeds = len(results["rows"]["DRFHead"]["seeds"])
    majority = 100 * results["majority"]["accuracy"]
    panel.axhline(majority, color="0.4", ls=":", label="most frequent class")
    words = [condition(key).replace(" ", "\n", 1).replace("or ", "or\n") for key in keys]
    panel.set(xticks=range(len(keys)), xticklabels=words, ylabel="accuracy (%)")
    panel.grid(visible=False, axis="x")
    figure.suptitle(f"MVSA-Single, frozen encoders: mean over {seeds} seeds ± 2 standard errors")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def draw_monitor(path: Path) -> None:
    """Draw the posts from a change to the alarm of the monitor, for each change and way."""
    posts = read_record("monitor")["results"]["posts"]
    keys = [key.split("/")[1:] for key in posts["delays"] if key.startswith("references/")][::-1]
    figure, panels = canvas(size=(9, 0.5 * len(keys) + 1.6))
    panel = panels[0][0]
    for step, (way, (label, color, marker)) in enumerate(WAYS.items()):
        named = False
        for y, (change, share) in enumerate(keys):
            cell = posts["delays"][f"{way}/{change}/{share}"]
            height = y + 0.24 * (1 - step)
            if cell["found"] < posts["streams"]:
                words = f"{label}: found in {cell['found']} of {posts['streams']} streams"
                panel.text(1.1, height, words, color=color, fontsize=8, va="center")
                continue
            span = [[0.0], [cell["latest"] - cell["median"]]]
            text = None if named else f"{label}: median, line to the latest stream"
            panel.errorbar(
                cell["median"], height, xerr=span, fmt=marker, ms=6, color=color, label=text
            )
            named = True
    panel.axvline(0, color="0.2", lw=2)
    panel.set_xscale("symlog", linthresh=10, linscale=0.6)
    ticks = (0, 10, 30, 100, 300, 1000, 3000)
    panel.set(
        xlim=(-2, 3000),
        xticks=ticks,
        xticklabels=["change\nbegins", *(f"{tick:,}" for tick in ticks[1:])],
        xlabel="posts from the change to the alarm",
        yticks=range(len(keys)),
        yticklabels=[f"{change}, {100 * float(share):g} % of the posts" for change, share in keys],
    )
    panel.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def draw_recoverability(path: Path) -> None:
    """R² of each modality from the others, a line a data set."""
    rows = [(TITLES[name], data["r2"]) for name, (data, _) in data_sets().items()]
    grid = np.full((len(rows), max(len(r2) for _, r2 in rows)), np.nan)
    figure, panels = canvas(size=(9, 0.5 * len(rows) + 1.2))
    panel = panels[0][0]
    for y, (_, r2) in enumerate(rows):
        for x, (modality, value) in enumerate(r2.items()):
            grid[y, x] = max(value, 0.0)
            color = "white" if value > 0.5 else "black"
            panel.text(x, y, f"{modality} {value:.2f}", ha="center", va="center", color=color)
    image = panel.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.grid(visible=False)
    panel.set(yticks=range(len(rows)), yticklabels=[title for title, _ in rows], xticks=[])
    panel.set_title("How much of a modality the others predict (R²; 1 is all)")
    figure.colorbar(image, ax=panel)
    figure.savefig(path)


def paper_rows() -> Iterable[Mapping[str, Any]]:
    """Every number of the paper's tables, a line a text encoder, head, condition and seed."""
    for name, encoder in (("mvsa", "MiniLM"), ("mvsa_mpnet", "MPNet-base")):
        for head, row in read_record(name)["results"]["rows"].items():
            for key, scores in row["scores"].items():
                for index, seed in enumerate(row["seeds"][: len(scores["accuracy"])]):
                    words = {"texts": encoder, "head": head, "condition": key, "seed": seed}
                    yield words | {metric: values[index] for metric, values in scores.items()}


def quality_rows() -> Iterable[Mapping[str, Any]]:
    """Every number of the score on few samples."""
    for data, modalities in read_record("quality")["results"]["data"].items():
        for modality, by_rows in modalities.items():
            for rows, by_epochs in by_rows.items():
                for epochs, cell in by_epochs.items():
                    words = {"data": data, "modality": modality, "samples": rows}
                    silent = "; ".join(cell["silent"])
                    yield words | {"epochs": epochs} | cell | {"silent": silent}
