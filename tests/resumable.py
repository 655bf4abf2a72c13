"""A small training run that may be killed at any moment, for test_reliability.py."""

import os
from pathlib import Path
from typing import Any

import torch
from main_job.checkpoints import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from torch import nn

from robustfusion import DRFClassifier, DRFHead, NeighborQualityEstimator, PaperDRFHead

SAMPLES, BATCH, STEPS, SAVE_EVERY, SEED = 44, 8, 60, 3, 7
DIMS = {"image": 8, "text": 6}


def make_model(kind: str) -> DRFClassifier:
    torch.manual_seed(SEED)
    encoders = {
        m: nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Dropout(0.2)) for m, d in DIMS.items()
    }
    if kind == "paper":
        return DRFClassifier(encoders, PaperDRFHead(DIMS, 3))
    head = DRFHead(DIMS, 3, hidden_features=16, quality=small_quality)
    return DRFClassifier(encoders, head)


def small_quality(dim: int) -> NeighborQualityEstimator:
    """Build an estimator whose queue closes its ring within the run."""
    return NeighborQualityEstimator(dim, capacity=100, neighbors=3)


def train(folder: str, kind: str) -> None:
    """Train, or go on; note every step's rows in ``order.txt`` before it is made."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.randint(3, (SAMPLES,), generator=generator)
    data = {
        m: torch.randn(SAMPLES, d, generator=generator) + labels[:, None] for m, d in DIMS.items()
    }
    model = make_model(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    path, start = Path(folder) / "last.pt", 0
    if path.exists():
        state = load_checkpoint(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        restore_random_state(state["random"])
        start = state["step"]
    per_epoch = -(-SAMPLES // BATCH)
    log = os.open(Path(folder) / "order.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for step in range(start, STEPS):
        epoch, place = divmod(step, per_epoch)
        shuffled = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        rows = shuffled[place * BATCH : (place + 1) * BATCH]
        os.write(log, f"{step}: {rows.tolist()}\n".encode())
        model.train()
        available = {m: torch.rand(len(rows)) > 0.2 for m in DIMS}  # the global generator counts
        output = model({m: x[rows] for m, x in data.items()}, available)
        optimizer.zero_grad()
        loss: Any = model.loss(output, labels[rows])
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % SAVE_EVERY == 0:
            parts: dict[str, Any] = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "random": random_state(),
                "step": step + 1,
            }
            save_checkpoint(path, parts)
    save_checkpoint(Path(folder) / "final.pt", model.state_dict())
