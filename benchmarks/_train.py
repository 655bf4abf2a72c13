"""One training loop for every head: AdamW, cosine schedule, a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from _data import Split, batches
from torch import Tensor, nn

from robustfusion.disruption import Disruption, disrupt_features


@dataclass(frozen=True)
class Training:
    """How long and how fast a head is trained."""

    epochs: int = 10
    lr: float = 3e-4
    weight_decay: float = 0.01
    batch_size: int = 64


class Standardized(nn.Module):
    """A head behind a fixed standardisation, so that all heads are given the same features.

    The floor on the standard deviation is for dimensions that never vary.
    """

    def __init__(self, head: nn.Module, features: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.head = head
        for name, values in features.items():
            spread = values.std(0)
            self.register_buffer(f"mean_{name}", values.mean(0))
            self.register_buffer(f"std_{name}", spread + 0.01 * spread.mean())

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> Any:
        """Standardise, then as the head."""
        scaled = {
            name: (values - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"std_{name}")
            for name, values in features.items()
        }
        return self.head(scaled, available)

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        """As the head."""
        return cast("Tensor", self.head.loss(output, labels))  # type: ignore[operator]


def train(
    make_head: Callable[[], nn.Module],
    split: Split,
    training: Training,
    seed: int,
    *,
    disruption: Disruption | None = None,
) -> nn.Module:
    """Make a head under `seed` and train it; returned in evaluation mode.

    Args:
        make_head: makes the head; whatever it draws, it draws from torch's global generator.
        split: the training samples.
        training: epochs and optimiser.
        seed: of initial weights, dropout and order.
        disruption: disrupts the training samples, drawn anew each epoch; None for clean training.
    """
    torch.manual_seed(seed)
    head = make_head().train()
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    size = min(training.batch_size, len(split))
    steps = training.epochs * (len(split) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    features: Mapping[str, Tensor] = split.features
    everything = {name: torch.ones(len(split), dtype=torch.bool) for name in features}
    available: Mapping[str, Tensor] = everything
    for epoch in range(training.epochs):
        if disruption is not None:
            drawn = replace(disruption, seed=1000 * (seed + 1) + epoch)
            made = disrupt_features(drawn, split.ids, split.features, split.corrupted)
            features, available = made.inputs, made.available
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
    return head.eval()
