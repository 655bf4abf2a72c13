"""The tables of the quality score on few samples, and on other corruptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from _pages import source, table
from _record import read_record

FEWEST = 225  # samples from which on the AUROC has a goal
AUROC, DETECTED, LEAST, MOST = 0.9, 0.8, 0.5, 1.6

Cell = tuple[str, str, int, int, Mapping[str, Any]]


def blocks() -> dict[str, list[str]]:
    """The blocks of the page."""
    record, other = read_record("quality"), read_record("other_corruptions")
    cells, rates = list(cells_of(record)), record["results"]["rates"]
    heads = ["samples", "epochs", "AUROC (least)"]
    heads += [f"alarms at {100 * rate:g} %" for rate in rates]
    head = ["goal", "cells that meet it", "farthest from it"]
    lines = {"goals": table(head, goals(cells, rates), left=(0, 2))}
    for data, modality in dict.fromkeys(cell[:2] for cell in cells):
        rows = [row(*c[2:], rates) for c in cells if c[:2] == (data, modality)]
        lines[f"{data}, {modality}"] = table([*heads, "masked detected at 5 %"], rows, left=())
    seconds = record["results"]["cpu_seconds"]
    lines["source"] = [f"{source(record)} It took {seconds} s of processor time."]
    body = (
        [modality, kind, f"{values['auroc']:.3f}", f"{100 * values['alarms']:.0f} %"]
        for modality, kinds in other["results"].items()
        for kind, values in kinds.items()
    )
    head = ["modality", "corruption", "AUROC", "detected at 5 %"]
    lines["other corruptions"] = [
        *table(head, body, left=(0, 1)),
        "",
        f"{other['data']}. {source(other)}",
    ]
    return lines


def cells_of(record: Mapping[str, Any]) -> Iterator[Cell]:
    """Every cell with its data, modality, samples and epochs."""
    for data, modalities in record["results"]["data"].items():
        for modality, by_rows in modalities.items():
            for rows, by_epochs in by_rows.items():
                for epochs, cell in by_epochs.items():
                    yield data, modality, int(rows), int(epochs), cell


def row(rows: int, epochs: int, cell: Mapping[str, Any], rates: list[float]) -> list[str]:
    """One line: a number of samples and of epochs."""
    return [
        f"{rows:,}",
        str(epochs),
        f"{cell['auroc']:.3f} ({cell['least auroc']:.3f})",
        *(f"{100 * cell[f'alarms {rate:g}']:.1f} %" for rate in rates),
        f"{100 * cell['detected']:.0f} %",
    ]


def goals(cells: list[Cell], rates: list[float]) -> Iterator[list[str]]:
    """Each goal of the score, how many cells meet it, and the worst of them."""
    enough = [cell for cell in cells if cell[2] >= FEWEST]
    yield goal(
        f"AUROC ≥ {AUROC:.2f}, from {FEWEST} samples on",
        enough,
        lambda cell: cell["auroc"] - AUROC,
        lambda cell: f"{cell['auroc']:.3f}",
    )
    for rate in rates:
        key = f"alarms {rate:g}"
        low, high = LEAST * 100 * rate, MOST * 100 * rate
        yield goal(
            f"alarms at {100 * rate:g} % on {low:g} to {high:g} % of intact samples",
            cells,
            lambda cell, key=key, rate=rate: min(
                cell[key] / rate - LEAST, MOST - cell[key] / rate
            ),
            lambda cell, key=key: f"{100 * cell[key]:.1f} %",
        )
    yield goal(
        f"masked samples detected at 5 % ≥ {100 * DETECTED:.0f} %, from {FEWEST} samples on",
        enough,
        lambda cell: cell["detected"] - DETECTED,
        lambda cell: f"{100 * cell['detected']:.0f} %",
    )
    yield goal(
        "an input that holds nothing always alarms",
        cells,
        lambda cell: -len(cell["silent"]),
        lambda cell: ", ".join(cell["silent"]) or "none is silent",
    )


def goal(
    what: str, cells: list[Cell], margin: Callable[..., float], words: Callable[..., str]
) -> list[str]:
    """A line of the table; the margin is not negative where the goal is met."""
    met = sum(margin(cell[-1]) >= 0 for cell in cells)
    data, modality, rows, epochs, worst = min(cells, key=lambda cell: margin(cell[-1]))
    place_words = f"{data}, {modality}, {rows:,} samples, {epochs} epoch{'s' * (epochs > 1)}"
    return [what, f"{met} of {len(cells)}", f"{words(worst)}: {place_words}"]
