"""Are state and memory stable over a million batches and 100,000 steps of a small head?

    python benchmarks/stability.py

Writes ``results/stability.json``. Memory is the resident set (Linux) and what tracemalloc counts;
statistics are compared with the same ones kept in float64.
"""

import argparse
import gc
import os
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _record import write_record

from robustfusion import DRFHead, FeatureQueue, NeighborQualityEstimator
from robustfusion.moments import RunningMoments

DIM, CAPACITY, BATCH = 16, 1024, 4
MIB = 2**20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Drift and memory of a run, checked as it goes on."""

    def __init__(self, count: int) -> None:
        self.count, self.begun = count, time.perf_counter()
        self.resident: list[int] = []
        self.drift: list[float] = []
        self.traced = 0

    def checks_drift(self, step: int) -> bool:
        """Compare the running statistics after this step?"""
        return step % (self.count // 100) == 0 and step > 0

    def observe(self, step: int) -> None:
        if step % (self.count // 10) == 0:
            gc.collect()
            self.resident.append(resident())
        if step == self.count - self.count // 100:
            tracemalloc.start()  # it slows everything down, so not for the whole run
        if step == self.count - self.count // 200:
            self.traced = tracemalloc.get_traced_memory()[0]

    def results(self) -> dict[str, float]:
        """Growth is counted from the first tenth on, by when everything lazy exists."""
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0] - self.traced
        tracemalloc.stop()
        return {
            "seconds": round(time.perf_counter() - self.begun, 1),
            "largest_relative_drift": max(self.drift),
            "resident_mib": round(resident() / MIB, 1),
            "resident_growth_mib": round((resident() - self.resident[1]) / MIB, 2),
            "python_growth_kib_in_the_last_half_percent": round(traced / 1024, 1),
        }


def drift(moments: RunningMoments, exact: RunningMoments) -> float:
    """Largest difference of mean and deviation from those kept in float64, in deviations."""
    got, expected = moments.gaussian("diag"), exact.gaussian("diag")
    mean = ((got.mean - expected.mean).abs() / expected.scale).max()
    scale = ((got.scale - expected.scale).abs() / expected.scale).max()
    return float(torch.maximum(mean, scale))


def enqueues(count: int) -> dict[str, Any]:
    """Enqueue again and again from a distribution whose center wanders."""
    torch.manual_seed(0)
    queue, watch = FeatureQueue(DIM, CAPACITY), Watch(count)
    moments, exact = RunningMoments(DIM, CAPACITY), RunningMoments(DIM, CAPACITY).double()
    for step in range(count):
        rows = torch.randn(BATCH, DIM) + 5 + step / count * 20
        available = torch.rand(BATCH) > 0.2
        queue.enqueue(rows, available)
        moments.observe(rows, available)
        exact.observe(rows.double(), available)
        if watch.checks_drift(step):
            watch.drift.append(drift(moments, exact))
        watch.observe(step)
    return {"enqueues": count, "last_relative_drift": drift(moments, exact), **watch.results()}


def steps(count: int) -> dict[str, Any]:
    """Train a small head without end, while modalities come and go."""
    torch.manual_seed(0)
    dims = {"image": 8, "text": 6}
    quality = partial(NeighborQualityEstimator, capacity=64, neighbors=5)
    head = DRFHead(dims, 3, hidden_features=16, quality=quality)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    moments = {m: estimator.moments for m, estimator in head.estimators.items()}
    exact = {m: RunningMoments(dims[m], 64).double() for m in dims}
    centers = {name: torch.randn(3, dim) for name, dim in dims.items()}
    watch, right, last = Watch(count), 0, count // 100
    for step in range(count):
        labels = torch.randint(3, (8,))
        features = {m: centers[m][labels] + torch.randn(8, d) for m, d in dims.items()}
        available = {m: torch.rand(8) > 0.2 for m in dims}
        output = head(features, available)
        for m, rows in features.items():
            exact[m].observe(rows.double(), available[m])
        head.loss(output, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= count - last:
            right += int((output.logits.argmax(1) == labels).sum())
        if watch.checks_drift(step):
            watch.drift += [drift(moments[m], exact[m]) for m in dims]
            tensors = [*head.parameters(), *head.buffers()]
            assert all(bool(t.isfinite().all()) for t in tensors), f"not finite at step {step}"
        watch.observe(step)
    accuracy = round(right / (8 * last), 3)
    return {"steps": count, "accuracy_of_the_last_hundredth": accuracy, **watch.results()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--enqueues", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {"queue": enqueues(arguments.enqueues), "head": steps(arguments.steps)}
    print(results)
    write_record("stability", results, data="generated: Gaussian rows", seeds=[0])


if __name__ == "__main__":
    main()
