"""Cross-entropies that respect masks: a term is the mean over the rows it concerns, else zero."""

import torch.nn.functional as F
from torch import Tensor

from robustfusion._validation import check_labels
from robustfusion.functional import at_least_float32, masked_mean


def cross_entropy(logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
    """Cross-entropy averaged over the rows to keep; (B, C), (B,), (B,) -> ()."""
    check_labels(labels, *logits.shape)
    losses = F.cross_entropy(at_least_float32(logits), labels, reduction="none")
    return masked_mean(losses, keep)


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


def zero_loss(logits: Tensor) -> Tensor:
    """A scalar zero on the device of ``logits``, for heads without a label-free term."""
    return at_least_float32(logits).new_zeros(())
