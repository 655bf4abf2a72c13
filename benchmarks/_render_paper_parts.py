"""Tables and figures on the paper's head alone: four of its choices, and the scale of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _pages import canvas, condition, source, table
from _record import read_record
from ablate_paper import EPOCHS, TRAINED, WAYS

EARLY = 30  # an epoch of the encoders in the table, besides the last
IMAGE, TEXT, BOTH = "#0b6e99", "#b5541c", "#4d4d4d"
RULES = {"admit_above_mean": "(13)", "admit_all": "all enter"}
SCALES = {
    "spherical": "one number a modality, σ = 0.4",
    "none": "as the encoders give them",
    "diag": "deviation 1 of each coordinate",
}


def choices() -> dict[str, list[str]]:
    """The blocks on four choices."""
    record = read_record("ablate_paper")
    results = record["results"]
    rows: dict[str, list[tuple[str, str]]] = {}
    width, last = results["weights"]["widths"][-1], results["weights"]["quantiles"][-1][1]
    rows["weights"] = [
        (f"median, {width} coordinates of each modality", f"{last:.1e}"),
        ("median, all coordinates", f"{results['weights']['whole']:.1e}"),
    ]
    for m in ("image", "text"):
        for rule, words in RULES.items():
            curves = [run[rule][m] for run in results["admission"]]
            admitted = _mean([curve["admitted"] for curve in curves])[-1]
            scale = _mean([curve["spread"] for curve in curves])[-1]
            rows.setdefault("admission", []).extend(
                [
                    (f"{m}, {words}: rows admitted", f"{100 * admitted:.1f} %"),
                    (f"{m}, {words}: scale divided by that of all posts", f"{scale:.2f}"),
                ]
            )
    for start, target in WAYS:
        way = f"{target} from {start}"
        denser = _mean([[run[way]["denser"]] for run in results["recovery"]])[0]
        row = (f"{way}: denser than the real one", f"{100 * denser:.0f} %")
        rows.setdefault("recovery", []).append(row)
    for name in TRAINED:
        for kind, words in (("spread", "σ"), ("accuracy", "accuracy")):
            curve = _mean([run[name][kind] for run in results["gradients"]])
            for epoch in (EARLY, EPOCHS["encoders"]):
                value = curve[epoch - 1]
                text = f"{value:.2f}" if kind == "spread" else f"{100 * value:.1f} %"
                rows.setdefault("gradients", []).append((f"{name}: {words}, epoch {epoch}", text))
    blocks = {name: table(["", "value"], pairs) for name, pairs in rows.items()}
    return blocks | {"source, choices": [f"{record['data']}. {source(record)}"]}


def draw(folder: Path) -> None:
    """One figure a choice."""
    results = read_record("ablate_paper")["results"]
    figure, panel = _panel(
        ylabel="weight of an intact post", xlabel="coordinates of each modality"
    )
    low, middle, high = np.transpose(results["weights"]["quantiles"])
    panel.fill_between(results["weights"]["widths"], low, high, color=BOTH, alpha=0.2, lw=0)
    panel.plot(results["weights"]["widths"], middle, color=BOTH, marker="o", ms=4)
    panel.set(xscale="log", yscale="log")
    figure.savefig(folder / "choice-weights.png")

    figure, panel = _panel(ylabel="scale / that of all posts", xlabel="epoch", ylim=(0, 1.1))
    steps = range(1, EPOCHS["admission"] + 1)
    for rule, words in reversed(RULES.items()):
        for m, color in (("image", IMAGE), ("text", TEXT)):
            curves = [run[rule][m]["spread"] for run in results["admission"]]
            line = ":" if rule == "admit_all" else "-"
            panel.plot(steps, _mean(curves), line, color=color, label=f"{m}, {words}")
    panel.legend(frameon=False, ncols=2)
    figure.savefig(folder / "choice-admission.png")

    figure, panel = _panel(
        ylabel="test posts (%)", xlabel="log-density of the recovered minus that of the real"
    )
    for way, color in (("image from text", IMAGE), ("text from image", TEXT)):
        values = [100 * v for v in _mean([run[way]["heights"] for run in results["recovery"]])]
        panel.stairs(values, results["recovery"][0][way]["edges"], color=color, label=way)
    panel.axvline(0, color=BOTH, lw=0.8)
    panel.legend(frameon=False, loc="upper left")
    figure.savefig(folder / "choice-recovered.png")

    figure, panel = _panel(ylabel="σ of test features", xlabel="epoch", yscale="log")
    steps = range(1, EPOCHS["encoders"] + 1)
    styles = (
        {"color": BOTH, "lw": 4, "alpha": 0.4},
        {"color": IMAGE, "ls": "--"},
        {"color": TEXT},
    )
    for name, style in zip(TRAINED, styles, strict=True):
        curves = [run[name]["spread"] for run in results["gradients"]]
        panel.plot(steps, _mean(curves), label=name, **style)
    panel.legend(frameon=False)
    figure.savefig(folder / "choice-gradients.png")


def scale() -> dict[str, list[str]]:
    """The blocks on the scale of features."""
    record = read_record("paper_scale")
    results = record["results"]
    runs_of = {SCALES[name]: runs for name, runs in results["scales"].items()}
    cells = list(next(iter(next(iter(runs_of.values())).values()))["accuracy"])
    body, curves, minutes = [], [], 0.0
    for words, runs in runs_of.items():
        accuracy = [np.mean([run["accuracy"][cell] for run in runs.values()]) for cell in cells]
        medians = np.mean([run["weights"] for run in runs.values()], axis=0)
        body.append(
            [
                words,
                *(f"{value:.1f}" for value in accuracy),
                ", ".join(str(run["epoch"]) for run in runs.values()),
                ", ".join(f"{weight:.2g}" for weight in medians),
            ]
        )
        for seed, run in runs.items():
            curves.append([words, seed, ", ".join(f"{value:.1f}" for value in run["validation"])])
            minutes += run["cpu_minutes"]
    last = ["best epoch", "median weights: both, image, text"]
    return {
        "scale": [
            f"Training stopped {results['patience']} epochs after the best one. The majority "
            f"class has {results['majority']:.1f} %.",
            "",
            *table(["features", *map(condition, cells), *last], body, left=(0, len(cells) + 2)),
        ],
        "validation": table(["features", "seed", "epoch 1, 2, …"], curves, left=(0, 2)),
        "source, scale": [
            f"{record['data']}. {source(record)} It took {minutes:.0f} minutes of processor time."
        ],
    }


def _panel(**labels: Any) -> Any:
    figure, panels = canvas()
    panels[0][0].set(**labels)
    return figure, panels[0][0]


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    mean: list[float] = np.mean(curves, axis=0).tolist()
    return mean
