"""The trials of a head in the comparison, its cross-validation, and its cost."""

from __future__ import annotations

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
    by_cell,
    cells_of,
    fold_of,
    protocol_of,
    run,
    standardized,
)
from _data import Split, batches
from _heads import FIXED, MAKERS, Maker, head_names, options_of, own_makers
from _pools import Pool
from _train import Training, scaled, to_train
from torch import Tensor, nn

from robustfusion.baselines import MajorityHead, QMFHead, UnimodalHead

REFERENCE = "Concatenation"
# With unit variance in each dimension the paper's weights are near zero, and it learns slowly.
SCALES: dict[str, dict[str, Any]] = {
    "PaperDRFHead": {"covariance_type": "spherical", "target_std": 0.4}
}


@dataclass(frozen=True)
class Setting:
    """The training and the arguments of the head in one trial."""

    training: Training
    head: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Samples to compare on.

    Args:
        name: of the record.
        data: what it is, in words.
        pool: the samples and the training of the first trial.
        models: heads of the user's own, each "FILE:NAME".
    """

    name: str
    data: str
    pool: Pool
    models: tuple[str, ...] = ()

    def own(self) -> dict[str, Maker]:
        """The heads of --model."""
        split = self.pool.split
        return own_makers(self.models, tuple(split.dims.items()), split.num_classes)

    def rows(self) -> list[str]:
        """Names of all rows that the table can have."""
        return [*self.own(), *head_names(tuple(self.pool.split.features))]


class RowOrder(nn.Module):
    """Tell QMF the training rows of each batch, in the order in which `train` draws them.

    Every step checks that the batch holds these rows.
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
    """The head's own defaults, then draws that are the same for all heads.

    On data sets of the docs a draw may train half as long. On a user's own features, of which
    nobody knows how long a head must train, the second trial is twice as long, the third four
    times, and so on in turn.
    """
    rng = np.random.default_rng(7)
    has = options_of(name, MAKERS | task.own())
    base, lengths = task.pool.training, task.pool.lengths
    tried = [Setting(base)]
    while len(tried) < trials:
        length = float(rng.choice(lengths[:2])) if min(lengths) < 1 else 0.0
        length = length or lengths[len(tried) % len(lengths)]
        training = replace(
            base,
            epochs=max(1, int(base.epochs * length)),
            lr=base.lr * float(rng.choice([1 / 3, 1, 3])),
            weight_decay=float(rng.choice([0.01, 0.1])),
        )
        head: dict[str, float | int] = {
            "hidden_features": int(rng.choice([128, 256])),
            "dropout": float(rng.choice([0.1, 0.3, 0.5])),
            "modality_dropout": float(rng.choice([0.2, 0.4, 0.5])),
        }
        tried.append(Setting(training, {k: value for k, value in head.items() if k in has}))
    return tried


def make_head(name: str, task: Task, setting: Setting, split: Split, seed: int) -> nn.Module:
    """The head `name`, told what it must know about its training."""
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
    """Cross-validate every trial of a head, and choose for each fold by the other folds."""
    tried = settings(name, task, trials)
    split = task.pool.split
    cells = [*cells_of(split), *protocol_of(split)]
    log_probs = [
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
    chosen, picked = choose(log_probs, task.pool, folds, seeds)
    most = tried[int(np.bincount(picked.ravel()).argmax())]
    lengths = {setting.training.epochs for setting in tried}
    row = {
        "log_prob": chosen,
        "picked": picked.tolist(),
        "options": {**vars(most.training), **most.head},
        "longest": len(lengths) > 1 and most.training.epochs == max(lengths),
    }
    return row | cost(name, task, most)


def choose(
    log_probs: Sequence[Mapping[str, Floats]], pool: Pool, folds: int, seeds: Sequence[int]
) -> tuple[dict[str, Floats], Any]:
    """For each seed and fold, the predictions of the trial that is best on the other folds.

    Best by the mean of intact, missing and corrupted cells.

    Returns:
        Log-probabilities (seeds, N, C) by cell, and the number of each trial, (seeds, folds).
    """
    labels = pool.split.labels.numpy()
    cells = cells_of(pool.split)
    chosen = {cell: values.copy() for cell, values in log_probs[0].items()}
    picked = np.zeros((len(seeds), folds), dtype=int)
    for index, seed in enumerate(seeds):
        where = fold_of(pool, folds, seed)
        right = [
            by_cell({c: trial[c][[index]] for c in cells}, labels)["mean"]["right"]
            for trial in log_probs
        ]
        for fold in range(folds):
            best = int(np.argmax([hit[where != fold].mean() for hit in right]))
            picked[index, fold] = best
            for cell, values in chosen.items():
                values[index, where == fold] = log_probs[best][cell][index, where == fold]
    return chosen, picked


def cost(name: str, task: Task, setting: Setting) -> dict[str, float]:
    """Parameters, and time as a ratio to concatenation's, measured by turns in processor time.

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
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, fused=True)
    masks = split.masks()
    inner, more = head, {}
    if isinstance(head, RowOrder):  # it would look for the shuffled rows of a real epoch
        inner, more = head.head, {"indices": torch.arange(len(split))}
    to_train(inner)
    start = time.process_time()
    for _ in range(5):
        loss = inner.loss(inner(split.features, masks, **more), split.labels)  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    step = (time.process_time() - start) / 5
    inner.eval()
    with torch.no_grad():
        start = time.process_time()
        for _ in range(5):
            inner(split.features, masks)
    return step, (time.process_time() - start) / 5 / len(split)
