"""The paper's head on frozen features of three scales, by the paper's recipe.

    python benchmarks/paper_scale.py --mvsa DIR --output runs/paper_scale

The density (9) peaks at 1 over sqrt(2 pi) sigma, so weights (12) depend on the scale of features.
Each of `SCALES` trains a :class:`PaperDRFHead` on MVSA-Single: batch 16, 2e-4 to 1e-6 by a cosine
over 30 epochs. After each epoch the validation posts are predicted intact and with either modality
corrupted or missing; the epoch with the best mean of these five accuracies is tested, and training
stops when six epochs were no better. Finished trainings stay in `--output`, so that a stopped run
goes on; the record holds all that are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _data import Split, batches, load_mvsa, some
from _record import write_record
from _train import to_train
from torch import nn

from robustfusion import DRFClassifier, PaperDRFHead, Standardize
from robustfusion.disruption import robustness_grid
from robustfusion.evaluation import robustness_report

NAME = "paper_scale"
EPOCHS, BATCH, RATES = 30, 16, (2e-4, 1e-6)  # the paper's
SEEDS = (0, 1)
PATIENCE = 6  # epochs that are no better
TESTED = (0, 1, 2, 3)  # seeds of the disruptions of the test posts

SCALES: dict[str, Callable[[int], nn.Module]] = {
    "spherical": partial(Standardize, covariance_type="spherical", target_std=0.4),
    "none": lambda dim: nn.Identity(),
    "diag": partial(Standardize, covariance_type="diag"),
}


def scaled(scale: str, split: Split) -> DRFClassifier:
    """The paper's head behind fixed scales of the training posts."""
    encoders = {name: SCALES[scale](dim) for name, dim in split.dims.items()}
    for name, encoder in encoders.items():
        if isinstance(encoder, Standardize):
            encoder.fit(split.features[name])
    return DRFClassifier(encoders, PaperDRFHead(split.dims, split.num_classes))


def accuracies(model: nn.Module, split: Split, seeds: tuple[int, ...]) -> dict[str, float]:
    """Accuracy by condition: clean, and either modality corrupted, missing, or half of each."""
    grid = robustness_grid(tuple(split.dims), rates=())
    report = robustness_report(model, split.evaluation(), grid, seeds=seeds)
    cells = report.with_intervals(replicates=0).scores
    return {key: round(100 * cell.accuracy.value, 2) for key, cell in cells.items()}


def chosen_by(accuracy: dict[str, float]) -> float:
    """Mean of the intact, the corrupted and the missing cells."""
    return sum(accuracy[key] for key in accuracy if not key.endswith("C+D")) / 5


def fit(scale: str, splits: dict[str, Split], seed: int, epochs: int) -> dict[str, Any]:
    """Train once, keep the best epoch by the validation posts, test that."""
    split, begun = splits["train"], time.process_time()
    torch.manual_seed(seed)
    model = scaled(scale, split)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[0], fused=True)
    steps = epochs * (len(split) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=RATES[1])
    order = torch.Generator().manual_seed(seed)
    best, state, validated = -1.0, {}, []
    for epoch in range(1, epochs + 1):
        to_train(model)
        for rows in batches(len(split), BATCH, order):
            output = model({name: x[rows] for name, x in split.features.items()})
            optimizer.zero_grad()
            model.loss(output, split.labels[rows]).backward()
            optimizer.step()
            schedule.step()
        accuracy = accuracies(model, splits["val"], (0,))
        validated.append(round(chosen_by(accuracy), 2))
        if validated[-1] > best:
            best, state = validated[-1], deepcopy(model.state_dict()) | {"epoch": epoch}
        print(f"{scale}, seed {seed}, epoch {epoch}: {accuracy}", flush=True)
        if epoch - state["epoch"] == PATIENCE:
            break
    epoch = state.pop("epoch")
    model.load_state_dict(state)
    with torch.no_grad():
        weights = model.eval()(splits["val"].features).weights.median(0).values
    return {
        "epoch": epoch,
        "validation": validated,
        "weights": [float(f"{w:.3g}") for w in weights],
        "accuracy": accuracies(model, splits["test"], TESTED),
        "cpu_minutes": round((time.process_time() - begun) / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="folder with features.npz")
    parser.add_argument("--output", type=Path, default=Path("runs/paper_scale"))
    parser.add_argument("--scales", nargs="+", choices=SCALES, default=list(SCALES))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="trainings of each scale")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="training posts, for a look; no record then")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = load_mvsa(arguments.mvsa / "features.npz")
    if arguments.limit:
        splits = {name: some(split, arguments.limit) for name, split in splits.items()}
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs: dict[str, dict[str, Any]] = {scale: {} for scale in arguments.scales}
    for seed in range(arguments.seeds):
        for scale in arguments.scales:
            path = arguments.output / f"{scale}~{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(fit(scale, splits, seed, arguments.epochs)))
            runs[scale][str(seed)] = json.loads(path.read_text())
    majority = splits["test"].labels.bincount().max() / len(splits["test"])
    results = {"majority": round(100 * float(majority), 2), "patience": PATIENCE, "scales": runs}
    if not arguments.limit:
        data = "MVSA-Single, frozen EfficientNet-Lite0 and MiniLM-L6 features"
        write_record(NAME, results, data=data, seeds=list(range(arguments.seeds)))


if __name__ == "__main__":
    main()
