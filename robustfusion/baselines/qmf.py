"""QMF: late fusion weighted by energy, with confidence ranked by training difficulty."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion._task_head import Supervision
from robustfusion._validation import check_positive
from robustfusion.baselines._branches import Branches, column_means, fuse_late
from robustfusion.baselines.head import BaselineHead
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task


def energy_confidence(logits: Tensor, temperature: float = 10.0) -> Tensor:
    """Return the negative free energy over τ, ``log Σ exp(z) / τ``; (..., C) -> (...)."""
    return torch.logsumexp(at_least_float32(logits), dim=-1) / temperature


def ranking_loss(confidence: Tensor, difficulty: Tensor, valid: Tensor) -> Tensor:
    """Ask the easier of two neighboring samples to be more confident by the gap in difficulty.

    The loss ``max(0, sign(g) (c_i - c_j) + |g|)`` with ``g = κ_i - κ_j`` and ``j`` the sample
    before ``i`` is averaged over pairs of ``valid`` samples and summed over the modalities.
    """
    gap = difficulty - difficulty.roll(1, 0)
    losses = F.relu(gap.sign() * (confidence - confidence.roll(1, 0)) + gap.abs())
    return column_means(losses, valid & valid.roll(1, 0)).sum()


class QMFHead(BaselineHead):
    r"""Quality-aware multimodal fusion: weigh each modality's logits by its energy.

    .. math:: w_m = \tfrac{1}{\tau} \log \textstyle\sum_k e^{z_{m,k}}, \qquad
              z = \sum_m a_m w_m z_m, \qquad
              L = \mathrm{CE}(z) + \sum_m \mathrm{CE}(z_m) + \lambda \sum_m L^m_{reg}

    :math:`L_{reg}` is :func:`ranking_loss` between the energy and the mean training loss
    :math:`\kappa` of each sample so far, min-max scaled over the training set.

    - Kept: energy weights, not normalized (one may be negative) and detached in the fused logit;
      temperature 10; the ranking regularizer over neighbors of the batch.
    - Replaced: the history is held in persistent buffers, so that a resumed run continues
      unchanged; it is the mean over the times a sample was seen, not the sum, so that samples
      which were often missing do not seem easy; a step reads the history before that step.
    - Unverified: warm-up epochs of the paper's own runs; the sign of the gap, which is added here,
      so that confidence must differ by it, and subtracted in circulating code.
    - Missing rule: a missing modality has weight 0, no loss, no history. With everything missing
      the logits are zero, the uniform prediction.

    The regularizer needs ``num_samples`` and ``indices``; without either it is zero. ``loss``
    writes the history in training mode. In a distributed run each rank records the samples that
    it saw, so wrap the model with ``forward_sync_buffers=False``.

    Other arguments, shapes and errors are those of :class:`BaselineHead`.

    Args:
        num_samples: Size of the training set, or None for no history.
        temperature: The :math:`\tau` above.
        rank_weight: The :math:`\lambda` above.

    Shape:
        - ``indices``: (B,) int64, positions in the training set, or None
        - ``extras["weights"]``: (B, M); ``extras["unimodal_logits"]``: (B, M, C)
        - ``extras["available"]``: (B, M) bool; ``extras["indices"]``: (B,), if they were passed

    Example:
        >>> import torch
        >>> from robustfusion.baselines import QMFHead
        >>> head = QMFHead({"text": 3, "image": 4}, num_classes=2, num_samples=100)
        >>> features = {"text": torch.randn(5, 3), "image": torch.randn(5, 4)}
        >>> output = head(features, indices=torch.arange(5))
        >>> head.loss(output, torch.tensor([0, 1, 0, 1, 1])).shape
        torch.Size([])

    Reference:
        Zhang et al., "Provable Dynamic Fusion for Low-Quality Multimodal Data", ICML 2023.
    """

    supported_tasks: ClassVar[tuple[Task, ...]] = ("multiclass",)
    loss_sum: Tensor
    times_seen: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        num_samples: int | None = None,
        temperature: float = 10.0,
        rank_weight: float = 1.0,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, task=task)
        if num_samples is not None:
            check_positive(num_samples, "num_samples")
        self.num_samples = num_samples
        self.temperature = temperature
        self.rank_weight = rank_weight
        self.branches = Branches(self.dims, num_classes, hidden_features, dropout)
        shape = (num_samples or 0, len(self.dims))
        self.register_buffer("loss_sum", torch.zeros(shape))
        self.register_buffer("times_seen", torch.zeros(shape, dtype=torch.int64))

    def forward(
        self,
        features: Mapping[str, Tensor],
        available: Mapping[str, Tensor] | None = None,
        *,
        indices: Tensor | None = None,
    ) -> HeadOutput:
        """Fuse the logits by energy; ``indices`` are positions in the training set."""
        output = super().forward(features, available)
        if indices is None:
            return output
        self._check_indices(indices, output.logits.shape[0])
        return output._replace(extras={**output.extras, "indices": indices})

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Weigh the logits of the available modalities by their energy."""
        hidden, unimodal = self.branches(inputs)
        confidence = energy_confidence(unimodal.detach(), self.temperature)
        return fuse_late(hidden, unimodal, confidence.where(mask, 0.0), mask)

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return mean losses and ranking; training mode records the history."""
        unimodal, available = output.extras["unimodal_logits"], output.extras["available"]
        total = supervision.mean(output.logits) + supervision.mean(unimodal, available)
        indices = output.extras.get("indices")
        if indices is None:
            return total
        confidence = energy_confidence(unimodal, self.temperature)
        known = supervision.losses(output.logits)[1] > 0
        valid = available & (self.times_seen[indices] > 0) & known[:, None]
        ranking = ranking_loss(confidence, self.difficulty()[indices], valid)
        if self.training:
            losses = supervision.plain_losses(unimodal)
            self._record(losses, available & known[:, None], indices)
        if supervision.reduction == "none":  # the ranking is one of pairs of samples
            return total
        return total + self.rank_weight * ranking

    def difficulty(self) -> Tensor:
        """Return the mean past loss per sample and modality in [0, 1], (num_samples, M)."""
        mean = self.loss_sum / self.times_seen.clamp(min=1)
        seen = self.times_seen > 0
        low = torch.where(seen, mean, torch.inf).amin(dim=0)
        high = torch.where(seen, mean, -torch.inf).amax(dim=0)
        scaled = (mean - low) / (high - low).clamp(min=torch.finfo(mean.dtype).tiny)
        return torch.where(seen, scaled, torch.zeros_like(scaled))

    @torch.no_grad()
    def _record(self, losses: Tensor, available: Tensor, indices: Tensor) -> None:
        added = losses.where(available, 0.0).to(self.loss_sum.dtype)
        self.loss_sum.index_add_(0, indices, added)
        self.times_seen.index_add_(0, indices, available.to(self.times_seen.dtype))

    def _check_indices(self, indices: Tensor, batch: int) -> None:
        if self.num_samples is None:
            raise ValueError("indices need a head that was built with num_samples, got None")
        if indices.shape != (batch,):
            raise ValueError(f"indices must have shape ({batch},), got {tuple(indices.shape)}")
        if indices.dtype != torch.long:
            raise TypeError(f"indices must have dtype torch.long, got {indices.dtype}")
