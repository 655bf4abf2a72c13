"""Does it stay flat and right for ever? One million enqueues, 100,000 steps of a small head.

    python benchmarks/long_run.py

Writes ``results/long_run.json``. Memory is the resident set (Linux) and what tracemalloc counts;
statistics are compared with those recomputed from the queue's rows in float64.
"""

import argparse
import gc
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import torch
from _record import write_record

from robustfusion import DRFHead, FeatureQueue, NeighborQualityEstimator
from robustfusion.functional import fit_gaussian

DIM, CAPACITY, BATCH = 16, 1024, 4
MIB = 2**20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Resident memory after each tenth of the run, and Python's own over the last hundredth."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.resident: list[int] = []
        self.traced = 0

    def look(self, step: int) -> None:
        if step % (self.count // 10) == 0:
            gc.collect()
            self.resident.append(resident())
        if step == self.count - self.count // 100:
            tracemalloc.start()  # it slows everything down, so not for the whole run
        if step == self.count - self.count // 200:
            self.traced = tracemalloc.get_traced_memory()[0]

    def growth(self) -> dict[str, float]:
        """Return growth since the first tenth, by when every lazy thing has been made."""
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0] - self.traced
        tracemalloc.stop()
        return {
            "resident_mib": round(resident() / MIB, 1),
            "resident_growth_mib": round((resident() - self.resident[1]) / MIB, 2),
            "python_growth_kib_in_the_last_half_percent": round(traced / 1024, 1),
        }


def drift(queue: FeatureQueue) -> float:
    """Largest relative error of mean and standard deviation against the rows themselves."""
    assert queue.moments is not None
    expected = fit_gaussian(queue.storage.double(), queue.valid, covariance_type="diag")
    got = queue.moments.gaussian("diag")
    mean = ((got.mean - expected.mean).abs() / expected.scale).max()
    scale = ((got.scale - expected.scale).abs() / expected.scale).max()
    return float(torch.maximum(mean, scale))


def enqueues(count: int) -> dict[str, Any]:
    """Enqueue again and again from a distribution whose centre wanders."""
    torch.manual_seed(0)
    queue = FeatureQueue(DIM, CAPACITY, track_moments=True)
    watch, worst, begun = Watch(count), 0.0, time.perf_counter()
    for step in range(count):
        rows = torch.randn(BATCH, DIM) + 5 + step / count * 20
        queue.enqueue(rows, torch.rand(BATCH) > 0.2)
        if step % (count // 100) == 0 and step:
            worst = max(worst, drift(queue))
        watch.look(step)
    return {
        "enqueues": count,
        "seconds": round(time.perf_counter() - begun, 1),
        "largest_relative_drift": worst,
        "last_relative_drift": drift(queue),
        **watch.growth(),
    }


def small_quality(dim: int) -> NeighborQualityEstimator:
    return NeighborQualityEstimator(dim, capacity=64, neighbors=5)


def steps(count: int) -> dict[str, Any]:
    """Train a small head without end, rows coming and going."""
    torch.manual_seed(0)
    dims = {"image": 8, "text": 6}
    head = DRFHead(dims, 3, hidden_features=16, quality=small_quality)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    centres = {name: torch.randn(3, dim) for name, dim in dims.items()}
    watch, worst, right, begun = Watch(count), 0.0, 0, time.perf_counter()
    for step in range(count):
        labels = torch.randint(3, (8,))
        features = {m: centres[m][labels] + torch.randn(8, d) for m, d in dims.items()}
        available = {m: torch.rand(8) > 0.2 for m in dims}
        output = head(features, available)
        head.loss(output, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= count - count // 100:
            right += int((output.logits.argmax(1) == labels).sum())
        if step % (count // 100) == 0 and step:
            worst = max(worst, *(drift(queue) for queue in head.queues.values()))
            tensors = [*head.parameters(), *head.buffers()]
            assert all(bool(t.isfinite().all()) for t in tensors), f"not finite at step {step}"
        watch.look(step)
    return {
        "steps": count,
        "seconds": round(time.perf_counter() - begun, 1),
        "largest_relative_drift": worst,
        "accuracy_of_the_last_hundredth": round(right / (8 * (count // 100)), 3),
        **watch.growth(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--enqueues", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {"queue": enqueues(arguments.enqueues), "head": steps(arguments.steps)}
    for part, figures in results.items():
        print(part, figures)
    path = write_record("long_run", results, data="generated: Gaussian rows", seeds=[0])
    print(path)


if __name__ == "__main__":
    main()
