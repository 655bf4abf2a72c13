"""Does the quality score hold on few samples and many epochs, and how often does it alarm?

    python benchmarks/quality.py --mvsa DIR --harmeme DIR    # folders with features.npz

For each modality by itself, n training rows pass a :class:`NeighborQualityEstimator` in batches,
epoch by epoch, as they do in a head; after 1, 6 and 20 epochs a copy is calibrated on posts that
were never trained on, and scores others: intact ones, the same masked, and empty inputs.
Each seed draws new posts to train, calibrate and test on, because one official split of 450 test
posts cannot distinguish an alarm rate of 1 % from one of 2 %. No label is read. Features are
frozen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _data import Split, batches
from _record import write_record
from torch import Tensor

from robustfusion import NeighborQualityEstimator, QualityEstimator
from robustfusion.evaluation.statistics import separation_auroc

NAME = "quality"
ROWS = (60, 225, 500, 1000, 3160)
EPOCHS = (1, 6, 20)
RATES = (0.01, 0.05, 0.1)
BATCH = 64
HELD_OUT = 450  # posts to calibrate on, and as many to test on


class Parts(NamedTuple):
    """Posts to learn from, to calibrate on, and to test."""

    train: Split
    reference: Split
    test: Split


def load_all(features: Path) -> Split:
    """All posts of a pack, intact and masked."""
    with np.load(features) as file:
        names = ("image", "text")
        return Split(
            {name: torch.from_numpy(file[f"{name}_clean"]).float() for name in names},
            torch.zeros(len(file["split"]), dtype=torch.long),
            tuple(range(len(file["split"]))),
            {name: torch.from_numpy(file[f"{name}_corrupt"][:1]).float() for name in names},
        )


def drawn(posts: Split, seed: int) -> Parts:
    """Posts to train, calibrate and test on, drawn by the seed."""
    order = torch.randperm(len(posts), generator=torch.Generator().manual_seed(seed))
    sizes = (len(posts) - 2 * HELD_OUT, HELD_OUT, HELD_OUT)
    return Parts(*(posts.rows(rows) for rows in order.split(sizes)))


def trained(rows: Tensor, seed: int) -> Iterator[tuple[int, QualityEstimator]]:
    """An estimator after each number of epochs."""
    estimator = NeighborQualityEstimator(rows.shape[1])
    order = torch.Generator().manual_seed(seed)
    for epoch in range(1, max(EPOCHS) + 1):
        for picked in batches(len(rows), min(BATCH, len(rows)), order):
            estimator.observe(rows[picked])
        if epoch in EPOCHS:
            yield epoch, deepcopy(estimator)


def nothings(rows: Tensor) -> dict[str, Tensor]:
    """Inputs that hold nothing, (1, D)."""
    row = torch.zeros(1, rows.shape[1])
    return {
        "zeros": row,
        "mean": rows.mean(0, keepdim=True),
        "constant": row + 1,
        "NaN": row + torch.nan,
        "inf": row + torch.inf,
        "1e9": row + 1e9,
    }


@torch.no_grad()
def tested(
    estimator: QualityEstimator, parts: Parts, name: str, rows: Tensor
) -> dict[str, float | dict[str, bool]]:
    """AUROC, deviation and alarms of an estimator after its calibration."""
    estimator.calibrate(parts.reference.features[name])
    clean, masked = parts.test.features[name], parts.test.corrupted[name][0]
    scores = [-estimator.score(x).double().numpy() for x in (clean, masked)]
    p_clean, p_masked = estimator.p_value(clean), estimator.p_value(masked)
    results: dict[str, Any] = {
        "auroc": float(separation_auroc(*scores)[0]),
        "spread": float(np.std(scores[0])),
        "detected": _share(p_masked, 0.05),
    }
    results |= {f"alarms {rate:g}": _share(p_clean, rate) for rate in RATES}
    results["nothings"] = {
        kind: bool(estimator.p_value(x) <= 0.05) for kind, x in nothings(rows).items()
    }
    return results


def _share(p_values: Tensor, rate: float) -> float:
    return float((p_values <= rate).float().mean())


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, the least AUROC, and the inputs that did not always alarm."""
    means: dict[str, Any] = {
        key: round(float(np.mean([run[key] for run in runs])), 4)
        for key in runs[0]
        if key != "nothings"
    }
    means["least auroc"] = round(min(run["auroc"] for run in runs), 4)
    means["silent"] = [
        kind for kind in runs[0]["nothings"] if not all(run["nothings"][kind] for run in runs)
    ]
    return means


def measure(folders: dict[str, Path], seeds: int) -> dict[str, Any]:
    """By data, modality, rows and epochs."""
    runs: dict[str, dict[str, dict[str, dict[str, list[Any]]]]] = {}
    for data, folder in folders.items():
        posts = load_all(folder / "features.npz")
        for seed in range(seeds):
            parts = drawn(posts, seed)
            for count in (min(n, len(parts.train)) for n in ROWS):
                generator = torch.Generator().manual_seed(seed)
                chosen = torch.randperm(len(parts.train), generator=generator)[:count]
                for name, features in parts.train.features.items():
                    rows = features[chosen]
                    by_rows = runs.setdefault(data, {}).setdefault(name, {})
                    by_epochs = by_rows.setdefault(str(count), {})
                    for epochs, estimator in trained(rows, seed):
                        result = tested(estimator, parts, name, rows)
                        by_epochs.setdefault(str(epochs), []).append(result)
            print(f"{data}, seed {seed}: {time.process_time():.0f} s of CPU", flush=True)
    return {
        data: {
            name: {
                n: {e: summary(seeds_of) for e, seeds_of in by_epochs.items()}
                for n, by_epochs in by_rows.items()
            }
            for name, by_rows in modalities.items()
        }
        for data, modalities in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="folder with features.npz")
    parser.add_argument("--harmeme", type=Path, required=True, help="folder with features.npz")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = {"MVSA-Single": arguments.mvsa, "HarMeme": arguments.harmeme}
    results = {"rates": RATES, "data": measure(folders, arguments.seeds)}
    results["cpu_seconds"] = round(time.process_time())
    data = "MVSA-Single and HarMeme, frozen EfficientNet-Lite0 and MiniLM-L6 features"
    write_record(NAME, results, data=data, seeds=list(range(arguments.seeds)))


if __name__ == "__main__":
    main()
