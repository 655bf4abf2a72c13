"""Late fusion of the modalities' own predictions: their mean, or a learner over them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion.baselines._branches import Branches, normalize, unimodal_loss, weighted_sum
from robustfusion.baselines.head import BaselineHead, cross_entropy, zero_loss
from robustfusion.functional import at_least_float32


class LateMeanOutput(NamedTuple):
    """Output of :class:`LateMeanHead` and :class:`StackingHead`.

    ``unimodal_logits`` is (B, M, C), ``available`` (B, M).
    """

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    unimodal_logits: Tensor
    available: Tensor


class LateMeanHead(BaselineHead[LateMeanOutput]):
    r"""Average the logits of one classifier per modality.

    .. math:: z = \frac{\sum_m a_m z_m}{\sum_m a_m}, \qquad
              L = \mathrm{CE}(z) + \sum_m \mathrm{CE}(z_m)

    - Kept: static late fusion, the reference of QMF and PDF.
    - Replaced: nothing.
    - Missing rule: the mean is over the available modalities, and a missing one has no loss.
      With everything missing the logits are zero, the uniform prediction.
    - Unverified: whether the authors train each modality's logits by themselves, too.

    Other arguments, shapes, errors: :class:`BaselineHead`.

    Args:
        unimodal_weight: Weight of the modalities' own cross-entropies.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import LateMeanHead
        >>> head = LateMeanHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.zeros(5, 3), "image": torch.zeros(5, 4)}).unimodal_logits.shape
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
        hidden_features: int = 256,
        dropout: float = 0.1,
        unimodal_weight: float = 1.0,
    ) -> None:
        super().__init__(dims, num_classes)
        self.unimodal_weight = unimodal_weight
        self.branches = Branches(self.dims, num_classes, hidden_features, dropout)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> LateMeanOutput:
        """Average over the modalities that are there."""
        hidden, unimodal = self.branches(inputs)
        weights = normalize(at_least_float32(mask.to(unimodal.dtype)))
        logits = weighted_sum(unimodal, weights)
        fused = weighted_sum(hidden, weights)
        return LateMeanOutput(logits, fused, zero_loss(logits), unimodal, mask)

    def loss(self, output: LateMeanOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the mean and of each available modality."""
        own = unimodal_loss(output.unimodal_logits, labels, output.available)
        return cross_entropy(output.logits, labels) + self.unimodal_weight * own


class StackingHead(BaselineHead[LateMeanOutput]):
    r"""Classify from the modalities' own predictions and flags of which are there.

    .. math:: p_m = \mathrm{softmax}(z_m), \qquad
              z = \mathrm{MLP}([a_1 p_1; \dots; a_M p_M; a_1; \dots; a_M]), \qquad
              L = \mathrm{CE}(z) + \sum_m \mathrm{CE}(z_m)

    - Kept: one base learner per modality, trained on every row that has it; its probabilities and
      the availability flags are all that the second learner is given.
    - Replaced: predictions out of fold become detached predictions of the base learners as they
      train, with dropout; so the second learner may trust an over-fitted base too much. Hiding
      modalities from the second learner shows it the flags on complete data.
    - Unverified: nothing of one paper; stacking with flags is how block-wise missing tables are
      commonly fused.
    - Missing rule: probabilities and flag of a missing modality are zero, and it has no loss. With
      everything missing the second learner sees zeros.

    Arguments, shapes, errors: :class:`BaselineHead`; modalities are hidden from the second learner
    alone, whose hidden layer is ``fused``, without dropout.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import StackingHead
        >>> head = StackingHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.zeros(5, 3), "image": torch.zeros(5, 4)}).unimodal_logits.shape
        torch.Size([5, 2, 2])

    Reference:
        Wolpert, "Stacked Generalization", Neural Networks 5, 1992.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 256,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
    ) -> None:
        super().__init__(dims, num_classes, modality_dropout=modality_dropout)
        self.branches = Branches(self.dims, num_classes, hidden_features, dropout)
        width = len(self.dims) * (num_classes + 1)
        self.network = mlp(width, hidden_features, activate_last=True)
        self.classifier = nn.Linear(hidden_features, num_classes)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> LateMeanOutput:
        """Predict from each modality, then from the predictions."""
        _, unimodal = self.branches(inputs)
        shown = self.hide_some(mask)
        probability = at_least_float32(unimodal.detach()).softmax(dim=-1)
        probability = probability.where(shown.unsqueeze(-1), 0.0).to(unimodal.dtype)
        given = torch.cat([probability.flatten(1), shown.to(unimodal.dtype)], dim=1)
        fused: Tensor = self.network(given)
        logits: Tensor = self.classifier(fused)
        return LateMeanOutput(logits, fused, zero_loss(logits), unimodal, mask)

    def loss(self, output: LateMeanOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the second learner and of each available modality."""
        own = unimodal_loss(output.unimodal_logits, labels, output.available)
        return cross_entropy(output.logits, labels) + own
