"""Stacking: a learner per modality, and one over their probabilities and what is there."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion._validation import check_between, check_dims, check_positive
from robustfusion.baselines._branches import Branches
from robustfusion.baselines._inputs import drop_modalities, masked_inputs
from robustfusion.baselines._objectives import (
    column_means,
    cross_entropy,
    unimodal_losses,
    zero_loss,
)
from robustfusion.functional import at_least_float32


class StackingOutput(NamedTuple):
    """Output of :class:`StackingHead`; columns of the last two in the order of ``dims``."""

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    unimodal_logits: Tensor
    available: Tensor


class StackingHead(nn.Module):
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

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        hidden_features: Width F of each branch and of the second learner.
        dropout: Dropout after each hidden layer of the branches.
        modality_dropout: Probability of hiding a modality of a training row from the second
            learner; one always stays.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, F), the second learner's hidden layer
        - ``unimodal_logits``: (B, M, C); ``available``: (B, M)

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
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        check_between(modality_dropout, 0.0, 1.0, "modality_dropout")
        self.modality_dropout = modality_dropout
        self.branches = Branches(
            dims, num_classes, hidden_features=hidden_features, dropout=dropout
        )
        width = len(self.dims) * (num_classes + 1)
        self.network = mlp(width, hidden_features, activate_last=True)
        self.classifier = nn.Linear(hidden_features, num_classes)

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> StackingOutput:
        """Predict from each modality, then from the predictions."""
        inputs, mask = masked_inputs(features, available, self.dims)
        _, unimodal = self.branches(inputs)
        shown = drop_modalities(mask, self.modality_dropout) if self.training else mask
        probability = at_least_float32(unimodal.detach()).softmax(dim=-1)
        probability = probability.where(shown.unsqueeze(-1), 0.0).to(unimodal.dtype)
        given = torch.cat([probability.flatten(1), shown.to(unimodal.dtype)], dim=1)
        fused: Tensor = self.network(given)
        logits: Tensor = self.classifier(fused)
        return StackingOutput(logits, fused, zero_loss(logits), unimodal, mask)

    def loss(self, output: StackingOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the second learner and of each available modality."""
        unimodal = unimodal_losses(output.unimodal_logits, labels)
        return (
            cross_entropy(output.logits, labels) + column_means(unimodal, output.available).sum()
        )
