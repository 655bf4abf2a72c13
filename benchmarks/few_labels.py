"""Few labels, many posts: does training the recovery on unlabelled pairs help?

python benchmarks/few_labels.py --mvsa DIR/features.npz

Out of fold on MVSA's training and validation posts: a head sees the labels of 200 or 600 posts.
With the posts alone, or with a batch of the unlabelled rest in each step, whose `out.aux_loss`
trains the recovery and whose features fill the queues. Writes `results/few_labels.json` and the
table of the guide.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from _data import Split
from _folds import cells_of, fold_data, inputs_of, load_pool
from _record import read_record, write_record
from torch import Tensor

from robustfusion import DRFHead

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "guides" / "few-labels.md"
STEPS, BATCH = 300, 64


def endless(
    split: Split, generator: torch.Generator
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches of a split in random order, for ever."""
    while True:
        for rows in torch.randperm(len(split), generator=generator).split(BATCH):
            yield {m: x[rows] for m, x in split.features.items()}, split.labels[rows]


def train(labelled: Split, unlabelled: Split | None, seed: int) -> DRFHead:
    """A head after as many steps, with or without unlabelled posts."""
    torch.manual_seed(seed)
    head = DRFHead(labelled.dims, labelled.num_classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    known = endless(labelled, generator)
    rest = None if unlabelled is None else endless(unlabelled, generator)
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


def render() -> None:
    """Write the table between the marks of the guide."""
    record = read_record("few_labels")
    lines = [
        f"`{record['command'].split(' --')[0]}` at commit `{record['commit']}`, "
        f"{record['data']}, {record['results']['folds']} folds, seeds "
        f"{', '.join(map(str, record['seeds']))}; mean accuracy in % over intact posts and "
        "those with either modality missing or corrupted; the difference with its paired standard "
        "error.",
        "",
        "| labelled posts | labelled alone | and the rest without labels | difference |",
        "|---:|---:|---:|---:|",
        *(
            f"| {n} | {row['alone']:.1f} | {row['with']:.1f} "
            f"| {row['difference']:+.1f} ± {row['error']:.1f} |"
            for n, row in record["results"]["rows"].items()
        ),
    ]
    before, rest = PAGE.read_text().split("<!-- measured -->", 1)
    after = rest.split("<!-- /measured -->", 1)[1]
    middle = "\n".join(["<!-- measured -->", "", *lines, "", "<!-- /measured -->"])
    PAGE.write_text(before + middle + after)


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
                labelled, rest = inside.rows(order[:count]), inside.rows(order[count:])
                for name, unlabelled in (("alone", None), ("with", rest)):
                    head = train(labelled, unlabelled, seed)
                    with torch.no_grad():
                        answers = [head(*inputs_of(outside, cell)).logits for cell in cells]
                    hit = [(a.argmax(1) == outside.labels).float() for a in answers]
                    right[name].append(torch.stack(hit).mean(0))
        alone, both = (torch.cat(right[name]) for name in ("alone", "with"))
        gap = both - alone
        rows[str(count)] = {
            "alone": 100 * float(alone.mean()),
            "with": 100 * float(both.mean()),
            "difference": 100 * float(gap.mean()),
            # The same post is there once a seed: its differences are no independent draws.
            "error": 100 * float(gap.std()) / (len(gap) / len(options.seeds)) ** 0.5,
        }
        print(count, rows[str(count)], flush=True)
    write_record(
        "few_labels",
        {"folds": options.folds, "rows": rows},
        data="MVSA-Single, training and validation posts",
        seeds=options.seeds,
    )
    render()


if __name__ == "__main__":
    main()
