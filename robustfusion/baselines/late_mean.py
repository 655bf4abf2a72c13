"""Late fusion by the mean of the modalities' logits."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._validation import check_dims, check_positive
from robustfusion.baselines._branches import Branches, normalize, weighted_sum
from robustfusion.baselines._inputs import masked_inputs
from robustfusion.baselines._objectives import (
    column_means,
    cross_entropy,
    unimodal_losses,
    zero_loss,
)


class LateMeanOutput(NamedTuple):
    """Output of :class:`LateMeanHead`; columns of the last two in the order of ``dims``."""

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    unimodal_logits: Tensor
    available: Tensor


class LateMeanHead(nn.Module):
    r"""Average the logits of one classifier per modality.

    .. math:: z = \frac{\sum_m a_m z_m}{\sum_m a_m}, \qquad
              L = \mathrm{CE}(z) + \sum_m \mathrm{CE}(z_m)

    - Kept: static late fusion, the reference of QMF and PDF.
    - Replaced: nothing.
    - Missing rule: the mean is over the available modalities, and a missing one has no loss.
      With everything missing the logits are zero, the uniform prediction.
    - Unverified: whether the authors train each modality's logits by themselves, too.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        hidden_features: Width F of each branch.
        dropout: Dropout after each hidden layer.
        unimodal_weight: Weight of the modalities' own cross-entropies.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, F); ``unimodal_logits``: (B, M, C)

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
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        self.unimodal_weight = unimodal_weight
        self.branches = Branches(
            dims, num_classes, hidden_features=hidden_features, dropout=dropout
        )

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> LateMeanOutput:
        """Average over the modalities that are there."""
        inputs, mask = masked_inputs(features, available, self.dims)
        hidden, unimodal = self.branches(inputs)
        weights = normalize(mask.to(torch.promote_types(unimodal.dtype, torch.float32)))
        logits = weighted_sum(unimodal, weights)
        fused = weighted_sum(hidden, weights)
        return LateMeanOutput(logits, fused, zero_loss(logits), unimodal, mask)

    def loss(self, output: LateMeanOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the mean and of each available modality."""
        unimodal = column_means(
            unimodal_losses(output.unimodal_logits, labels), output.available
        ).sum()
        return cross_entropy(output.logits, labels) + self.unimodal_weight * unimodal
