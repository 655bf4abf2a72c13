"""The page of the comparison, from the records of `compare.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _data import SIX_VIEWS
from _heads import head_names
from _record import RESULTS, dated, read_record

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "results" / "comparison.md"
TITLES = {
    "six_views": "Digits in six views",
    "mvsa": "MVSA-Single",
}
FAMILIES = {
    "clean": "Trained on intact samples",
    "disrupted": "Trained with modalities missing",
}


class Published(NamedTuple):
    """A figure that others reported, in percent; `conflict` only where the protocol has it."""

    clean: float
    conflict: float | None
    source: str
    gap: str


_LINEAR = (
    "Its code scales views to 0 .. 1 on all rows, has one linear layer a view and trains 500 "
    "epochs. Here views are standardised on the training rows and have hidden layers. Which of "
    "these makes the difference was not measured."
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
    "six_views": {
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

_HOW = """# Comparison of all heads

All heads of `robustfusion.baselines`, those of
`benchmarks/reproductions`, `DRFHead` and `PaperDRFHead` on the same frozen features,
splits and disruptions.

- **Budget.** Each head has the same number of trials: its own defaults, then settings of
  learning rate, epochs, weight decay, width, dropout and (where it has it) modality dropout that
  were drawn once for all heads. The best mean accuracy over the conditions of the validation
  samples decides. No row of the validation samples is in a test. Where a head had fewer trials,
  its column says so.
- **Two tables a data set.** Training on intact samples (heads with a modality dropout of their
  own use it), and training on samples of which a share lacks one modality, with the settings
  chosen for the first table.
- **Score**: mean accuracy over the conditions, by which the rows are ranked; ± is the standard
  deviation over seeds.
- **p**: two-sided sign-flip test against the best row, over test samples; a sample's outcomes
  under all seeds and conditions count as one. Adjusted by Holm over the rows. A row with p above
  0.05 is not told apart from the best. The tests say nothing of other data sets.
- **Cost**: trainable parameters, and time beside `ConcatenationHead` at its defaults, one
  thread, by turns in one process.
- Heads that read tokens get one pooled vector a modality here, which takes their attention away.
"""

_NOTES = {
    "six_views": (
        "Random 80/20 split by seed. *noise*: Gaussian, standard deviation 0.5, on half of the "
        "views of each sample. *conflict*: the protocol of ECML, noise on 10 % of the samples "
        "and a view of another class in 40 %. *n missing*: n random views of each sample are "
        "missing. Text-led heads take the first view for the text."
    ),
    "mvsa": (
        "The pack's own split. **C** corrupts the named modality of every sample, **D** "
        "discards it, **C+D** does either. One test split of this size: a standard error of one"
        " accuracy is about two points, and differences between rows that are not significant "
        "should not be read. The score favours a text-only head: three conditions do not touch "
        "the text. Schedules are short (at most six epochs)."
    ),
}


def _percent(values: Any) -> str:
    return f"{100 * float(np.mean(values)):.1f}"


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
    results = record["results"]
    head = ["", "Head", "Score", "p", *results["conditions"], "Macro-F1, clean", "Trials"]
    body = [
        [
            str(place),
            name,
            f"{_percent(row['score'])} ± {100 * float(np.std(row['score'], ddof=1)):.1f}"
            if len(row["score"]) > 1
            else _percent(row["score"]),
            _p(row["p_value"]),
            *(_percent(row["accuracy"][condition]) for condition in results["conditions"]),
            _percent(row["macro_f1"]["clean"]),
            str(len(row["trials"])),
        ]
        for place, (name, row) in enumerate(results["rows"].items(), 1)
    ]
    return _table(head, body)


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
    for head, figures in PUBLISHED[name].items():
        row = record["results"]["rows"].get(head)
        if row is None:
            continue
        for figure in figures:
            conflict = row["accuracy"].get("conflict")
            body.append(
                [
                    head,
                    f"{figure.clean:.1f}",
                    _percent(row["accuracy"]["clean"]),
                    f"{figure.conflict:.1f}" if figure.conflict is not None else "",
                    _percent(conflict) if figure.conflict is not None and conflict else "",
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
    text = f"Best by score: **{names[0]}**"
    text += f"; not told apart from it: {', '.join(close)}." if close else "; all others differ."
    if "DRFHead" in rows:
        place = names.index("DRFHead") + 1
        text += f" `DRFHead` is number {place} of {len(names)}."
    clean = max(names, key=lambda name: float(np.mean(rows[name]["accuracy"]["clean"])))
    return text + f" On intact samples alone the highest accuracy is that of {clean}."


def render() -> str:
    """The whole page, of the records that are there."""
    lines = [_HOW.rstrip()]
    for name, title in TITLES.items():
        found = {
            family: read_record(f"compare_{name}_{family}")
            for family in FAMILIES
            if (RESULTS / f"compare_{name}_{family}.json").exists()
        }
        if not found:
            continue
        first = next(iter(found.values()))
        results = first["results"]
        lines += ["", f"## {title}", "", f"{first['data']}. {_NOTES[name]}", ""]
        lines += [
            f"Majority class {_percent(results['majority'])} %, {results['test_samples']} test "
            f"samples, {len(first['seeds'])} seeds."
        ]
        for family, record in found.items():
            rate = record["results"]["rate"]
            share = f" ({100 * rate:.0f} % of the samples lack one)" if rate else ""
            lines += ["", f"### {FAMILIES[family]}{share}", "", standing(record), ""]
            lines += scores(record)
            names = head_names(SIX_VIEWS if name == "six_views" else ("image", "text"))
            absent = [head for head in names if head not in record["results"]["rows"]]
            if absent:
                lines += ["", f"Not run: {', '.join(absent)}."]
        lines += ["", "### Cost and published figures", "", *costs(first)]
        lines += published(name, first)
        lines += ["", "Records, each with the last command of a run made in parts:", ""]
        lines += [
            f"- `benchmarks/results/compare_{name}_{family}.json`: `{record['command']}`, commit "
            f"{record['commit']}, {record['date']}, {record['machine']['processor']}, "
            f"torch {record['machine']['torch']}"
            for family, record in found.items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    first = min(RESULTS.glob("compare_*.json")).stem
    PAGE.write_text(dated(render(), read_record(first)))


if __name__ == "__main__":
    main()
