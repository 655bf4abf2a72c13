"""The robustness report over the full grid: time, memory, and what it reads and encodes.

python benchmarks/evaluation_speed.py    # writes benchmarks/results/evaluation_speed.json
"""

import argparse
import time
import tracemalloc
from typing import Any

import torch
from _ratios import finish, row

from robustfusion import DRFClassifier, DRFHead, PaperDRFHead
from robustfusion.disruption import FeatureCorruption
from robustfusion.evaluation import CachedFeatures, RawSamples, robustness_report

DIMS = {"image": 768, "text": 768}
SEEDS, POSTS = 5, 200
GOAL_MS = 4800.0


def make_data(samples: int, corruption: str) -> CachedFeatures:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (samples,), generator=generator)
    features: dict[str, Any] = {}
    corrupted: dict[str, Any] = {}
    for name, dim in DIMS.items():
        centers = torch.randn(3, dim, generator=generator)
        features[name] = centers[labels] + torch.randn(samples, dim, generator=generator)
        draws = torch.randn(2, samples, dim, generator=generator)
        corrupted[name] = draws if corruption == "cached" else FeatureCorruption(kind="shuffle")
    return CachedFeatures(features, labels, corrupted=corrupted)


def filled_head(make: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    head: torch.nn.Module = make(DIMS, 3).train()
    with torch.no_grad():
        for _ in range(8):
            head({name: torch.randn(256, dim) for name, dim in DIMS.items()})
    return head


def report(head: torch.nn.Module, data: CachedFeatures, seeds: int) -> tuple[float, int]:
    """Milliseconds of a report, and the most bytes that it holds at once."""
    start = time.perf_counter()
    assert robustness_report(head, data, seeds=range(seeds)).scores  # computed when they are read
    took = 1000 * (time.perf_counter() - start)
    return took, tracemalloc.get_traced_memory()[1]  # numpy reports its arrays to it


class Posts:
    """Raw samples that count how often they are read."""

    def __init__(self, names: tuple[str, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = {name: torch.randn(POSTS, 24, generator=generator) for name in names}
        self.reads = 0

    def __len__(self) -> int:
        return POSTS

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.reads += 1
        return {"inputs": {m: x[row] for m, x in self.rows.items()}, "label": row % 3}


class Counting(torch.nn.Module):
    """An encoder that remembers its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.seen += [row.numpy().tobytes() for row in rows]
        return rows


def counts(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows on what a report on raw samples reads and encodes."""
    posts, encoders = Posts(names), {name: Counting() for name in names}
    data = RawSamples(posts, dict.fromkeys(names, FeatureCorruption()))
    model = DRFClassifier(encoders, DRFHead(dict.fromkeys(names, 24), 3))
    posts.reads = 0
    robustness_report(model, data, seeds=range(SEEDS))
    seen = sum(len(encoder.seen) for encoder in encoders.values())
    distinct = sum(len(set(encoder.seen)) for encoder in encoders.values())
    what = f"of a report on {POSTS} raw samples, {SEEDS} disruption seeds, {len(names)} modalities"
    once, words = POSTS * (1 + SEEDS), "samples times (1 + seeds)"
    return [
        row(f"encodings {what}", seen, distinct, "distinct inputs", 1.05, unit="count"),
        row(f"reads {what}", posts.reads, once, words, 1.0, unit="count"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for make, corruption in ((DRFHead, "cached"), (DRFHead, "drawn"), (PaperDRFHead, "cached")):
        took, _ = report(filled_head(make), make_data(arguments.samples, corruption), SEEDS)
        what = f"full grid, {arguments.samples:,} samples, {SEEDS} disruption seeds, "
        what += f"{make.__name__}, corrupted features {corruption}"
        rows.append(row(what, took, GOAL_MS, "the goal", 1.0))
    head = filled_head(DRFHead)
    small, large = (report(head, make_data(n, "cached"), SEEDS)[0] for n in (450, 19_524))
    what = f"full grid, 19,524 samples, {SEEDS} disruption seeds, DRFHead"
    rows.append(row(what, large, small, "450 samples"))
    data, peaks = make_data(arguments.samples, "cached"), []
    for seeds in (1, 2 * SEEDS):
        tracemalloc.start()
        peaks.append(report(head, data, seeds)[1])
        tracemalloc.stop()
    what = f"peak memory of the report, {2 * SEEDS} disruption seeds"
    rows.append(row(what, peaks[1], peaks[0], "1 seed", 1.1, unit="bytes"))
    rows += counts(("image", "text")) + counts(("image", "text", "audio"))
    finish("evaluation_speed", rows, data="random features")


if __name__ == "__main__":
    main()
