"""Tables on training with disrupted samples."""

from __future__ import annotations

from collections.abc import Mapping

from _pages import folded, source, table
from _record import read_record

TRAINED = {
    "intact": "intact",
    "C": "corrupted",
    "D": "missing",
    "C+D": "corrupted or missing",
}
TITLES = {"mvsa": "MVSA-Single", "harmeme": "HarMeme"}


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
            *folded(
                f"{TITLES[data]}, trained on intact posts",
                table(["head", *TRAINED.values(), "other damage"], intact),
            ),
            "",
            *folded(
                f"{TITLES[data]}, trained on disrupted posts",
                table(
                    ["trained on", "head", "intact", "as trained", "other damage"], body, (0, 1)
                ),
            ),
            "",
        ]
    return {"regimes": [*lines, f"{record['data'].capitalize()}. {source(record)}"]}


def _cell(scores: Mapping[str, float]) -> str:
    accuracy = f"{scores['accuracy']:.1f}"
    if scores["error"]:
        accuracy += f" ({scores['difference']:+.1f} ± {scores['error']:.1f})"
    return f"{accuracy} / {scores['macro_f1']:.1f}"
