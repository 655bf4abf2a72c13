"""Late fusion: the mean of one prediction per modality."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustfusion._task_head import Supervision
from robustfusion.baselines._branches import Branches, fuse_late, normalize
from robustfusion.baselines.head import BaselineHead
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task


class LateMeanHead(BaselineHead):
    r"""Average the logits of one classifier per modality.

    .. math:: z = \frac{\sum_m a_m z_m}{\sum_m a_m}, \qquad
              L = \mathrm{CE}(z) + \sum_m \mathrm{CE}(z_m)

    - Kept: static late fusion, the reference of QMF and PDF.
    - Replaced: nothing.
    - Missing rule: the mean is over the available modalities, and a missing one has no loss.
      With everything missing the logits are zero, the uniform prediction.
    - Unverified: whether the authors, too, train the logits of each modality by themselves.

    Other arguments, shapes and errors are those of :class:`BaselineHead`.

    Args:
        unimodal_weight: Weight of the cross-entropies of the single modalities.

    Shape:
        - ``extras["unimodal_logits"]``: (B, M, C); ``extras["weights"]``: (B, M)
        - ``extras["available"]``: (B, M) bool

    Example:
        >>> import torch
        >>> from robustfusion.baselines import LateMeanHead
        >>> head = LateMeanHead({"text": 3, "image": 4}, num_classes=2)
        >>> output = head({"text": torch.zeros(5, 3), "image": torch.zeros(5, 4)})
        >>> output.extras["unimodal_logits"].shape
        torch.Size([5, 2, 2])

    Reference:
        The static late fusion of Zhang et al., "Provable Dynamic Fusion for Low-Quality Multimodal
        Data", ICML 2023.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        hidden_features: int = 256,
        dropout: float = 0.1,
        unimodal_weight: float = 1.0,
    ) -> None:
        super().__init__(dims, num_classes, task=task)
        self.unimodal_weight = unimodal_weight
        self.branches = Branches(self.dims, num_classes, hidden_features, dropout)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Average over the available modalities."""
        hidden, unimodal = self.branches(inputs)
        weights = normalize(at_least_float32(mask.to(unimodal.dtype)))
        return fuse_late(hidden, unimodal, weights, mask)

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the mean losses of the mean and of each available modality."""
        extras = output.extras
        unimodal = supervision.mean(extras["unimodal_logits"], extras["available"])
        return supervision.mean(self.scores(output)) + self.unimodal_weight * unimodal
