"""One training loop for every head: AdamW, cosine schedule, a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from _data import Split, batches
from torch import Tensor, nn

from robustfusion import DRFClassifier, NeighborVoteHead, Standardize
from robustfusion.disruption import Disruption, disrupt_features


@dataclass(frozen=True)
class Training:
    """Length, rate and batch size of a training."""

    epochs: int = 10
    lr: float = 3e-4
    weight_decay: float = 0.01
    batch_size: int = 64


def scaled(head: nn.Module, features: Mapping[str, Tensor], **options: Any) -> DRFClassifier:
    """A head behind a fixed :class:`Standardize` of these features, its options as given."""
    scales = {
        name: Standardize(values.shape[1], **options).fit(values)
        for name, values in features.items()
    }
    return DRFClassifier(scales, head)


def to_train(model: nn.Module) -> nn.Module:
    """Training mode for all but the scales, which stay as they were fitted."""
    model.train()
    for module in model.modules():
        if isinstance(module, Standardize):
            module.eval()
    return model


def train(
    make_head: Callable[[], nn.Module],
    split: Split,
    training: Training,
    seed: int,
    *,
    disruption: Disruption | None = None,
) -> nn.Module:
    """Make a head under `seed` and train it; return it in evaluation mode, neighbor votes fitted.

    Args:
        make_head: makes the head; it draws from torch's global generator only.
        split: the training samples.
        training: epochs and optimiser.
        seed: of initial weights, dropout and order.
        disruption: disrupts the training samples, drawn anew each epoch; None for clean training.
    """
    torch.manual_seed(seed)
    head = to_train(make_head())
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
    )
    size = min(training.batch_size, len(split))
    steps = training.epochs * (len(split) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    features: Mapping[str, Tensor] = split.features
    available: Mapping[str, Tensor] = split.masks()
    for epoch in range(training.epochs):
        if disruption is not None:
            drawn = replace(disruption, seed=1000 * (seed + 1) + epoch)
            disrupted = disrupt_features(drawn, split.ids, split.features, split.corrupted)
            features, available = disrupted.inputs, disrupted.available
        for rows in batches(len(split), size, generator):
            output = head(
                {name: values[rows] for name, values in features.items()},
                {name: mask[rows] for name, mask in available.items()},
            )
            loss = head.loss(output, split.labels[rows])  # type: ignore[operator]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    head.eval()
    if isinstance(head, NeighborVoteHead):
        head.fit(split.features, split.labels)
    return head
