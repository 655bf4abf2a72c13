"""One small classifier per modality and its loss: the base of late-fusion heads."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, mlp
from robustfusion._validation import check_labels
from robustfusion.baselines.head import zero_loss
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput


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
        """Return hidden vectors (B, M, F) and logits (B, M, C) of finite vectors (B, D_m)."""
        hidden = {name: network(inputs[name]) for name, network in self.networks.items()}
        logits = [layer(hidden[name]) for name, layer in self.classifiers.items()]
        return torch.stack(list(hidden.values()), dim=1), torch.stack(logits, dim=1)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over the modalities, (B, M, F), (B, M) -> (B, F)."""
    return (weights.unsqueeze(-1) * values).sum(dim=1)


def fuse_late(hidden: Tensor, logits: Tensor, weights: Tensor, available: Tensor) -> HeadOutput:
    """Weigh hidden vectors and logits of the modalities alike; (B, M, F), (B, M, C), (B, M)."""
    fused_logits = weighted_sum(logits, weights)
    extras = {"weights": weights, "unimodal_logits": logits, "available": available}
    return HeadOutput(fused_logits, weighted_sum(hidden, weights), zero_loss(fused_logits), extras)


def normalize(weights: Tensor) -> Tensor:
    """Let non-negative weights sum to one over the modalities, or stay zero; (B, M)."""
    total = weights.sum(dim=1, keepdim=True)
    return weights / total.where(total > 0, 1.0)


def unimodal_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of each sample and modality, (B, M, C), (B,) -> (B, M)."""
    check_labels(labels, logits.shape[0], logits.shape[-1])
    repeated = repeat(labels, "b -> b m", m=logits.shape[1])
    scores = at_least_float32(logits).transpose(1, 2)
    return F.cross_entropy(scores, repeated, reduction="none")


def column_means(values: Tensor, keep: Tensor) -> Tensor:
    """Average each column over the samples to keep, zero without any; (B, M) -> (M,)."""
    return values.where(keep, 0.0).sum(dim=0) / keep.sum(dim=0).clamp_min(1)
