"""Few labels, many posts: does training the recovery on unlabeled pairs help?

python benchmarks/few_labels.py --mvsa DIR/features.npz

Cross-validated on MVSA's training and validation posts: a head sees the labels of 200 or 600
posts, by themselves or with a batch of the unlabeled rest in each step, whose `out.aux_loss`
trains the recovery and whose features fill the queues. Writes `results/few_labels.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from _cross_validation import cells_of, fold_data, inputs_of
from _data import Split
from _pools import load_pool
from _record import write_record
from torch import Tensor

from robustfusion import DRFHead

STEPS, BATCH = 300, 64


def endless(
    split: Split, generator: torch.Generator
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches of a split in random order, for ever."""
    while True:
        for rows in torch.randperm(len(split), generator=generator).split(BATCH):
            yield {m: x[rows] for m, x in split.features.items()}, split.labels[rows]


def train(labeled: Split, unlabeled: Split | None, seed: int) -> DRFHead:
    """A head after as many steps, with or without unlabeled posts."""
    torch.manual_seed(seed)
    head = DRFHead(labeled.dims, labeled.num_classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-4, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    known = endless(labeled, generator)
    rest = None if unlabeled is None else endless(unlabeled, generator)
    for _ in range(STEPS):
        features, labels = next(known)
        loss = head.loss(head(features), labels)
        if rest is not None:
            loss = loss + head(next(rest)[0]).aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def main() -> None:
    """Train, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="features.npz of MVSA-Single")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool = load_pool("mvsa", options.mvsa)
    cells = cells_of(pool.split)
    rows = {}
    for count in (200, 600):
        right: dict[str, list[Tensor]] = {"alone": [], "with": []}
        for seed in options.seeds:
            for fold in range(options.folds):
                inside, outside, _ = fold_data(pool, options.folds, seed, fold)
                order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))
                labeled, rest = inside.rows(order[:count]), inside.rows(order[count:])
                for name, unlabeled in (("alone", None), ("with", rest)):
                    head = train(labeled, unlabeled, seed)
                    with torch.no_grad():
                        answers = [head(*inputs_of(outside, cell)).logits for cell in cells]
                    hit = [(a.argmax(1) == outside.labels).float() for a in answers]
                    right[name].append(torch.stack(hit).mean(0))
        without, both = (torch.cat(right[name]) for name in ("alone", "with"))
        gap = both - without
        rows[str(count)] = {
            "alone": 100 * float(without.mean()),
            "with": 100 * float(both.mean()),
            "difference": 100 * float(gap.mean()),
            # A post occurs once for each seed: its differences are not independent draws.
            "error": 100 * float(gap.std()) / (len(gap) / len(options.seeds)) ** 0.5,
        }
        print(count, rows[str(count)], flush=True)
    write_record(
        "few_labels",
        {"folds": options.folds, "rows": rows},
        data="MVSA-Single, training and validation posts",
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
