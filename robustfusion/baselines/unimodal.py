"""One modality alone: what the others must add to."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion._validation import check_dims, check_positive
from robustfusion.baselines._inputs import masked_inputs
from robustfusion.baselines._objectives import cross_entropy, zero_loss
from robustfusion.output import HeadOutput


class UnimodalHead(nn.Module):
    r"""Classify from one modality and ignore the others.

    .. math:: z = W\,\mathrm{MLP}(f_m) + b \;\text{ if available}, \qquad z = \pi \;\text{ if not}

    - Kept: the usual single-modality floor, on the same features as every other head.
    - Replaced: nothing.
    - Missing rule: a row without the modality gets the class prior :math:`\pi`, a bias that
      learns from all rows and so is sensible even if nothing was missing in training.
    - Unverified: nothing; the paper says why to compare with it, not how to build it.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        modality: The modality to use, a key of ``dims``.
        hidden_features: Width F of the two hidden layers.
        dropout: Dropout after each hidden layer.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, F), zero where the modality is missing

    Raises:
        ValueError: If ``modality`` is not in ``dims``.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import UnimodalHead
        >>> head = UnimodalHead({"text": 3, "image": 4}, num_classes=2, modality="text")
        >>> head({"text": torch.zeros(5, 3), "image": torch.zeros(5, 4)}).logits.shape
        torch.Size([5, 2])

    Reference:
        Wang et al., "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020,
        for why fusion must be compared with its best modality.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        modality: str,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        if modality not in self.dims:
            raise ValueError(f"modality must be one of {list(self.dims)}, got {modality!r}")
        self.modality = modality
        self.network = mlp(
            dims[modality], hidden_features, hidden_features, dropout=dropout, activate_last=True
        )
        self.classifier = nn.Linear(hidden_features, num_classes)
        self.prior = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> HeadOutput:
        """Classify the rows that hold the modality, give the prior to the rest."""
        inputs, mask = masked_inputs(features, available, self.dims)
        present = mask[:, list(self.dims).index(self.modality)].unsqueeze(1)
        hidden: Tensor = self.network(inputs[self.modality])
        logits = torch.where(present, self.classifier(hidden), self.prior)
        fused = torch.where(present, hidden, torch.zeros_like(hidden))
        return HeadOutput(logits, fused, zero_loss(logits))

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the prediction, plus that of the prior over all rows."""
        prior = self.prior.expand(len(labels), -1)
        return cross_entropy(output.logits, labels) + cross_entropy(prior, labels)
