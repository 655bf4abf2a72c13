"""The robustness report over the full grid: time, memory, and what it reads and encodes.

python benchmarks/evaluation_speed.py    # writes benchmarks/results/evaluation_speed.json
"""

import argparse
import time
import tracemalloc
from typing import Any

import torch
from _record import write_record

from robustfusion import DRFClassifier, DRFHead, PaperDRFHead
from robustfusion.disruption import FeatureCorruption
from robustfusion.evaluation import CachedFeatures, RawSamples, robustness_report

DIMS = {"image": 768, "text": 768}
SEEDS = 5
SECONDS = 4.0
POSTS = 200


def make_data(samples: int, corruption: str) -> CachedFeatures:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (samples,), generator=generator)
    features: dict[str, Any] = {}
    corrupted: dict[str, Any] = {}
    for name, dim in DIMS.items():
        centres = torch.randn(3, dim, generator=generator)
        features[name] = centres[labels] + torch.randn(samples, dim, generator=generator)
        draws = torch.randn(2, samples, dim, generator=generator)
        corrupted[name] = draws if corruption == "cached" else FeatureCorruption(kind="shuffle")
    return CachedFeatures(features, labels, corrupted=corrupted)


def filled_head(variant: str) -> torch.nn.Module:
    torch.manual_seed(0)
    head: torch.nn.Module = PaperDRFHead(DIMS, 3) if variant == "paper" else DRFHead(DIMS, 3)
    head.train()
    with torch.no_grad():
        for _ in range(8):
            head({name: torch.randn(256, dim) for name, dim in DIMS.items()})
    return head


def seconds(head: torch.nn.Module, data: CachedFeatures) -> float:
    start = time.perf_counter()
    report = robustness_report(head, data, seeds=range(SEEDS))
    assert report.scores  # the scores and their intervals are made when they are asked for
    return time.perf_counter() - start


def traced_peak(head: torch.nn.Module, data: CachedFeatures, seeds: int) -> int:
    """The most bytes at once; numpy reports its arrays: what the report itself piles up."""
    tracemalloc.start()
    report = robustness_report(head, data, seeds=range(seeds))
    assert report.scores
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


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
    """An encoder that remembers what it was given."""

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
    seen = [row for encoder in encoders.values() for row in encoder.seen]
    distinct = sum(len(set(encoder.seen)) for encoder in encoders.values())
    what = f"report on {POSTS} raw samples, {SEEDS} disruption seeds, {len(names)} modalities"
    rows = []
    for kind, found, beside, of, goal in (
        ("encodings", len(seen), "distinct inputs", distinct, 1.05),
        ("reads", posts.reads, "samples times (1 + seeds)", POSTS * (1 + SEEDS), 1.0),
    ):
        row = {"what": f"{kind} of a {what}", "count": found, "beside": beside, "beside_count": of}
        rows.append({**row, "ratio": found / of, "goal": goal, "met": found / of <= goal})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for variant, corruption in (("default", "cached"), ("default", "drawn"), ("paper", "cached")):
        data, head = make_data(arguments.samples, corruption), filled_head(variant)
        took = seconds(head, data)
        name = type(head).__name__
        rows.append(
            {
                "what": f"full grid, {arguments.samples:,} samples, {SEEDS} disruption seeds, "
                f"{name}, corrupted features {corruption}",
                "ms": 1000 * took,
                "beside": "what was asked",
                "beside_ms": 1000 * SECONDS,
                "ratio": took / SECONDS,
                "goal": 1.0,
                "met": took <= SECONDS,
            }
        )
    head = filled_head("default")
    small, large = (seconds(head, make_data(n, "cached")) for n in (450, 19_524))
    rows.append(
        {
            "what": f"full grid, 19,524 samples, {SEEDS} disruption seeds, DRFHead",
            "ms": 1000 * large,
            "beside": "450 samples",
            "beside_ms": 1000 * small,
            "ratio": large / small,
            "goal": None,
            "met": None,
        }
    )
    data = make_data(arguments.samples, "cached")
    one, many = traced_peak(head, data, 1), traced_peak(head, data, 2 * SEEDS)
    rows.append(
        {
            "what": f"peak memory of the report, {2 * SEEDS} disruption seeds",
            "bytes": many,
            "beside": "1 seed",
            "beside_bytes": one,
            "ratio": many / one,
            "goal": 1.1,
            "met": many / one <= 1.1,
        }
    )
    rows += counts(("image", "text")) + counts(("image", "text", "audio"))
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    write_record("evaluation_speed", {"rows": rows}, data="random features", seeds=[0])


if __name__ == "__main__":
    main()
