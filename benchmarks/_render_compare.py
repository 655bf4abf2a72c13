"""The page of the comparison, from the records of `compare.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from _heads import head_names
from _record import RESULTS, counted, read_record

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "results" / "comparison.md"
TITLES = {
    "mvsa": "MVSA-Single",
    "harmeme": "HarMeme",
    "six-views": "Digits in six views",
    "fou-zer-mor": "Digits in three views",
    "thirds": "Digits in three parts",
}
OURS = ("VotingHead", "DRFHead")


class Published(NamedTuple):
    """A figure that others reported, in percent; `conflict` only where the protocol has it."""

    clean: float
    conflict: float | None
    source: str
    gap: str


_LINEAR = (
    "Its code scales views to 0 .. 1 on all rows, has one linear layer a view and trains 500 "
    "epochs on four fifths of the rows. Here views are standardised on the training rows, two "
    "thirds of all, and have hidden layers. Which of these makes the difference was not measured."
)
_OTHER = "Preprocessing, networks and splits differ; not traced further."
_CODE = "an earlier run of ECML's code, three seeds; not run again here"
_MEMORY = "quoted from memory, not checked against the paper"
_FROZEN = (
    "They fine-tune both encoders and read tokens and patches. Here encoders are small and "
    "frozen, and each modality is one pooled vector. Posts and splits differ too."
)
_TABLE = "table 3 of the paper of DRF"

PUBLISHED: dict[str, dict[str, tuple[Published, ...]]] = {
    "six-views": {
        "ECML": (
            Published(97.1, 92.9, _CODE, _LINEAR),
            Published(
                99.4,
                94.4,
                f"AAAI 2024; {_MEMORY}",
                f"{_OTHER} The run of its code fell short of it too.",
            ),
        ),
        "TMC": (
            Published(98.51, None, f"ICLR 2021; {_MEMORY}", _OTHER),
            Published(98.51, 92.76, f"AAAI 2024; {_MEMORY}", _OTHER),
        ),
        "ETMC": (Published(98.75, None, f"TPAMI 2023; {_MEMORY}", _OTHER),),
    },
    "mvsa": {
        "HSAN": (Published(69.9, None, _TABLE, _FROZEN),),
        "MVAN": (Published(73.0, None, _TABLE, _FROZEN),),
        "MGNNS": (Published(73.8, None, _TABLE, _FROZEN),),
        "CLMLF": (Published(75.3, None, _TABLE, _FROZEN),),
        "MVCN": (Published(76.1, None, _TABLE, _FROZEN),),
        "PaperDRFHead": (Published(76.5, None, _TABLE, _FROZEN),),
    },
}

HOW = """- **Out of fold.** Each head is trained on all folds but one and predicts that one.
  Near-duplicates lie in one fold; samples of a test split are left out.
- **Budget.** Each head has the same number of trials: its own defaults, then settings of learning
  rate, epochs, weight decay, width, dropout and (where it has it) modality dropout that were drawn
  once for all heads. The setting that is used for a fold is the best on the other folds.
- **Mean**, by which the rows are ranked: of the accuracy on intact samples, the mean over the
  cells with a modality **missing** (each; from three on also each alone) and the mean over those
  with one **corrupted**.
- **Behind the best**: paired difference of that mean with its standard error over samples, and p,
  two-sided, adjusted by Holm over the rows. A row with p above 0.05 is *not told apart* from the
  best. The tests say nothing of other data sets, nor of other trainings.
- **Cost**: trainable parameters, and time beside `ConcatenationHead` at its defaults, one
  thread, by turns in one process.
- Heads that read tokens get one pooled vector a modality here, which takes their attention away.
"""

_TITLE = """# Comparison of all heads

All heads of `robustfusion.baselines`, those of `benchmarks/reproductions`, `DRFHead` and
`PaperDRFHead` (its features scaled to a deviation of 0.4) on the same frozen features, folds and
disruptions.

"""


def _p(value: float | None) -> str:
    if value is None:
        return "best"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    words = ("Head", "Source", "What differs")
    rule = ["---" if column in words else "---:" for column in head]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]


def scores(record: Mapping[str, Any]) -> list[str]:
    """The ranked table of accuracies."""
    rows = record["results"]["rows"]
    parts = [
        part for part in ("clean", "missing", "corrupted") if part in _first(rows)["accuracy"]
    ]
    head = ["", "Head", "Mean", "Behind the best", "p", *parts, "Macro-F1", "NLL"]
    body = [
        [
            str(place),
            name,
            f"{row['accuracy']['mean']:.1f}",
            "" if row["p_value"] is None else f"{row['difference']:.1f} ± {row['error']:.1f}",
            _p(row["p_value"]),
            *(f"{row['accuracy'][part]:.1f}" for part in parts),
            f"{row['macro_f1']['mean']:.1f}",
            f"{row['nll']['mean']:.2f}",
        ]
        for place, (name, row) in enumerate(rows.items(), 1)
    ]
    return _table(head, body)


def each_cell(record: Mapping[str, Any]) -> list[str]:
    """Accuracy in every cell."""
    rows, cells = record["results"]["rows"], record["results"]["cells"]
    body = [
        [name, *(f"{row['accuracy'][cell]:.1f}" for cell in cells)] for name, row in rows.items()
    ]
    return _table(["Head", *cells], body)


def _first(rows: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(iter(rows.values()))
    return found


def costs(record: Mapping[str, Any]) -> list[str]:
    """Parameters and times, cheapest training first."""
    rows = sorted(record["results"]["rows"].items(), key=lambda item: item[1]["training_ratio"])
    head = ["Head", "Parameters", "µs a sample", "Inference, ratio", "Training step, ratio"]
    body = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['microseconds']:.0f}",
            f"{row['inference_ratio']:.1f}",
            f"{row['training_ratio']:.1f}",
        ]
        for name, row in rows
    ]
    return _table(head, body)


def published(name: str, record: Mapping[str, Any]) -> list[str]:
    """Our figures beside those that others reported."""
    body = []
    for head, figures in PUBLISHED.get(name, {}).items():
        row = record["results"]["rows"].get(head)
        if row is None:
            continue
        for figure in figures:
            conflict = row["accuracy"].get("conflict")
            body.append(
                [
                    head,
                    f"{figure.clean:.1f}",
                    f"{row['accuracy']['clean']:.1f}",
                    f"{figure.conflict:.1f}" if figure.conflict is not None else "",
                    f"{conflict:.1f}" if figure.conflict is not None and conflict else "",
                    figure.source,
                    figure.gap,
                ]
            )
    if not body:
        return []
    columns = [
        "Head",
        "Clean, published",
        "Clean, here",
        "Conflict, published",
        "Conflict, here",
        "Source",
        "What differs",
    ]
    return ["", "Beside published figures:", "", *_table(columns, body)]


def standing(record: Mapping[str, Any]) -> str:
    """One sentence: who is best, who cannot be told apart, where `DRFHead` stands."""
    rows: dict[str, Any] = record["results"]["rows"]
    names = list(rows)
    close = [name for name in names[1:] if rows[name]["p_value"] >= 0.05]
    text = f"Best by the mean: **{names[0]}**"
    text += f"; not told apart from it: {', '.join(close)}." if close else "; all others differ."
    if "DRFHead" in rows:
        place = names.index("DRFHead") + 1
        text += f" `DRFHead` is number {place} of {len(names)}."
    clean = max(names, key=lambda name: rows[name]["accuracy"]["clean"])
    return text + f" On intact samples alone the highest accuracy is that of {clean}."


def places() -> str:
    """Where our two heads stand, for the README: a line a data set."""
    found = []
    for name, record in records().items():
        rows = record["results"]["rows"]
        order = list(rows)
        ours = ", ".join(f"`{head}` {order.index(head) + 1}" for head in OURS if head in order)
        close = sum(row["p_value"] >= 0.05 for row in rows.values() if row["p_value"] is not None)
        shared = f", {close} not told apart from the first" if close else ""
        found.append(f"{TITLES[name]}: {ours} of {len(order)}{shared}")
    return ";\n".join(found) + "."


def where_from(record: Mapping[str, Any]) -> str:
    """The command, the commit and the machine of a record."""
    return (
        f"`{record['command']}`, commit {record['commit']}, {record['date']}, "
        f"{record['machine']['processor']}, torch {record['machine']['torch']}."
    )


def render() -> str:
    """The whole page, of the records that are there."""
    lines = [_TITLE + HOW.rstrip()]
    for name, record in records().items():
        results = record["results"]
        lines += [
            "",
            f"## {TITLES[name]}",
            "",
            f"{record['data']}. {results['samples']:,} samples, majority class "
            f"{results['majority']:.1f} %; {results['folds']} folds, "
            f"{counted(len(record['seeds']), 'seed')}, {results['trials']} trials a head.",
            "",
            standing(record),
            "",
            *scores(record),
        ]
        names = head_names(tuple(results["modalities"]))
        absent = [head for head in names if head not in results["rows"]]
        if absent:
            lines += ["", f"Not run: {', '.join(absent)}."]
        lines += ["", "### Each cell", "", *each_cell(record)]
        lines += ["", "### Cost and published figures", "", *costs(record)]
        lines += published(name, record)
        lines += ["", where_from(record)]
    return "\n".join(lines) + "\n"


def records() -> dict[str, dict[str, Any]]:
    """The records that are there, by data set."""
    names = [name for name in TITLES if (RESULTS / f"compare_{name}.json").exists()]
    return {name: read_record(f"compare_{name}", RESULTS) for name in names}


def main() -> None:
    """Write the page."""
    PAGE.write_text(render())
