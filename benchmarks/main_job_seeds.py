"""Does the main job meet its goals with any seed?

    python benchmarks/main_job_seeds.py --output-dir runs/seeds

Runs `examples/drf_mvsa.py` once per seed, one after the other; a finished run is kept, so that a
stopped benchmark goes on. A seed makes its own posts, splits, models and order of training, so
runs share no sample to pair: intervals are Student's t over the seeds. Writes
`results/main_job_seeds.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write_record
from scipy.stats import t

from robustfusion.evaluation import RobustnessReport

PROGRAM = Path(__file__).parents[1] / "examples" / "drf_mvsa.py"
MODELS = ("drf", "concatenation")
COST, HARM = 0.5, 1.0  # points: against the baseline, and of corruption against absence


def run_of(seed: int, folder: Path) -> Path:
    """The finished run of a seed, facts where there is none."""
    for attempt in range(2):
        if folders := sorted(folder.glob(f"drf_mvsa-*/report-{MODELS[-1]}.json")):  # the last file
            return folders[0].parent
        if attempt == 0:
            options = ["--seed", str(seed), "--output-dir", str(folder)]
            subprocess.run([sys.executable, str(PROGRAM), *options], check=True)
    raise SystemExit(f"{folder} holds no finished run")


def interval(values: np.ndarray) -> list[float]:
    """Mean over seeds and its 95 % interval."""
    mean = float(values.mean())
    reach = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return [round(value, 2) for value in (mean, mean - reach, mean + reach)]


def summarize(ours: list[RobustnessReport], theirs: list[RobustnessReport]) -> dict[str, Any]:
    """Means over seeds of each condition, and whether they meet the goals."""
    accuracy: dict[str, np.ndarray] = {  # in %, shape (2, seeds)
        cell.condition.title: 100
        * np.asarray([[r[key].accuracy.value for r in side] for side in (ours, theirs)])
        for key, cell in ours[0].scores.items()
        if cell.condition.strategy != "random"
    }
    gaps = {title: first - second for title, (first, second) in accuracy.items()}
    harm = {m: accuracy[f"{m} C"][0] - accuracy[f"{m} D"][0] for m in ours[0].modalities}
    worst = {
        "clean": (float(gaps["clean"].mean()), COST),
        "corrupted": (min(float(values.mean()) for values in harm.values()), HARM),
        "every cell": (min(float(values.mean()) for values in gaps.values()), COST),
    }
    return {
        "test_posts": [len(report.labels) for report in ours],
        "cells": {
            title: {
                "ours": pair[0].round(2).tolist(),
                "theirs": pair[1].round(2).tolist(),
                "means": pair.mean(1).round(2).tolist(),
                "difference": interval(gaps[title]),
            }
            for title, pair in accuracy.items()
        },
        "corrupted_minus_missing": {m: interval(values) for m, values in harm.items()},
        "promises": {
            name: {
                "least": round(least, 2),
                "allowed": -allowed,
                "met": round(least, 6) >= -allowed,
            }
            for name, (least, allowed) in worst.items()
        },
    }


def main() -> None:
    """Run, summarize, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(20, 30)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if len(options.seeds) < 2:
        parser.error("--seeds must be at least two: one has no interval")
    runs = [run_of(seed, options.output_dir / f"seed-{seed}") for seed in options.seeds]
    facts = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run in runs]
    commits = {str(record["commit"]) for record in facts}
    if len(commits) > 1:
        raise SystemExit(f"{options.output_dir} holds runs of several commits: {commits}")
    reports = [[RobustnessReport.load(run / f"report-{m}.json") for run in runs] for m in MODELS]
    results = {
        "commit_of_runs": commits.pop(),
        "seconds": [record["total_seconds"] for record in facts],
        "names": [side[0].name for side in reports],
        **summarize(*reports),
    }
    print(json.dumps(results, indent=1))
    write_record(
        "main_job_seeds",
        results,
        data="generated posts, others for each seed",
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
