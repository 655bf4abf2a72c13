"""Run a function on several ranks of one machine, with gloo on the CPU."""

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustfusion import DRFHead, FeatureQueue, NeighborQualityEstimator, PaperDRFHead

DIMS = {"image": 6, "text": 4}
# DistributedDataParallel imports the compiler: once for all ranks, not in each.
PRELOAD = ["torch", "torch._dynamo", "torch._inductor.utils", "robustfusion"]
Batch = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``function(rank, world, *arguments)`` returns on each rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_one_rank, args=(rank, world, folder, function, arguments))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(120)
                assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def _one_rank(
    rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    result = function(rank, world, *arguments)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()


def make_head(kind: str, **options: Any) -> nn.Module:
    """Build the same small head on every rank."""
    torch.manual_seed(0)
    if kind == "paper":
        head = PaperDRFHead(DIMS, num_classes=3)
        head.queues["text"] = FeatureQueue(DIMS["text"], 20)  # so that the ring closes
        return head
    if kind == "paper-small":
        return PaperDRFHead(DIMS, num_classes=3)
    return DRFHead(
        DIMS,
        num_classes=3,
        hidden_features=8,
        dropout=0.0,
        quality=small_quality,
        **options,
    )


def small_quality(dim: int) -> NeighborQualityEstimator:
    """Build an estimator whose rings close within a test."""
    return NeighborQualityEstimator(dim, capacity=20, neighbors=2)


def shard(step: int, rank: int) -> Batch:
    """Make a batch of its own size: rank 1 of step 2 is empty, rank 0 of step 3 lacks the text."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    rows = 0 if (step, rank) == (2, 1) else 2 + (3 * step + 5 * rank) % 7
    labels = torch.randint(3, (rows,), generator=generator)
    features = {
        name: torch.randn(rows, dim, generator=generator) + labels[:, None]
        for name, dim in DIMS.items()
    }
    available = {name: torch.rand(rows, generator=generator) > 0.3 for name in DIMS}
    if (step, rank) == (3, 0):
        available["text"].zero_()
    for name, mask in available.items():
        features[name][~mask] = torch.nan  # what is masked may be anything
    return features, available, labels


def joined(step: int, ranks: int) -> Batch:
    """Return the batches of all ranks behind each other."""
    shards = [shard(step, rank) for rank in range(ranks)]
    features = {name: torch.cat([s[0][name] for s in shards]) for name in DIMS}
    available = {name: torch.cat([s[1][name] for s in shards]) for name in DIMS}
    return features, available, torch.cat([s[2] for s in shards])


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copy a module's buffers."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def wrap(module: nn.Module, *, sync_buffers: bool = True, **options: Any) -> nn.Module:
    """Wrap in DistributedDataParallel under the names of this version of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return DistributedDataParallel(module, forward_sync_buffers=sync_buffers, **options)
        except TypeError:
            return DistributedDataParallel(module, broadcast_buffers=sync_buffers, **options)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer | None, batch: Batch) -> None:
    """Make one step; without an optimizer only gradients add up."""
    head: Any = getattr(model, "module", model)
    features, available, labels = batch
    model.train()
    head.loss(model(features, available), labels).backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
