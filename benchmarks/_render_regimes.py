"""Tables on training with disrupted or damaged samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _pages import counted, source, table
from _record import read_record

TRAINED = {
    "intact": "intact",
    "C": "corrupted",
    "D": "missing",
    "C+D": "corrupted or missing",
}
TITLES = {"mvsa": "MVSA-Single", "harmeme": "HarMeme"}
WAYS = {
    "concatenation": ("concatenation", "intact"),
    "concatenation, damaged": ("concatenation", "damaged"),
    "intact": ("DRF", "intact"),
    "intact, trust": ("DRF + trust", "intact"),
    "damaged": ("DRF", "damaged"),
    "damaged, trust": ("DRF + trust", "damaged"),
}


def regimes() -> dict[str, list[str]]:
    """One table a data set: how heads trained on intact or disrupted samples compare."""
    record = read_record("regimes")
    lines: list[str] = []
    for data, rows in record["results"]["data"].items():
        body = [
            [TRAINED[regime], head, *(_cell(cells[key]) for key in ("intact", regime, "unseen"))]
            for regime, heads in rows.items()
            if regime != "intact"
            for head, cells in heads.items()
        ]
        intact = [
            [head, *(_cell(cells[key]) for key in ("intact", "C", "D", "C+D", "unseen"))]
            for head, cells in rows["intact"].items()
        ]
        lines += [
            f"{TITLES[data]}, trained on intact samples:",
            "",
            *table(["head", *TRAINED.values(), "other damage"], intact),
            "",
            f"{TITLES[data]}, trained on disrupted samples:",
            "",
            *table(["trained on", "head", "intact", "as trained", "other damage"], body, (0, 1)),
            "",
        ]
    return {"regimes": [*lines, f"{record['data'].capitalize()}. {source(record)}"]}


def damage_training() -> dict[str, list[str]]:
    """One table: trust, training on damage, and both."""
    record = read_record("damage_training")
    models = record["results"]["models"]
    body = []
    for name, (head, posts) in WAYS.items():
        without = {"damaged": "left out: damaged", "damaged, trust": "left out: damaged, trust"}
        without |= {
            "intact, trust": "left out: intact, trust",
            "concatenation, damaged": "left out: concatenation, damaged",
        }
        other = models[without.get(name, name)]
        body.append(
            [
                head,
                posts,
                *(_pair(models[name], group) for group in ("intact", "damaged")),
                _pair(other, "kinds left out"),
            ]
        )
    seeds = counted(len(record["seeds"]), "seed")
    return {
        "damage training": [
            *table(["model", "trained on", "intact", "damaged", "kinds left out"], body, (0, 1)),
            "",
            f"Accuracy / macro-F1 in %, means of {seeds} with own posts. {source(record)}",
        ]
    }


def _cell(scores: Mapping[str, float]) -> str:
    accuracy = f"{scores['accuracy']:.1f}"
    if scores["error"]:
        accuracy += f" ({scores['difference']:+.1f} ± {scores['error']:.1f})"
    return f"{accuracy} / {scores['macro_f1']:.1f}"


def _pair(scores: Mapping[str, Sequence[Any]], group: str) -> str:
    means = [np.mean(scores[f"{group}, {key}"]) for key in ("accuracy", "macro-F1")]
    return " / ".join(f"{value:.1f}" for value in means)
