"""The page of the cross-validation, and what the README says to expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _record import read_record

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "results" / "cross-validation.md"
RIVALS = ("concatenation + dropout", "concatenation + dropout, regularized", "late mean")
TITLES = {
    "mvsa": "MVSA-Single, posts: image, text",
    "harmeme": "HarMeme, memes: image, text",
    "mvsa-mpnet": "MVSA-Single with MPNet-base",
    "harmeme-mpnet": "HarMeme with MPNet-base",
    "thirds": "Scikit-learn's digits in three parts",
    "fou-zer-mor": "UCI's digits in three views",
    "six-views": "UCI's digits in six views",
}
MAIN = (*RIVALS, "DRF", "DRF + votes")  # each cell of these; of others, means
CELLS = {"clean": "all fine", "corrupted": "one poor", "missing": "one missing"}


def row(cells: list[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def gap(cell: dict[str, float]) -> str:
    """A difference with its standard error; bold from two of them on."""
    text = f"{cell['difference']:+.1f} ± {cell['error']:.1f}"
    return f"**{text}**" if abs(cell["difference"]) >= 2 * cell["error"] else text


def readme_lines() -> list[str]:
    """The table of the README and the sentence above it."""
    record = read_record("cross_validation")
    lines = [
        "Accuracy in %, frozen features, out of fold on training and validation samples. Rival:",
        "the simple head that is hardest to beat there, of concatenation with modality dropout,",
        "with a dropout of 0.1 or 0.5, and late mean. Votes: `VotingHead(DRFHead(...))`. Means",
        "over the modalities that are corrupted or missing; differences from the rival with their",
        "paired standard error, **bold** from two of them on.",
        f"`{record['command'].split(' --')[0]}` at commit `{record['commit']}`;",
        "[the whole page](docs/pages/results/cross-validation.md) has every cell.",
        "",
        row(["data (majority class)", "inputs", "rival", "DRF", "Δ", "with votes", "Δ"]),
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, data in record["results"]["data"].items():
        rival = data["heads"][data["rival"]]
        ours = [data["heads"][head] for head in ("DRF", "DRF + votes")]
        for place, (cell, words) in enumerate(CELLS.items()):
            first = f"{TITLES[name]} ({data['majority']:.1f})" if place == 0 else ""
            lines.append(
                row(
                    [
                        first,
                        words,
                        f"{rival[cell]['accuracy']:.1f}",
                        *(
                            text
                            for head in ours
                            for text in (f"{head[cell]['accuracy']:.1f}", gap(head[cell]))
                        ),
                    ]
                )
            )
    return lines


def each_cell(heads: Mapping[str, Any], rival: str) -> list[str]:
    """Accuracy in each cell, and what each head gains on the rival."""
    lines = [
        row(["cell", *(f"{head} | Δ" if head != rival else f"*{head}*" for head in heads)]),
        "|---|" + "---:|" * (2 * len(heads) - 1),
    ]
    for cell in heads[rival]:
        parts = [cell]
        for head, cells in heads.items():
            parts.append(f"{cells[cell]['accuracy']:.1f}")
            if head != rival:
                parts.append(gap(cells[cell]))
        lines.append(row(parts))
    return lines


def means(heads: Mapping[str, Any]) -> list[str]:
    """What variants of the default gain on the rival, and their macro-F1."""
    lines = [
        row(["variant", *CELLS, "macro-F1 of these"]),
        "|---|" + "---:|" * (len(CELLS) + 1),
    ]
    for head, cells in heads.items():
        scores = " / ".join(f"{cells[cell]['macro_f1']:.1f}" for cell in CELLS)
        lines.append(row([head, *(gap(cells[cell]) for cell in CELLS), scores]))
    return lines


def render() -> None:
    """Write the page."""
    record = read_record("cross_validation")
    results = record["results"]
    lines = [
        "# Heads out of fold",
        "",
        f"{results['folds']} folds, near-duplicates in one fold, training and validation samples "
        "only: no test post was read. Features are frozen and standardised on the training folds; "
        "every head gets the same training. D: the modality is missing; C: corrupted; `only`: all "
        "others missing. Differences are from a rival (*in italics*): of "
        "`ConcatenationHead(modality_dropout=0.5)`, with its dropout of 0.1 and with 0.5, and "
        "`LateMeanHead` that which is best on the intact and the incomplete samples. Behind ± is "
        "their standard error over samples (near-duplicates together); "
        "**bold** from two of them on. Weights of the default head are those of training; "
        "`DRF, calibrated` trains on 85 % of the samples and calls `calibrate` with the rest.",
        "",
        f"`{record['command']}` at commit `{record['commit']}` on {record['date']}, seeds "
        f"{', '.join(map(str, record['seeds']))}. What was chosen on these samples (depth, "
        "dropout, branches and stand-ins) was chosen by such tables: expect a little less.",
    ]
    for name, data in results["data"].items():
        told = ", ".join(f"{m} {value:.2f}" for m, value in data["r2"].items())
        lines += [
            "",
            f"## {TITLES[name]}",
            "",
            f"{data['samples']:,} samples, majority class {data['majority']:.1f} %. How much of "
            f"each modality the others tell (R² of ridge regression, held out): {told}.",
            "",
            *each_cell({head: data["heads"][head] for head in MAIN}, data["rival"]),
        ]
        others = {head: rows for head, rows in data["heads"].items() if head not in MAIN}
        if others:
            lines += ["", *means({"DRF": data["heads"]["DRF"], **others})]
    PAGE.write_text("\n".join(lines) + "\n")


def retrofit_lines() -> list[str]:
    """What the README says of weighing two heads that are there already."""
    record = read_record("retrofit")
    rows = record["results"]["accuracy"]
    cells = list(next(iter(rows.values())))
    return [
        f"Measured, accuracy in %: {record['data']};",
        f"`{record['command'].split(' --')[0]}` at commit `{record['commit']}`. C: the modality",
        "is corrupted, D: missing. With a corrupted text the plain mean is better: even that one",
        "tells more than the image alone.",
        "",
        row(["", *cells]),
        "|---|" + "---:|" * len(cells),
        *(
            row([name, *(f"{value:.1f}" for value in values.values())])
            for name, values in rows.items()
        ),
    ]
