"""One small classifier per modality and its loss: what late-fusion heads are built on."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, mlp
from robustfusion._validation import check_labels
from robustfusion.functional import at_least_float32


class Branches(nn.Module):
    """For each modality a network of two layers of one width F, and a linear classifier."""

    def __init__(
        self, dims: Mapping[str, int], num_classes: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.networks = ModuleDict(
            {m: mlp(d, width, width, dropout=dropout, activate_last=True) for m, d in dims.items()}
        )
        self.classifiers = ModuleDict({name: nn.Linear(width, num_classes) for name in dims})

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden vectors (B, M, F) and logits (B, M, C) of finite vectors (B, D_m)."""
        hidden = {name: network(inputs[name]) for name, network in self.networks.items()}
        logits = [layer(hidden[name]) for name, layer in self.classifiers.items()]
        return torch.stack(list(hidden.values()), dim=1), torch.stack(logits, dim=1)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over the modalities, (B, M, F), (B, M) -> (B, F)."""
    return (weights.unsqueeze(-1) * values).sum(dim=1)


def normalize(weights: Tensor) -> Tensor:
    """Let non-negative weights sum to one over the modalities, or stay zero; (B, M)."""
    total = weights.sum(dim=1, keepdim=True)
    return weights / total.where(total > 0, 1.0)


def unimodal_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row and modality, (B, M, C), (B,) -> (B, M)."""
    check_labels(labels, logits.shape[0], logits.shape[-1])
    repeated = labels.unsqueeze(1).expand(logits.shape[:2])
    scores = at_least_float32(logits).transpose(1, 2)
    return F.cross_entropy(scores, repeated, reduction="none")


def column_means(values: Tensor, keep: Tensor) -> Tensor:
    """Mean of each column over the rows to keep, zero where there are none; (B, M) -> (M,)."""
    return values.where(keep, 0.0).sum(dim=0) / keep.sum(dim=0).clamp_min(1)


def unimodal_loss(logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Sum of the modalities' cross-entropies; (B, M, C), (B,), (B, M) -> ()."""
    return column_means(unimodal_losses(logits, labels), keep).sum()
