"""PDF: late fusion weighted by the predicted probability of the true class."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion._modules import ModuleDict, mlp
from robustfusion._task_head import Supervision
from robustfusion.baselines._branches import Branches, fuse_late
from robustfusion.baselines.head import BaselineHead
from robustfusion.functional import at_least_float32, masked_softmax
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task


def co_belief(confidence_logits: Tensor, available: Tensor) -> Tensor:
    r"""Add to a modality's confidence the others' share of negative log-confidence, (B, M).

    The result is ``c_m + Σ_{j≠m} log c_j / Σ_j log c_j`` with ``c = sigmoid(h)``, over the
    available modalities. Its logarithms come from the logits, so that 0 and 1 are no exceptions.
    """
    scores = at_least_float32(confidence_logits)
    surprisal = F.softplus(-scores).where(available, 0.0)
    total = surprisal.sum(dim=1, keepdim=True)
    holistic = (total - surprisal) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return (torch.sigmoid(scores) + holistic).where(available, 0.0)


def relative_calibration(logits: Tensor, available: Tensor) -> Tensor:
    r"""Compare the decisiveness of a modality with the most decisive other one, in [0, 1].

    The result (B, M) is ``min(1, D_m / max_{j≠m} D_j)`` with D_m the mean absolute distance of
    the softmax from uniform, and 1 where no other modality is available.
    """
    probability = torch.softmax(at_least_float32(logits), dim=-1)
    decisiveness = (probability - 1 / logits.shape[-1]).abs().mean(dim=-1).where(available, 0.0)
    itself = torch.eye(decisiveness.shape[1], dtype=torch.bool, device=decisiveness.device)
    strongest_other = decisiveness.unsqueeze(1).masked_fill(itself, 0.0).amax(dim=-1)
    ratio = decisiveness / strongest_other.clamp_min(torch.finfo(strongest_other.dtype).tiny)
    return ratio.where(strongest_other > 0, 1.0).clamp(max=1.0)


class PDFHead(BaselineHead):
    r"""Predictive dynamic fusion: weigh modalities by predicted, then calibrated, confidence.

    .. math:: w = \mathrm{softmax}_m(r_m B_m), \qquad z = \sum_m w_m z_m, \qquad
              L = \mathrm{CE}(z) + \sum_m \mathrm{CE}(z_m) + \sum_m |c_m - p_m[y]|

    with the predicted true-class probability :math:`c_m`, the belief :math:`B` of
    :func:`co_belief`, and :math:`r` of :func:`relative_calibration` in evaluation mode (1 in
    training mode).

    - Kept: confidence learned by L1 against the true-class probability on detached features;
      weights detached; calibration only outside training.
    - Replaced: the confidence network is Linear, ReLU three times over instead of three linear
      maps in a row; logarithms of confidences are computed from logits.
    - Unverified: nothing in the formulas; published MVSA figures are for 2,592 posts.
    - Missing rule: sums, maximum and softmax run over the available modalities, so that a single
      one has weight 1. With everything missing the logits are zero, the uniform prediction.

    Arguments, shapes and errors are those of :class:`BaselineHead`.

    Shape:
        - ``extras["weights"]``, ``extras["confidence"]``: (B, M), 0 for missing modalities
        - ``extras["unimodal_logits"]``: (B, M, C); ``extras["available"]``: (B, M) bool

    Example:
        >>> import torch
        >>> from robustfusion.baselines import PDFHead
        >>> head = PDFHead({"text": 3, "image": 4}, num_classes=2)
        >>> output = head({"text": torch.randn(5, 3), "image": torch.randn(5, 4)})
        >>> torch.allclose(output.extras["weights"].sum(1), torch.ones(5))
        True

    Reference:
        Cao et al., "Predictive Dynamic Fusion", ICML 2024.
    """

    supported_tasks: ClassVar[tuple[Task, ...]] = ("multiclass",)

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, task=task)
        self.branches = Branches(self.dims, num_classes, hidden_features, dropout)
        widths = (hidden_features, hidden_features, 1)
        self.confidence = ModuleDict(
            {name: mlp(dim, *widths, dropout=dropout) for name, dim in dims.items()}
        )

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Fuse the logits by predicted confidence, which evaluation mode calibrates."""
        hidden, unimodal = self.branches(inputs)
        scores = torch.cat(
            [network(inputs[name].detach()) for name, network in self.confidence.items()], dim=1
        )
        belief = co_belief(scores, mask)
        if not self.training:
            belief = belief * relative_calibration(unimodal, mask)
        weights = masked_softmax(belief, mask).detach()
        confidence = torch.sigmoid(at_least_float32(scores)).where(mask, 0.0)
        output = fuse_late(hidden, unimodal, weights, mask)
        return output._replace(extras={**output.extras, "confidence": confidence})

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the mean losses plus the error of the predicted confidence."""
        logits, available = output.extras["unimodal_logits"], output.extras["available"]
        losses, weight = supervision.losses(logits)
        probability = torch.exp(-supervision.plain_losses(logits).detach())
        error = (output.extras["confidence"] - probability).abs() * weight[:, None]
        return supervision.mean(output.logits) + supervision.reduce(
            losses + error, weight, available
        )
