"""Train a DRF classifier whose parameters are sharded over processes by FSDP2.

    torchrun --nproc-per-node 2 examples/train_fsdp.py
    torchrun --nproc-per-node 3 examples/train_fsdp.py --resume --epochs 30

Each process holds a part of every parameter and of the optimizer's state, and saves that part
with torch.distributed.checkpoint. Training can be resumed on any number of processes. The queues
are buffers: FSDP2 does not shard them, so every process holds all of them. Needs
``robustfusion[examples]``.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import typer
from digits import HalfDigits, inputs_of, make_model
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler


def shard(model: Any, device: str) -> Any:
    """Shard each encoder, the head, and the parameters outside of both."""
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for part in (*model.encoders.values(), model.head, model):
        fully_shard(part, mesh=mesh)
    return model


def save(folder: Path, epoch: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Save the parts of all processes; every process has to call this."""
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "epoch": epoch}
    dcp.save(state, checkpoint_id=folder / f"epoch-{epoch:03d}")


def load(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Load the latest complete checkpoint into model and optimizer, and return its epoch."""
    # A checkpoint with .metadata is complete: that file is written last.
    latest = max(folder.glob("epoch-*/.metadata")).parent
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "epoch": 0}
    dcp.load(state, checkpoint_id=latest)  # in place: each process reads its own part
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    return int(state["epoch"])


@torch.no_grad()
def accuracy(model: Any, lost: str | None, device: str) -> float:
    """Return the accuracy on the test digits, with one half missing or none."""
    model.eval()
    batch = next(iter(DataLoader(HalfDigits("test", lost), batch_size=len(HalfDigits("test")))))
    batch = {name: value.to(device) for name, value in batch.items()}
    return float((model(*inputs_of(batch)).logits.argmax(1) == batch["labels"]).float().mean())


def main(
    epochs: int = 20, output_dir: Path = Path("runs/train_fsdp"), resume: bool = False
) -> None:
    """Train, save after each epoch, and evaluate with both halves and with each missing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    torch.manual_seed(0)  # every rank starts from the same weights
    model = shard(make_model().to(device), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    start = load(output_dir, model, optimizer) if resume else 0
    data = HalfDigits("train")
    sampler = DistributedSampler(data)  # the head needs as many batches on every rank
    for epoch in range(start + 1, epochs + 1):
        sampler.set_epoch(epoch)
        model.train()
        for batch in DataLoader(data, batch_size=32, sampler=sampler):
            batch = {name: value.to(device) for name, value in batch.items()}
            loss = model.loss(model(*inputs_of(batch)), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        save(output_dir, epoch, model, optimizer)
        if dist.get_rank() == 0:
            print(f"epoch {epoch:2d}  loss {loss.item():.3f}")
    for lost in (None, "upper", "lower"):
        score = accuracy(model, lost, device)
        if dist.get_rank() == 0:
            print(f"accuracy, {lost or 'nothing'} missing: {score:.3f}")
    dist.barrier()  # a rank that exits early can stop the others
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
