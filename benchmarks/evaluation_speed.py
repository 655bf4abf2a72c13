"""Time and memory of the robustness report over the full grid on cached features.

python benchmarks/evaluation_speed.py    # writes benchmarks/results/evaluation_speed.json
"""

import argparse
import time
import tracemalloc
from typing import Any

import torch
from _record import write_record

from robustfusion import DRFHead
from robustfusion.disruption import FeatureCorruption
from robustfusion.evaluation import CachedFeatures, robustness_report

DIMS = {"image": 768, "text": 768}
SEEDS = 5
SECONDS = 20.0


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
    head: torch.nn.Module = DRFHead.paper(DIMS, 3) if variant == "paper" else DRFHead(DIMS, 3)
    head.train()
    with torch.no_grad():
        for _ in range(8):
            head({name: torch.randn(256, dim) for name, dim in DIMS.items()})
    return head


def seconds(head: torch.nn.Module, data: CachedFeatures) -> float:
    start = time.perf_counter()
    robustness_report(head, data, seeds=range(SEEDS), progress=False)
    return time.perf_counter() - start


def traced_peak(head: torch.nn.Module, data: CachedFeatures, seeds: int) -> int:
    """The most bytes at once; numpy reports its arrays: what the report itself piles up."""
    tracemalloc.start()
    robustness_report(head, data, seeds=range(seeds), progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


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
        name = "DRFHead" if variant == "default" else "DRFHead.paper"
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
    data, head = make_data(arguments.samples, "cached"), filled_head("default")
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
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    write_record("evaluation_speed", {"rows": rows}, data="random features", seeds=[0])


if __name__ == "__main__":
    main()
