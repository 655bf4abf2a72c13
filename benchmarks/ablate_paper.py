"""Four choices of the paper, each measured alone, all else held fixed.

    python benchmarks/ablate_paper.py --mvsa DIR/mvsa_single

Writes ``results/ablate_paper.json``; ``render.py`` makes tables and figures of it. The features
of MVSA-Single are frozen and standardized.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _data import Split, batches, load_digit_halves, load_mvsa
from _record import write_record
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion import (
    DistributionRecoveryLoss,
    FeatureQueue,
    GaussianQualityEstimator,
    ModalityConverter,
    Standardize,
    admit_above_mean,
    admit_all,
)
from robustfusion.functional import fit_gaussian, gaussian_log_prob
from robustfusion.paper import CrossModalRecovery

SEEDS = (0, 1, 2)
CAPACITY, BATCH = 512, 16  # the paper's
EPOCHS = {"admission": 10, "converter": 5, "encoders": 120}
SHARES = torch.tensor([0.1, 0.5, 0.9])
WAYS = (("image", "text"), ("text", "image"))
# Whether gradients of the recovery loss are kept out of the encoders; None: no recovery loss.
TRAINED = {
    "classification alone": None,
    "with (4), (7), converters only": True,
    "with (4), (7), encoders too": False,
}


def standardized(splits: Mapping[str, Split]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and test features by the moments of the training posts."""
    train, test = splits["train"].features, splits["test"].features
    scales = {m: Standardize(x.shape[1]).fit(x).eval() for m, x in train.items()}
    return tuple({m: scales[m](x[m]) for m in train} for x in (train, test))  # type: ignore[return-value]


def weights(train: Mapping[str, Tensor], test: Mapping[str, Tensor]) -> dict[str, Any]:
    """(12): the weight of an intact post, by how many coordinates of each modality are used."""
    widths = [2**k for k in range(1, 9)] + [min(x.shape[1] for x in train.values())]
    quantiles = []
    for width in widths:
        pair = torch.zeros(())
        for m, x in test.items():
            pair = pair + gaussian_log_prob(x[:, :width], fit_gaussian(train[m][:, :width]))
        quantiles.append(pair.exp().quantile(SHARES).tolist())
    whole = torch.stack([gaussian_log_prob(test[m], fit_gaussian(train[m])) for m in test]).sum(0)
    return {"widths": widths, "quantiles": quantiles, "whole": whole.exp().median().item()}


def admission(train: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    """(13): admitted rows, and the queue's scale divided by that of all posts, by epoch."""
    curves: dict[str, Any] = {}
    for rule in (admit_above_mean, admit_all):
        for m, x in train.items():
            queue = FeatureQueue(x.shape[1], CAPACITY)
            estimator = GaussianQualityEstimator(x.shape[1])
            whole, order = fit_gaussian(x).scale, torch.Generator().manual_seed(seed)
            curve: dict[str, list[float]] = {"admitted": [], "spread": []}
            for _ in range(EPOCHS["admission"]):
                entered = seen = 0
                for rows in batches(len(x), BATCH, order):
                    scores = estimator.log_prob(x[rows]), estimator.log_prob(queue.storage)
                    accepted = rule(*scores, queue.valid) | (queue.count < estimator.min_samples)
                    queue.enqueue(x[rows], accepted)
                    estimator.fit(queue.storage, queue.valid)
                    entered, seen = entered + int(accepted.sum()), seen + len(rows)
                curve["admitted"].append(entered / seen)
                curve["spread"].append((estimator.scale / whole).item())
            curves.setdefault(rule.__name__, {})[m] = curve
    return curves


def recovery(
    train: Mapping[str, Tensor], test: Mapping[str, Tensor], seed: int
) -> dict[str, dict[str, Any]]:
    """(10), (11): log-density of a recovered feature minus that of the real one, test posts."""
    results = {}
    for source, target in WAYS:
        torch.manual_seed(seed)
        convert = ModalityConverter(train[source].shape[1], train[target].shape[1])
        criterion, reference = DistributionRecoveryLoss(), fit_gaussian(train[target])
        optimizer = torch.optim.AdamW(convert.parameters(), lr=3e-4, fused=True)
        order = torch.Generator().manual_seed(seed)
        for _ in range(EPOCHS["converter"]):
            for rows in batches(len(train[source]), 64, order):
                queue = torch.randint(len(train[source]), (CAPACITY,), generator=order)
                loss = criterion(
                    convert(train[source][rows]),
                    train[target][rows],
                    fit_gaussian(convert(train[source][queue])),
                    reference,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            recovered = gaussian_log_prob(convert(test[source]), reference)
            gain = recovered - gaussian_log_prob(test[target], reference)
        counts, edges = torch.histogram(gain.clamp(-1.5, 1.5), bins=30, range=(-1.5, 1.5))
        results[f"{target} from {source}"] = {
            "denser": (gain > 0).float().mean().item(),
            "heights": (counts / len(gain)).tolist(),
            "edges": edges.tolist(),
        }
    return results


def gradients(seed: int) -> dict[str, dict[str, list[float]]]:
    """(4), (7): encoders of digits in halves, trained with and without their gradients."""
    split = load_digit_halves(seed)
    train, test = split["train"], split["test"]
    curves = {}
    for name, detach in TRAINED.items():
        torch.manual_seed(seed)
        encoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for m in train.dims}
        )
        recover = CrossModalRecovery(dict.fromkeys(train.dims, 32), detach=bool(detach))
        classify, criterion = nn.Linear(64, train.num_classes), DistributionRecoveryLoss()
        optimizer = torch.optim.AdamW(
            nn.ModuleList([encoders, recover, classify]).parameters(), lr=2e-3, fused=True
        )
        order = torch.Generator().manual_seed(seed)
        curve: dict[str, list[float]] = {"spread": [], "accuracy": []}
        for _ in range(EPOCHS["encoders"]):
            for rows in batches(len(train), 64, order):
                z = {m: encoder(train.features[m][rows]) for m, encoder in encoders.items()}
                loss = F.cross_entropy(
                    classify(torch.cat(list(z.values()), 1)), train.labels[rows]
                )
                if detach is not None:
                    targets = {m: x.detach() if detach else x for m, x in z.items()}
                    for target, sources in recover(z).items():
                        for recovered in sources.values():
                            loss = loss + criterion(
                                recovered,
                                targets[target],
                                fit_gaussian(recovered),
                                fit_gaussian(targets[target]),
                            )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                z = {m: encoder(test.features[m]) for m, encoder in encoders.items()}
                right = classify(torch.cat(list(z.values()), 1)).argmax(1) == test.labels
            scales = [fit_gaussian(x).scale for x in z.values()]
            curve["spread"].append(torch.stack(scales).mean().item())
            curve["accuracy"].append(right.float().mean().item())
        curves[name] = curve
    return curves


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description="Four choices of the paper, each alone.")
    parser.add_argument(
        "--mvsa", type=Path, required=True, help="folder with features.npz of the data pack"
    )
    options = parser.parse_args()
    train, test = standardized(load_mvsa(options.mvsa / "features.npz"))
    results = {
        "weights": weights(train, test),
        "admission": [admission(train, seed) for seed in SEEDS],
        "recovery": [recovery(train, test, seed) for seed in SEEDS],
        "gradients": [gradients(seed) for seed in SEEDS],
    }
    data = "MVSA-Single, frozen EfficientNet-Lite0 and MiniLM-L6 features; digits in halves"
    write_record("ablate_paper", results, data=data, seeds=list(SEEDS))


if __name__ == "__main__":
    main()
