"""Two trained heads, weighted by quality without retraining: does it help?

python benchmarks/fuse_two_models.py --mvsa DIR/features.npz

Cross-validated on MVSA's training and validation posts: a head on the image, a head on the text
and a joint head are trained; then the logits of the two single heads are averaged, plainly and by
the quality of their inputs. Writes `results/fuse_two_models.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from _cross_validation import cells_of, fold_data, inputs_of
from _pools import load_pool
from _record import write_record
from _train import train
from torch import Tensor

from robustfusion import NeighborQualityEstimator, QualityWeightedFusion
from robustfusion.baselines import ConcatenationHead, UnimodalHead

HELD_OUT = 400  # training posts that calibrate the estimators


@torch.no_grad()
def main() -> None:
    """Train, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="features.npz of MVSA-Single")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool = load_pool("mvsa", options.mvsa)
    dims, classes = pool.split.dims, pool.split.num_classes
    right: dict[str, dict[str, list[Tensor]]] = {}
    for seed in options.seeds:
        for fold in range(options.folds):
            inside, outside, _ = fold_data(pool, options.folds, seed, fold)
            everyone = torch.arange(len(inside))
            seen, held_out = inside.rows(everyone[HELD_OUT:]), inside.rows(everyone[:HELD_OUT])
            with torch.enable_grad():
                joint = train(lambda: ConcatenationHead(dims, classes), seen, pool.training, seed)
                single = {
                    m: train(
                        lambda m=m: UnimodalHead(dims, classes, modality=m),
                        seen,
                        pool.training,
                        seed,
                    )
                    for m in dims
                }
            quality = {
                m: NeighborQualityEstimator(d)
                .fit(seen.features[m])
                .calibrate(held_out.features[m])
                for m, d in dims.items()
            }
            fusion = QualityWeightedFusion()
            for cell in cells_of(outside):
                features, available = inputs_of(outside, cell)
                logits = torch.stack([single[m](features, available).logits for m in dims], 1)
                mask = torch.stack([available[m] for m in dims], 1)
                scores = torch.stack([quality[m](features[m]) for m in dims], 1)
                answers = {
                    "joint head": joint(features, available).logits,
                    "mean of two heads": fusion(logits, torch.zeros_like(scores), mask),
                    "weighted by quality": fusion(logits, scores, mask),
                }
                for name, answer in answers.items():
                    hits = right.setdefault(name, {}).setdefault(cell, [])
                    hits.append((answer.argmax(1) == outside.labels).float())
    rows = {
        name: {cell: 100 * float(torch.cat(parts).mean()) for cell, parts in cells.items()}
        for name, cells in right.items()
    }
    gap = [
        torch.cat(right["weighted by quality"][cell]) - torch.cat(right["joint head"][cell])
        for cell in ("image C", "text C")
    ]
    errors = [100 * float(np.std(g.numpy()) / len(g) ** 0.5) for g in gap]
    for name, row in rows.items():
        print(f"{name:20}", "  ".join(f"{cell} {value:.1f}" for cell, value in row.items()))
    write_record(
        "fuse_two_models",
        {
            "accuracy": rows,
            "standard_error": dict(zip(("image C", "text C"), errors, strict=True)),
        },
        data="MVSA-Single, training and validation posts, cross-validated",
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
