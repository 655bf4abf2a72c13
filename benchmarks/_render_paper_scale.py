"""The page of the paper's head on features of three scales, from `results/paper_scale.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _record import dated, read_record

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "results" / "paper-scale.md"
TITLES = {
    "spherical": "one number a modality, σ = 0.4",
    "none": "as the encoders give them",
    "diag": "deviation 1 of each coordinate",
}


def render() -> None:
    """Write the page."""
    record = read_record("paper_scale")
    PAGE.write_text(dated(page(record), record))


def page(record: dict[str, Any]) -> str:
    """The page."""
    results, seeds = record["results"], len(record["seeds"])
    first = next(iter(next(iter(results["scales"].values())).values()))
    cells = list(first["accuracy"])
    titles = [cell.removeprefix("fixed/").replace("/", " ") for cell in cells]
    lines = [
        "# The paper's head and the scale of features",
        "",
        "The density (9) peaks at 1/(√(2π) σ), so that the weights (12) depend on how wide the "
        "features of a modality lie. `PaperDRFHead` on frozen features of MVSA-Single, behind "
        "`Standardize` or without it, by the paper's recipe: batch 16, AdamW from 2e-4 to 1e-6 "
        "by a cosine over 30 epochs. The epoch with the best mean of clean, corrupted and "
        f"discarded on the validation posts is tested; training stopped {results['patience']} "
        "epochs after it.",
        "",
        "Accuracy in % on the 450 test posts, four draws of the corruption, "
        f"{seeds} training seed{'s' if seeds > 1 else ''}. The majority class has "
        f"{results['majority']:.1f} %. One standard error of an accuracy is about 2 points.",
        "",
        f"| features | {' | '.join(titles)} | epoch | median weights: both, image, text |",
        "|---|" + "---:|" * (len(cells) + 1) + "---|",
    ]
    for scale, runs in results["scales"].items():
        mean = [np.mean([run["accuracy"][cell] for run in runs.values()]) for cell in cells]
        epochs = ", ".join(str(run["epoch"]) for run in runs.values())
        weights = ", ".join(
            f"{w:.2g}" for w in np.mean([run["weights"] for run in runs.values()], axis=0)
        )
        values = " | ".join(f"{value:.1f}" for value in mean)
        lines.append(f"| {TITLES[scale]} | {values} | {epochs} | {weights} |")
    minutes = sum(r["cpu_minutes"] for runs in results["scales"].values() for r in runs.values())
    lines += [
        "",
        "Weights are those of intact validation posts. The mean of the five validation cells "
        "after each epoch:",
        "",
        "| features | seed | epoch 1, 2, … |",
        "|---|---:|---|",
    ]
    for scale, runs in results["scales"].items():
        for seed, run in runs.items():
            curve = ", ".join(f"{value:.1f}" for value in run["validation"])
            lines.append(f"| {TITLES[scale]} | {seed} | {curve} |")
    lines += [
        "",
        f"`benchmarks/results/paper_scale.json`: `{record['command']}`, commit "
        f"{record['commit']}, {record['date']}; {record['data']}; {minutes:.0f} minutes of CPU, "
        f"torch {record['machine']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    render()
