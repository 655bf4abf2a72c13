"""The page of the quality score on few rows and many epochs, from `results/quality.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _record import RESULTS, dated, read_record

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "results" / "quality.md"
FEWEST = 225  # rows from which on the AUROC has a goal
AUROC, DETECTED, LEAST, MOST = 0.9, 0.8, 0.5, 1.6

Cell = tuple[str, str, int, int, Mapping[str, Any]]


def render() -> None:
    """Write the page."""
    record = read_record("quality")
    PAGE.write_text(dated(page(record), record))


def cells(record: Mapping[str, Any]) -> Iterator[Cell]:
    """Every cell with its data, modality, rows and epochs."""
    for data, modalities in record["results"]["data"].items():
        for modality, by_rows in modalities.items():
            for rows, by_epochs in by_rows.items():
                for epochs, cell in by_epochs.items():
                    yield data, modality, int(rows), int(epochs), cell


def page(record: Mapping[str, Any]) -> str:
    """The page."""
    lines = [
        "# Quality on few rows",
        "",
        "Does the quality score still tell anything when there are few training rows, or when it "
        "has seen them many times? Can its alarms be counted on? For each modality by itself a "
        "`NeighborQualityEstimator` sees n rows of frozen features for a number of epochs and is "
        "calibrated on intact rows that it was never trained on. AUROC is the probability that "
        "an intact unseen row scores above a masked one (40 to 80 % of the pixels or words, the "
        "paper's corruption); an alarm is a p-value of at most the rate. Each seed draws 450 "
        "posts to calibrate on and 450 others to test on, from all of a data set; no label is "
        "read.",
        "",
        "## Goals",
        "",
        "| goal | cells that meet it | farthest from it |",
        "|---|---:|---|",
        *goals(list(cells(record)), record["results"]["rates"]),
        "",
        "A cell is one line of the tables below. Rates of alarms on intact rows are those of one "
        "set of references and of 450 test rows for each seed: at 1 % one row is a fifth of the "
        "rate.",
    ]
    for data, modalities in record["results"]["data"].items():
        for modality in modalities:
            lines += ["", f"## {data}, {modality}", "", *table(record, data, modality)]
    lines += [
        "",
        f"Means over {len(record['seeds'])} seeds. Zeros, the mean of the training rows, ones, "
        "NaN, inf and 1e9 are given as inputs that hold nothing; the last column names those "
        "that did not alarm at 5 % under every seed.",
        "",
        f"`benchmarks/results/quality.json`: `{record['command']}`, commit {record['commit']}, "
        f"{record['date']}; {record['data']}; {record['results']['cpu_seconds']} s of CPU, torch "
        f"{record['machine']['torch']}.",
    ]
    return "\n".join([*lines, *unseen()]) + "\n"


def unseen() -> list[str]:
    """What other corruptions the score sees, if there is a record of it."""
    if not (RESULTS / "unseen.json").exists():
        return []
    record = read_record("unseen")
    return [
        "",
        "## Other corruptions",
        "",
        "Intact test posts against the same posts corrupted in ways that the paper does not have: "
        "AUROC of the score, and the share that alarms at 5 %.",
        "",
        "| modality | corruption | AUROC | found at 5 % |",
        "|---|---|---:|---:|",
        *(
            f"| {modality} | {kind} | {row['auroc']:.3f} | {100 * row['alarms']:.0f} % |"
            for modality, kinds in record["results"].items()
            for kind, row in kinds.items()
        ),
        "",
        f"`{record['command']}` at commit `{record['commit']}`, {record['date']}; "
        f"{record['data']}; frozen EfficientNet-Lite0 and MiniLM-L6.",
    ]


def table(record: Mapping[str, Any], data: str, modality: str) -> list[str]:
    """One line for each number of rows and epochs."""
    rates = record["results"]["rates"]
    heads = [f"alarms at {100 * rate:g} %" for rate in rates]
    lines = [
        f"| n | epochs | AUROC (least) | {' | '.join(heads)} | masked found at 5 % | silent |",
        "|---:" * (len(heads) + 4) + "|---|",
    ]
    for _, _, rows, epochs, cell in (c for c in cells(record) if c[:2] == (data, modality)):
        alarms = [f"{100 * cell[f'alarms {rate:g}']:.1f} %" for rate in rates]
        lines.append(
            f"| {rows:,} | {epochs} | {cell['auroc']:.3f} ({cell['least auroc']:.3f}) | "
            f"{' | '.join(alarms)} | {100 * cell['detected']:.0f} % | "
            f"{', '.join(cell['silent'])} |"
        )
    return lines


def goals(found: list[Cell], rates: list[float]) -> Iterator[str]:
    """Each goal of the score, how many cells meet it, and the worst of them."""
    enough = [cell for cell in found if cell[2] >= FEWEST]
    yield goal(
        f"AUROC ≥ {AUROC:.2f}, n ≥ {FEWEST}",
        enough,
        lambda cell: cell["auroc"] - AUROC,
        lambda cell: f"{cell['auroc']:.3f}",
    )
    for rate in rates:
        key = f"alarms {rate:g}"
        yield goal(
            f"alarms at {100 * rate:g} % on {LEAST * 100 * rate:g} to {MOST * 100 * rate:g} % of "
            "intact rows",
            found,
            lambda cell, key=key, rate=rate: min(
                cell[key] / rate - LEAST, MOST - cell[key] / rate
            ),
            lambda cell, key=key: f"{100 * cell[key]:.1f} %",
        )
    yield goal(
        f"masked rows found at 5 % ≥ {100 * DETECTED:.0f} %, n ≥ {FEWEST}",
        enough,
        lambda cell: cell["detected"] - DETECTED,
        lambda cell: f"{100 * cell['detected']:.0f} %",
    )
    yield goal(
        "what holds nothing always alarms",
        found,
        lambda cell: -len(cell["silent"]),
        lambda cell: ", ".join(cell["silent"]) or "none is silent",
    )


def goal(what: str, found: list[Cell], margin: Any, shown: Any) -> str:
    """A line of the table; the margin is not negative where the goal is met."""
    met = sum(margin(cell[-1]) >= 0 for cell in found)
    data, modality, rows, epochs, worst = min(found, key=lambda cell: margin(cell[-1]))
    return (
        f"| {what} | {met} of {len(found)} | {shown(worst)}: {data}, {modality}, n = {rows:,}, "
        f"{epochs} epoch{'s' if epochs > 1 else ''} |"
    )


if __name__ == "__main__":
    render()
