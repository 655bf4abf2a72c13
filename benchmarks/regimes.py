"""Train on intact or on disrupted samples: which head is ahead where?

python benchmarks/regimes.py --mvsa DIR/features.npz --harmeme DIR/features.npz

Out of fold, each head is trained on intact samples, and on samples of which a share of 0.4 is
corrupted (C), lacks a modality (D), or either (C+D), as in Figure 5 of the paper. It is tested on
intact samples, on samples disrupted as in its training, and on kinds of damage to the features
that no training held. `DRFHead + trust` trains on 85 % of the samples of the others and learns
trust from the rest. Writes `results/regimes.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cross_validation import Floats, fold_data, measures, paired
from _data import Split
from _pools import Pool, load_pool
from _record import write_record
from _train import train
from torch import Tensor, nn

from robustfusion import DRFHead, calibrate
from robustfusion.baselines import ConcatenationHead
from robustfusion.disruption import CachedFeatures, Disruption, damage, disrupt_features

HEADS: dict[str, Callable[..., nn.Module]] = {
    "Concatenation": ConcatenationHead,
    "Concatenation + modality dropout": partial(ConcatenationHead, modality_dropout=0.5),
    "DRFHead": DRFHead,
    "DRFHead + trust": DRFHead,
}
BASELINE = "Concatenation + modality dropout"
REGIMES = ("intact", "C", "D", "C+D")
RATE, HELD_OUT = 0.4, 0.15
SEEN, UNSEEN = (
    ("mask", "noise", "swapped"),
    ("shuffle", "scale", "mean"),
)  # kinds of FEATURE_DAMAGE
SEVERITIES = (0.2, 0.6, 1.0)


def disruption_of(split: Split, setting: Any, seed: int) -> Disruption:
    """Disrupt one random modality of a share of the samples."""
    return Disruption(tuple(split.features), setting=setting, rate=RATE, seed=seed)


def copies(split: Split) -> Iterator[dict[str, Any]]:
    """Yield damaged copies of held-out samples for the fit of trust."""
    for name, draws in split.corrupted.items():
        inputs = {**split.features, name: draws[0]}
        facts = {"modality": name, "kind": "corrupted"}
        yield {"inputs": inputs, "label": split.labels, "id": list(split.ids), **facts}
    yield from damage(cached(split), dict.fromkeys(split.features, SEEN), batch_size=256)


def cached(split: Split) -> CachedFeatures:
    """Return the features and labels of a split."""
    return CachedFeatures(split.features, split.labels, ids=split.ids)


def trained(name: str, split: Split, regime: str, pool: Pool, seed: int) -> nn.Module:
    """Train one head in one regime."""
    disruption = None if regime == "intact" else disruption_of(split, regime, seed)
    fit, rest = split, split
    if name.endswith("trust"):
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        count = int(HELD_OUT * len(split))
        fit, rest = split.rows(order[count:]), split.rows(order[:count])
    make = partial(HEADS[name], split.dims, split.num_classes)
    head = train(make, fit, pool.training, seed, disruption=disruption)
    if name.endswith("trust"):
        intact = {"inputs": rest.features, "label": rest.labels, "id": list(rest.ids)}
        calibrate(head, [intact], damaged=copies(rest))
    return head


Inputs = tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]


def tests_of(split: Split, seed: int) -> dict[str, Inputs]:
    """Return what the heads are tested on, by condition."""
    conditions: dict[str, Inputs] = {"intact": (split.features, None)}
    for setting in REGIMES[1:]:
        disruption = disruption_of(split, setting, seed + 100)
        drawn = disrupt_features(disruption, split.ids, split.features, split.corrupted)
        conditions[setting] = (drawn.inputs, drawn.available)
    kinds = dict.fromkeys(split.features, UNSEEN)
    for severity in SEVERITIES:
        batches = damage(cached(split), kinds, severity=severity, batch_size=len(split))
        for batch in batches:
            name = f"{batch['modality']} {batch['kind']} {severity:g}"
            conditions[name] = (batch["inputs"], None)
    return conditions


@torch.no_grad()
def log_probs(head: nn.Module, inputs: Inputs) -> Floats:
    """Predict one condition, (N, C)."""
    values: Floats = head(*inputs).logits.double().log_softmax(-1).numpy()
    return values


def cross_validate(pool: Pool, folds: int, seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Return accuracy, macro-F1, NLL and differences by regime, head and condition."""
    labels = pool.split.labels.numpy()
    results: dict[str, dict[str, Any]] = {}
    for regime in REGIMES:
        shape = (len(seeds), *pool.split.labels.shape, pool.split.num_classes)
        values: dict[str, dict[str, Floats]] = {name: {} for name in HEADS}
        for index, seed in enumerate(seeds):
            for fold in range(folds):
                inside, outside, rows = fold_data(pool, folds, seed, fold)
                tests = tests_of(outside, seed)
                for name in HEADS:
                    head = trained(name, inside, regime, pool, seed)
                    for condition, inputs in tests.items():
                        whole = values[name].setdefault(condition, np.full(shape, np.nan))
                        whole[index, rows.numpy()] = log_probs(head, inputs)
        scores = {
            name: {cell: measures(whole, labels) for cell, whole in cells.items()}
            for name, cells in values.items()
        }
        results[regime] = {name: {} for name in HEADS}
        same = ["C", "D", "C+D"] if regime == "intact" else [regime]
        for name in HEADS:
            unseen = [cell for cell in scores[name] if cell not in REGIMES]
            conditions = {"intact": ["intact"], **{s: [s] for s in same}, "unseen": unseen}
            for title, cells in conditions.items():
                ours, theirs = (mean(scores[h], cells) for h in (name, BASELINE))
                gap, error = paired(ours["right"], theirs["right"], pool.groups)
                results[regime][name][title] = {
                    "accuracy": 100 * float(ours["right"].mean()),
                    "difference": 100 * gap,
                    "error": 100 * error,
                    "macro_f1": 100 * float(ours["macro_f1"].mean()),
                    "nll": float(ours["nll"].mean()),
                }
            print(regime, name, results[regime][name], flush=True)
    return results


def mean(scores: Mapping[str, dict[str, Floats]], cells: list[str]) -> dict[str, Floats]:
    """Return the measures averaged over conditions."""
    return {key: np.mean([scores[c][key] for c in cells], axis=0) for key in scores[cells[0]]}


def main() -> None:
    """Train, predict, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, help="features.npz of MVSA-Single")
    parser.add_argument("--harmeme", type=Path, help="features.npz of HarMeme")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = {}
    for name in ("mvsa", "harmeme"):
        if source := getattr(options, name):
            data[name] = cross_validate(load_pool(name, source), options.folds, options.seeds)
    write_record(
        "regimes",
        {"folds": options.folds, "rate": RATE, "data": data},
        data="training and validation samples, out of fold, near-duplicates in one fold",
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
