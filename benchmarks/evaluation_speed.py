"""Time and memory of the robustness report over the full grid on cached features.

python benchmarks/evaluation_speed.py --samples 4000 --seeds 5 --output result.json
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import torch

from robustfusion import DRFHead
from robustfusion.disruption import FeatureCorruption
from robustfusion.evaluation import CachedFeatures, robustness_report


def make_data(samples: int, dims: dict[str, int], corruption: str) -> CachedFeatures:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (samples,), generator=generator)
    features, corrupted = {}, {}
    for name, dim in dims.items():
        centres = torch.randn(3, dim, generator=generator)
        features[name] = centres[labels] + torch.randn(samples, dim, generator=generator)
        draws = torch.randn(2, samples, dim, generator=generator)
        corrupted[name] = draws if corruption == "cached" else FeatureCorruption(kind="shuffle")
    return CachedFeatures(features, labels, corrupted=corrupted)


def filled_head(dims: dict[str, int], variant: str) -> torch.nn.Module:
    torch.manual_seed(0)
    head: torch.nn.Module = DRFHead.paper(dims, 3) if variant == "paper" else DRFHead(dims, 3)
    head.train()
    with torch.no_grad():
        for _ in range(8):
            head({name: torch.randn(256, dim) for name, dim in dims.items()})
    return head


def measure(args: argparse.Namespace, seeds: int, count_memory: bool = False) -> dict[str, object]:
    dims = {"image": args.image_dim, "text": args.text_dim}
    data, head = make_data(args.samples, dims, args.corruption), filled_head(dims, args.head)
    if count_memory:
        # numpy reports its arrays to tracemalloc: what the report itself piles up.
        tracemalloc.start()
    start, cpu = time.perf_counter(), time.process_time()
    report = robustness_report(
        head, data, seeds=range(seeds), batch_size=args.batch_size, progress=args.progress
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    made: dict[str, object] = {"seeds": seeds, "cells": len(report.cells)}
    if count_memory:
        made["traced_peak_mib"] = round(tracemalloc.get_traced_memory()[1] / 2**20, 1)
        tracemalloc.stop()
    else:
        start = time.perf_counter()
        text = report.to_json()
        made |= {"report_s": round(seconds, 2), "report_cpu_s": round(cpu, 2)}
        made["json_s"] = round(time.perf_counter() - start, 2)
        made["json_mib"] = round(len(text) / 2**20, 2)
    made["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--image-dim", type=int, default=768)
    parser.add_argument("--text-dim", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[5])
    parser.add_argument("--head", choices=("default", "paper"), default="default")
    parser.add_argument("--corruption", choices=("cached", "function"), default="cached")
    parser.add_argument("--memory", action="store_true", help="trace memory instead of time")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "threads": args.threads,
        "samples": args.samples,
        "dims": [args.image_dim, args.text_dim],
        "head": args.head,
        "corruption": args.corruption,
        "runs": [measure(args, seeds, args.memory) for seeds in args.seeds],
    }
    text = json.dumps(record, indent=2) + "\n"
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
