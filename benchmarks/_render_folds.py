"""The page of the cross-validation, and what the README says to expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _record import read_record
from _render_compare import places

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "results" / "cross-validation.md"
TITLES = {
    "mvsa": "MVSA-Single, posts: image, text",
    "harmeme": "HarMeme, memes: image, text",
    "mvsa-mpnet": "MVSA-Single with MPNet-base",
    "harmeme-mpnet": "HarMeme with MPNet-base",
    "thirds": "Scikit-learn's digits in three parts",
    "fou-zer-mor": "UCI's digits in three views",
    "six-views": "UCI's digits in six views",
}
DROPOUTS = (0.1, 0.5, 0.7)  # tried for each rival, and for ours
HALF = ", half the epochs"


def trained(*names: str) -> tuple[str, ...]:
    """Heads in full training, and in one half as long."""
    return *names, *(name + HALF for name in names)


# Of each kind the page shows every cell of the one that is best where nothing is corrupted.
KINDS = {
    "concatenation": trained(*(f"concatenation, dropout {p}" for p in DROPOUTS)),
    "late": trained(*(f"late mean, dropout {p}" for p in DROPOUTS)),
    "default": trained("DRF"),
    "tuned": trained("DRF, dropout 0.1", "DRF", "DRF, dropout 0.7"),
    "voting": trained("DRF + votes", "DRF + votes, dropout 0.7"),
}
CELLS = {"clean": "all fine", "corrupted": "one poor", "missing": "one missing"}


def row(cells: list[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cells) + " |"


def gap(cell: dict[str, float]) -> str:
    """A difference with its standard error; bold from two of them on."""
    if not cell["error"]:
        return "the rival"
    text = f"{cell['difference']:+.1f} ± {cell['error']:.1f}"
    return f"**{text}**" if abs(cell["difference"]) >= 2 * cell["error"] else text


def best(heads: Mapping[str, Any], names: Sequence[str]) -> str:
    """The head of most accuracy on the intact and the incomplete samples."""

    def undisturbed(name: str) -> float:
        cells = [
            values["accuracy"]
            for cell, values in heads[name].items()
            if not cell.endswith(" C") and cell not in ("missing", "corrupted", "mean")
        ]
        return sum(cells) / len(cells)

    return max((name for name in names if name in heads), key=undisturbed)


def readme_lines() -> list[str]:
    """The table of the README and the sentence above it."""
    record, views = read_record("cross_validation"), digits()
    found = record["results"]["data"] | views["results"]["data"]
    found |= read_record("cross_validation_six")["results"]["data"]
    lines = [
        "Accuracy in %, frozen features, out of fold on training and validation samples. Rival:",
        "of concatenation with modality dropout and of late mean, each with dropouts of 0.1, 0.5",
        "and 0.7, on posts trained for 10 epochs or 5, the one that is best on intact and",
        "incomplete samples. Differences from it with their paired standard error, **bold** from",
        "two of them on: `DRFHead` as it is, tuned with the same dropouts, and with votes,",
        "`VotingHead(DRFHead(...))`, with 0.5 or 0.7; of each the training and dropout chosen as",
        "for the rival. In brackets the difference of macro-F1. One poor, one missing: means over",
        "the modalities.",
        f"`{record['command'].split(' --')[0]}` at commit `{record['commit']}`, digits at",
        f"`{views['commit']}`;",
        "[the whole page](docs/pages/results/cross-validation.md) has every cell.",
        "",
        row(["data (majority class)", "inputs", "rival", "DRF", "tuned", "with votes"]),
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, data in found.items():
        heads = data["heads"]
        ours = [best(heads, KINDS[kind]) for kind in ("default", "tuned", "voting")]
        for place, (cell, words) in enumerate(CELLS.items()):
            first = f"{TITLES[name]} ({data['majority']:.1f})" if place == 0 else ""
            rival = f"{heads[data['rival']][cell]['accuracy']:.1f}"
            gaps = (
                f"{gap(heads[head][cell])} ({heads[head][cell]['macro_f1_difference']:+.1f})"
                for head in ours
            )
            lines.append(row([first, words, rival, *gaps]))
    return [
        *lines,
        "",
        "Among the heads of the library and those of papers, all tuned by the same few trials,",
        "places by the mean of the three lines ([ranking](docs/pages/results/comparison.md)):",
        places(),
    ]


def each_cell(heads: Mapping[str, Any], rival: str) -> list[str]:
    """Accuracy in each cell, and what each head gains on the rival."""
    lines = [
        row(["cell", *(f"*{head}*" if head == rival else head for head in heads)]),
        "|---|" + "---:|" * len(heads),
    ]
    for cell in heads[rival]:
        parts = [cell]
        for head, cells in heads.items():
            gained = "" if head == rival else f"<br><small>{gap(cells[cell])}</small>"
            parts.append(f"{cells[cell]['accuracy']:.1f}{gained}")
        lines.append(row(parts))
    return lines


def means(heads: Mapping[str, Any]) -> list[str]:
    """What heads gain on the rival, and their macro-F1."""
    lines = [
        row(["head", *CELLS, "macro-F1 of these"]),
        "|---|" + "---:|" * (len(CELLS) + 1),
    ]
    for head, cells in heads.items():
        scores = " / ".join(f"{cells[cell]['macro_f1']:.1f}" for cell in CELLS)
        lines.append(row([head, *(gap(cells[cell]) for cell in CELLS), scores]))
    return lines


def render() -> None:
    """Write the page."""
    record = read_record("cross_validation")
    lines = [
        "# Heads out of fold",
        "",
        f"{record['results']['folds']} folds, near-duplicates in one fold, training and "
        "validation samples only: no test post was read. Features are frozen and standardised on "
        "the training folds. D: the modality is missing; C: corrupted; `only`: all others "
        "missing. Differences, below accuracies, are from a rival (*in italics*): of "
        "`ConcatenationHead(modality_dropout=0.5)` and `LateMeanHead`, each with dropouts of 0.1, "
        "0.5 and 0.7 and, on the posts with MiniLM, trained for 10 epochs or 5, the one that is "
        "best on the intact and the incomplete samples. Ours have the same to choose from. Of "
        "each kind of head the one that is best there is shown cell by cell, and of all others "
        "means. "
        "Behind ± is the standard error over samples (near-duplicates together); "
        "**bold** from two of them on. Weights of the default head are those of training; "
        "`DRF, calibrated` trains on 85 % of the samples and calls `calibrate` with the rest.",
        "",
        f"{origin(record)} What was chosen on these samples (depth, "
        "dropout, branches and stand-ins) was chosen by such tables: expect a little less.",
        *sections(record),
    ]
    lines += ["", "## Digits", "", "Trained for 60 epochs."]
    for found in (digits(), read_record("cross_validation_six")):
        lines += ["", origin(found), *sections(found, "###")]
    mpnet = read_record("cross_validation_mpnet")
    lines += [
        "",
        "## A larger text encoder",
        "",
        "The same posts with texts by MPNet-base (109 million parameters, 768 numbers a text; "
        f"MiniLM above has 23 million), trained for 10 epochs. {origin(mpnet)}",
        *sections(mpnet, "###"),
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def digits() -> dict[str, Any]:
    """The record of three views, without the posts that were measured anew since."""
    record = read_record("cross_validation_views")
    anew = read_record("cross_validation")["results"]["data"]
    data = {k: v for k, v in record["results"]["data"].items() if k not in anew}
    return {**record, "results": {**record["results"], "data": data}}


def origin(record: Mapping[str, Any]) -> str:
    """How and when the numbers were made."""
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"`{record['command']}` at commit `{record['commit']}` on {record['date']}, seeds {seeds}."
    )


def sections(record: Mapping[str, Any], level: str = "##") -> list[str]:
    """What was found on each data set."""
    lines = []
    for name, data in record["results"]["data"].items():
        told = ", ".join(f"{m} {value:.2f}" for m, value in data["r2"].items())
        heads = data["heads"]
        shown = dict.fromkeys(best(heads, names) for names in KINDS.values())
        lines += [
            "",
            f"{level} {TITLES[name]}",
            "",
            f"{data['samples']:,} samples, majority class {data['majority']:.1f} %. How much of "
            f"each modality the others tell (R² of ridge regression, held out): {told}.",
            "",
            *each_cell({head: heads[head] for head in shown}, data["rival"]),
            "",
            *means(heads),
        ]
    return lines


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
