"""One small classifier per modality: what every late-fusion head is built on."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict


def trunk(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """Stack ``Linear, ReLU, Dropout`` from width to width, the last one included."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """A two-layer network and a linear classifier for each modality.

    Args:
        dims: Width of each modality.
        num_classes: Number of classes ``C``.
        hidden_features: Width ``F`` of both layers.
        dropout: Dropout after each layer.

    Shape:
        - Input: ``{name: (B, D_m)}``, finite
        - Output: hidden ``(B, M, F)`` and logits ``(B, M, C)``, columns in the order of ``dims``
    """

    def __init__(
        self, dims: Mapping[str, int], num_classes: int, *, hidden_features: int, dropout: float
    ) -> None:
        super().__init__()
        self.networks = ModuleDict(
            {
                name: trunk(dim, hidden_features, hidden_features, dropout=dropout)
                for name, dim in dims.items()
            }
        )
        self.classifiers = ModuleDict(
            {name: nn.Linear(hidden_features, num_classes) for name in dims}
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden vectors and logits of each modality."""
        hidden = [network(inputs[name]) for name, network in self.networks.items()]
        logits = [
            layer(vector) for layer, vector in zip(self.classifiers.values(), hidden, strict=True)
        ]
        return torch.stack(hidden, dim=1), torch.stack(logits, dim=1)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over the modalities, ``(B, M, F), (B, M) -> (B, F)``."""
    return (weights.unsqueeze(-1) * values).sum(dim=1)


def normalise(weights: Tensor) -> Tensor:
    """Let non-negative weights sum to one over the modalities, or stay zero; ``(B, M)``."""
    total = weights.sum(dim=1, keepdim=True)
    return weights / total.where(total > 0, 1.0)
