"""A checkpoint that four ranks wrote is gone on from by two, and by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from main_job.checkpoints import load_checkpoint, save_checkpoint
from ranks import Batch, buffers, joined, make_head, run_ranks, shard, train_step, wrap
from torch import Tensor

BEFORE, AFTER = 4, 4


def share(step: int, rank: int, world: int) -> Batch:
    """Cut the rows of four ranks, in order, into as many batches as there are ranks now."""
    features, available, labels = joined(step, 4)
    bounds = [index * len(labels) // world for index in range(world + 1)]
    own = slice(bounds[rank], bounds[rank + 1])
    return (
        {name: rows[own] for name, rows in features.items()},
        {name: mask[own] for name, mask in available.items()},
        labels[own],
    )


def writer(rank: int, world: int, kind: str, path: str) -> dict[str, Tensor]:
    model: Any = wrap(make_head(kind))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(BEFORE):
        train_step(model, optimizer, shard(step, rank))
    if rank == 0:  # every rank holds the same: one file for all
        state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(path, state)
    written: dict[str, Tensor] = buffers(model.module)
    return written


def reader(rank: int, world: int, kind: str, path: str) -> Any:
    head = make_head(kind)
    state = load_checkpoint(path)
    head.load_state_dict(state["model"])
    model: Any = wrap(head) if world > 1 else head
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.load_state_dict(state["optimizer"])
    loaded = buffers(head)
    for step in range(BEFORE, BEFORE + AFTER):
        train_step(model, optimizer, share(step, rank, world))
    return loaded, buffers(head), {name: p.detach() for name, p in head.named_parameters()}


@pytest.mark.parametrize("kind", ["paper", "default"])
@pytest.mark.parametrize("fewer", [1, 2])
def test_four_ranks_resume_on_fewer(kind: str, fewer: int, tmp_path: Path) -> None:
    path = str(tmp_path / "last.pt")
    written = run_ranks(4, writer, kind, path)
    got = run_ranks(fewer, reader, kind, path)
    expected = run_ranks(4, reader, kind, path)
    for loaded, final, parameters in got:
        for name, buffer in written[0].items():
            assert torch.equal(loaded[name], buffer), name
        # The head alone does not change what enters the queue, so neither does the ranks' number;
        # DDP's mean over ranks weighs samples by the size of their batch, so weights may differ.
        for name, buffer in expected[0][1].items():
            if kind == "default":
                assert torch.equal(final[name], buffer), name
        for name, parameter in parameters.items():
            assert parameter.isfinite().all(), name
            assert torch.equal(parameter, got[0][2][name]), name
    assert any(not torch.equal(got[0][1][n], written[0][n]) for n in written[0])
