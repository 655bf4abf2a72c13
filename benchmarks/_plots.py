"""The first picture of each page of results, and its numbers as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _damage_gallery
import _plots_more
import numpy as np
from _pages import canvas, condition
from _record import read_record
from _render_compare import OURS, TITLES, records
from _render_cross_validation import KINDS, best, data_sets
from _render_cross_validation import TITLES as DATA
from _render_quality import cells_of

# The same colors for the same heads on all pages; they differ for color-blind readers, too.
COLORS = {"DRFHead": "#0072B2", "NeighborVoteHead": "#E69F00", "others": "#4d4d4d"}
OUR_KINDS = {
    "default": ("DRFHead as it is", "#0072B2", "o"),
    "tuned": ("DRFHead, tuned like the baseline", "#56B4E9", "s"),
    "voting": ("with neighbor votes, tuned", "#E69F00", "^"),
}
CONDITIONS = {
    "clean": "nothing wrong",
    "corrupted": "one input corrupted",
    "missing": "one input missing",
}


def draw(assets: Path) -> None:
    """Draw every first picture and write its numbers."""
    draw_ranking(assets / "ranking.png")
    draw_differences(assets / "cross-validation.png")
    draw_quality(assets / "quality-samples.png")
    _damage_gallery.draw(assets / "damage-gallery.png")
    _plots_more.draw_paper(assets / "paper-tables.png")
    _plots_more.draw_monitor(assets / "monitor-delays.png")
    _plots_more.draw_recoverability(assets / "recoverability.png")
    write_csv(assets / "paper-tables.csv", _plots_more.paper_rows())
    write_csv(assets / "quality-samples.csv", _plots_more.quality_rows())
    write_csv(assets / "damage.csv", read_record("hero")["results"]["kinds"])
    draw_speed(assets / "speed.png")
    write_csv(assets / "ranking.csv", ranking_rows())
    write_csv(assets / "cross-validation.csv", difference_rows())


def draw_ranking(path: Path) -> None:
    """Mean accuracy of all heads, a panel a data set, with its interval."""
    every = records()
    names: dict[str, list[float]] = {}
    for record in every.values():
        rows = record["results"]["rows"]
        for rank, name in enumerate(rows):
            single = name.startswith("Only ") and name not in ("Only image", "Only text")
            if not single:
                names.setdefault(name, []).append(rank / len(rows))
    order = sorted(names, key=lambda name: -float(np.mean(names[name])))
    figure, panels = canvas(1, len(every), (10.5, 7.6), sharey=True)
    figure.suptitle("Mean accuracy on intact, corrupted and incomplete samples")
    for panel, (data, record) in zip(panels[0], every.items(), strict=True):
        results = record["results"]
        for y, name in enumerate(order):
            if name not in results["rows"]:
                continue
            row = results["rows"][name]
            color = COLORS.get(name, COLORS["others"])
            mean, reach = row["accuracy"]["mean"], 2 * row["error"]
            panel.errorbar(mean, y, xerr=reach, fmt="D", ms=4.5, lw=1.4, color=color)
        top = next(iter(results["rows"].values()))["accuracy"]["mean"]
        panel.axvline(top, color="0.4", lw=0.8, label="best head")
        panel.set(title=TITLES[data], xlabel="accuracy (%)")
        if results["majority"] > 20:
            panel.axvline(results["majority"], color="0.4", ls=":", label="majority class")
        else:  # the majority class would press all others into a corner
            panel.set_xlim(91.5, 98)
    panels[0][0].set(yticks=range(len(order)), yticklabels=order, ylim=(-0.7, len(order) - 0.3))
    for label, name in zip(panels[0][0].get_yticklabels(), order, strict=True):
        if name in OURS:
            label.set(color=COLORS[name], fontweight="bold")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def draw_differences(path: Path) -> None:
    """Difference from the baseline, a panel a condition, a line a data set."""
    latest = data_sets()
    figure, panels = canvas(1, len(CONDITIONS), (10.5, 4.6), sharey=True)
    figure.suptitle("Accuracy minus that of the best tuned baseline, ± 2 standard errors")
    names = list(latest)[::-1]
    for panel, (cell, words) in zip(panels[0], CONDITIONS.items(), strict=True):
        for y, name in enumerate(names):
            heads = latest[name][0]["heads"]
            for step, (kind, (label, color, marker)) in enumerate(OUR_KINDS.items()):
                values = heads[best(heads, KINDS[kind])][cell]
                panel.errorbar(
                    values["difference"],
                    y + 0.22 * (1 - step),
                    xerr=2 * values["error"],
                    fmt=marker,
                    ms=5,
                    lw=1.4,
                    color=color,
                    label=label if y == 0 else None,
                )
        panel.axvline(0, color="0.3", lw=1)
        panel.set(title=words, xlabel="difference (points)")
    titles = [DATA[name].partition(",")[0] for name in names]
    panels[0][0].set(yticks=range(len(names)), yticklabels=titles)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def draw_speed(path: Path) -> None:
    """Draw the time of each call of the head over that of a concatenation."""
    rows = [
        row
        for row in read_record("speed")["results"]["rows"]
        if "of DRFHead, image 1280" in row["what"]
        and row["reference"].startswith("ConcatenationHead")
        and "ms" in row
    ]
    figure, panels = canvas(size=(8.2, 3.2))
    panel, names = panels[0][0], []
    for y, row in enumerate(rows):
        call, _, rest = row["what"].partition(" of DRFHead, image 1280, text 384, ")
        names.append(f"{call}, {rest}")
        panel.barh(y, row["ratio"], color=COLORS["DRFHead"])
        text = f" {row['ms']:.3g} ms, concatenation {row['reference_ms']:.3g} ms"
        panel.text(row["ratio"], y, text, va="center", fontsize=8)
    panel.set(xlabel="times as long as a concatenation", yticks=range(len(rows)))
    panel.set(yticklabels=names, xlim=(0, 1.35 * max(row["ratio"] for row in rows)))
    panel.invert_yaxis()
    figure.savefig(path)


def draw_quality(path: Path) -> None:
    """AUROC and share of detected inputs over the number of training samples."""
    cells = list(cells_of(read_record("quality")))
    figure, panels = canvas(1, 2, (9.5, 3.9))
    colors = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00")
    for (data, modality), color in zip(
        dict.fromkeys(cell[:2] for cell in cells), colors, strict=True
    ):
        points = [cell[2:] for cell in cells if cell[:2] == (data, modality)]
        sizes = sorted({rows for rows, _, _ in points})
        for panel, key, scale in ((panels[0][0], "auroc", 1), (panels[0][1], "detected", 100)):
            values = np.array(
                [[scale * c[key] for rows, _, c in points if rows == size] for size in sizes]
            )
            panel.fill_between(sizes, values.min(1), values.max(1), color=color, alpha=0.2, lw=0)
            panel.plot(sizes, values.mean(1), "o-", ms=4, color=color, label=f"{data}, {modality}")
            panel.set(xscale="log", xlabel="training samples", xticks=[60, 225, 500, 1000, 3000])
            panel.set_xticklabels(["60", "225", "500", "1,000", "3,000"])
            panel.minorticks_off()
    panels[0][0].set(title="Intact and masked inputs separated", ylabel="AUROC", ylim=(0.75, 1))
    panels[0][1].set(title="Masked inputs that alarm", ylabel="share (%)", ylim=(0, 100))
    panels[0][1].axhline(5, color="0.4", ls=":", label="intact inputs (asked: 5 %)")
    handles, labels = panels[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def ranking_rows() -> Iterable[Mapping[str, Any]]:
    """Every number of the ranking, a line a condition."""
    for data, record in records().items():
        for name, row in record["results"]["rows"].items():
            for key, accuracy in row["accuracy"].items():
                numbers = {"accuracy": accuracy, "macro_f1": row["macro_f1"][key]}
                words = {"data": TITLES[data], "head": name, "condition": condition(key)}
                yield words | numbers | {"nll": row["nll"][key]}


def difference_rows() -> Iterable[Mapping[str, Any]]:
    """Every number of the cross-validation, a line a condition."""
    for data, (results, _) in data_sets().items():
        for name, cells in results["heads"].items():
            for key, values in cells.items():
                yield {"data": DATA[data], "head": name, "condition": condition(key), **values}


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of equal keys."""
    lines: Sequence[Mapping[str, Any]] = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
