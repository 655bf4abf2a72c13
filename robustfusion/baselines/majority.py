"""The floor under every table: the best prediction that looks at no feature."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from robustfusion._validation import check_dims, check_labels, check_positive
from robustfusion.baselines._inputs import masked_inputs
from robustfusion.baselines._objectives import cross_entropy, zero_loss
from robustfusion.output import HeadOutput


class MajorityHead(nn.Module):
    r"""Predict the class prior for every sample, hence the majority class.

    .. math:: z = b, \qquad b^\star_k = \log P(y = k)

    - Kept: nothing is compared; this is the reference line of a robustness table.
    - Replaced: counting becomes a learned bias, so that any training loop can run it.
      :meth:`fit` sets the bias in closed form.
    - Missing rule: none needed, features are only checked for shape.
    - Unverified: nothing.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, C), the logits

    Example:
        >>> import torch
        >>> from robustfusion.baselines import MajorityHead
        >>> head = MajorityHead({"text": 3}, num_classes=2)
        >>> _ = head.fit(torch.tensor([1, 1, 0]))
        >>> head({"text": torch.zeros(2, 3)}).logits.argmax(1).tolist()
        [1, 1]

    Reference:
        ``DummyClassifier(strategy="prior")`` of scikit-learn.
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        self.bias = nn.Parameter(torch.zeros(num_classes))

    @torch.no_grad()
    def fit(self, labels: Tensor) -> Self:
        """Set the bias to the log frequency of the classes in ``labels`` (N,), smoothed by one."""
        check_labels(labels, len(labels), len(self.bias))
        counts = torch.bincount(labels.to(self.bias.device), minlength=len(self.bias)) + 1
        self.bias.copy_(torch.log(counts / counts.sum()))
        return self

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> HeadOutput:
        """Return the same logits for every row."""
        _, mask = masked_inputs(features, available, self.dims)
        logits = self.bias.expand(mask.shape[0], -1)
        return HeadOutput(logits, logits, zero_loss(logits))

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the constant prediction."""
        return cross_entropy(output.logits, labels)
