"""A training loop that can be stopped at any step and goes on to the same result, bit for bit."""

import copy
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from main_job.checkpoints import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from main_job.encoders import SetupError
from robustfusion import calibrate
from robustfusion.disruption import robustness_grid
from robustfusion.evaluation import CachedFeatures


@dataclass(frozen=True)
class Recipe:
    """AdamW with a learning rate for each encoder and one for the head, cosine to ``final_lr``."""

    epochs: int
    batch_size: int
    encoder_lr: dict[str, float]
    lr: float
    final_lr: float = 1e-6
    weight_decay: float = 0.01


class Interrupted(Exception):
    """Ctrl-C during training; the checkpoint is written."""


def train(
    model: nn.Module,
    posts: CachedFeatures | Callable[[int], CachedFeatures],
    validate: Callable[[nn.Module], float],
    recipe: Recipe,
    directory: Path,
    *,
    seed: int,
    device: str = "cpu",
    save_every: int = 200,
    title: str = "model",
    on_save: Callable[[], None] = lambda: None,
    loss: Callable[..., Tensor] = lambda model, output, labels, rows: model.loss(output, labels),
) -> list[dict[str, float]]:
    """Train, choose the epoch by ``validate``, and leave the model as it was then.

    The checkpoint in ``directory`` is written every ``save_every`` steps, after each epoch and on
    Ctrl-C, and is gone on from where there is one. What a step does depends on the checkpoint
    alone: the order of an epoch comes from (seed, epoch), the rest from the states it holds.

    Args:
        model: with the head contract; built under ``seed``.
        posts: to train on, or a function from an epoch to its posts, always the same number.
        validate: from a model to a score, higher is better; must leave random states alone.
        recipe: how.
        directory: of ``checkpoint.safetensors`` and ``best.safetensors``.
        seed: of order and dropout.
        device: where.
        save_every: steps.
        title: of the progress bar.
        on_save: called with each checkpoint.
        loss: from model, output, labels and the rows of the posts to the loss.

    Returns:
        For each epoch its number, mean training loss, the part of it that needs no labels (the
        loss of the recovery), and validation score.
    """
    model.to(device)
    groups = [
        {"params": list(encoder.parameters()), "base_lr": recipe.encoder_lr[name]}
        for name, encoder in model.encoders.items()
    ]
    groups.append({"params": list(model.head.parameters()), "base_lr": recipe.lr})
    optimizer = torch.optim.AdamW(
        groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    current, drawn = (posts(0), 0) if callable(posts) else (posts, 0)
    per_epoch = math.ceil(len(current.ids) / recipe.batch_size)
    total = recipe.epochs * per_epoch
    last, best = directory / "checkpoint.safetensors", directory / "best.safetensors"
    state: dict[str, Any] = {"step": 0, "loss": 0.0, "recovery": 0.0, "history": []}
    torch.manual_seed(seed)
    if last.exists():
        try:
            saved = load_checkpoint(last)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            restore_random_state(saved["random"])
            state |= saved["state"]
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise SetupError(f"training cannot go on from {last} ({reason})") from error

    def save() -> None:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(last, {**parts, "random": random_state(), "state": state})
        on_save()

    bar = tqdm(
        total=total,
        initial=state["step"],
        desc=f"train {title}",
        unit="step",
        leave=False,
        disable=None,
    )
    with bar, catch_interrupt() as interrupted:
        while state["step"] < total:
            epoch, batch = divmod(state["step"], per_epoch)
            if callable(posts) and epoch != drawn:
                current, drawn = posts(epoch), epoch
            order = epoch_order(len(current.ids), seed, epoch)
            rows = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            set_learning_rates(optimizer, state["step"] / total, recipe.final_lr)
            whole, recovery = step(model, optimizer, current, rows, device, loss)
            state["loss"] += whole
            state["recovery"] += recovery
            state["step"] += 1
            bar.update()
            if state["step"] % per_epoch == 0:
                score = validate(model)
                mean = state["loss"] / per_epoch
                if not math.isfinite(mean):
                    raise FloatingPointError(f"the training loss of {title} is {mean}")
                if score > max((row["score"] for row in state["history"]), default=-math.inf):
                    save_checkpoint(best, model.state_dict())
                terms = {"loss": mean, "recovery": state["recovery"] / per_epoch}
                state["history"].append({"epoch": epoch + 1, **terms, "score": score})
                state["loss"] = state["recovery"] = 0.0
                bar.set_postfix(loss=f"{mean:.3f}", val=f"{score:.3f}")
                save()
            elif state["step"] % save_every == 0:
                save()
            if interrupted():
                save()
                raise Interrupted
    model.load_state_dict(load_checkpoint(best))
    return list(state["history"])


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    posts: CachedFeatures,
    rows: Tensor,
    device: str,
    objective: Callable[..., Tensor],
) -> tuple[float, float]:
    """Make one step and return its loss, and the part of it that needs no labels."""
    model.train()
    inputs = take(posts.features, rows, device)
    out = model(inputs, take(posts.available, rows, device))
    loss = objective(model, out, posts.labels[rows].to(device), rows)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach()), float(out.aux_loss.detach())


def loss_terms(history: list[dict[str, float]]) -> str:
    """Return the terms of the training loss in the last epoch, in words."""
    loss, recovery = history[-1]["loss"], history[-1]["recovery"]
    parts = f" = {loss - recovery:.2f} prediction + {recovery:.2f} recovery" if recovery else ""
    return f"training loss {loss:.2f}{parts}"


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right classes."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


@torch.no_grad()
def validation_score(
    model: nn.Module,
    posts: CachedFeatures,
    seed: int,
    device: str,
    score: Callable[[Tensor, Tensor], float] = accuracy,
) -> float:
    """Return the mean score over clean posts and each modality corrupted and discarded.

    A head that judges quality is measured as it will be used, calibrated: to an encoder in
    training, posts that it was trained on look more usual than any others will.
    """
    if hasattr(model.head, "estimators"):
        model = copy.deepcopy(model)
        calibrate(model, clean_batches(posts, device))
    mode = model.training
    model.eval()
    scores = []
    for condition in robustness_grid(posts.modalities, settings=("C", "D"), rates=()):
        disruption = dataclasses.replace(condition, seed=seed)
        logits, labels = [], []
        for batch in posts.batches(disruption, np.arange(len(posts.ids)), 256):
            inputs, available = to(batch["inputs"], device), to(batch["available"], device)
            logits.append(model(inputs, available).logits.cpu())
            labels.append(batch["label"])
        scores.append(score(torch.cat(logits), torch.cat(labels)))
    model.train(mode)
    return sum(scores) / len(scores)


def clean_batches(posts: CachedFeatures, device: str) -> Iterator[dict[str, Any]]:
    """Yield posts as they are, in order."""
    for rows in torch.arange(len(posts.ids)).split(256):
        yield {
            "inputs": take(posts.features, rows, device),
            "available": take(posts.available, rows, device),
            "label": posts.labels[rows].to(device),
            "id": [posts.ids[row] for row in rows.tolist()],
        }


@torch.no_grad()
def certainty(model: nn.Module, posts: CachedFeatures, device: str) -> list[float]:
    """Return the largest probability of each post, sorted: where to draw a line is read there.

    It is empty for several labels and for numbers.
    """
    if model.head.task != "multiclass":
        return []
    model.eval()
    logits = [model(b["inputs"], b["available"]).logits for b in clean_batches(posts, device)]
    sure = torch.cat(logits).softmax(1).amax(1).sort().values
    return [round(value, 6) for value in sure.tolist()]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the posts in an epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))


def set_learning_rates(optimizer: torch.optim.Optimizer, progress: float, final_lr: float) -> None:
    """Set each group's rate to its place on a cosine from ``base_lr`` to ``final_lr``."""
    for group in optimizer.param_groups:
        span = max(group["base_lr"] - final_lr, 0.0)
        group["lr"] = final_lr + 0.5 * span * (1 + math.cos(math.pi * progress))


def take(value: Any, rows: Tensor, device: str) -> Any:
    """Pick rows of a tensor, or of a mapping of such values, and move them."""
    if isinstance(value, Mapping):
        return {key: take(entry, rows, device) for key, entry in value.items()}
    return value[rows].to(device)


def to(value: Any, device: str) -> Any:
    """Move a tensor, or a mapping of such values."""
    if isinstance(value, Mapping):
        return {key: to(entry, device) for key, entry in value.items()}
    return value.to(device)


@contextmanager
def catch_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the step is over; a second one stops at once."""
    seen = []

    def note(*_: Any) -> None:
        seen.append(True)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
