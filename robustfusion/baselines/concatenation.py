"""Concatenation, with modality dropout and learned missing tokens: the baseline to beat."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion._validation import check_between, check_dims, check_positive
from robustfusion.baselines._inputs import drop_modalities, masked_inputs
from robustfusion.baselines._objectives import cross_entropy, zero_loss
from robustfusion.output import HeadOutput


class ConcatenationHead(nn.Module):
    r"""Concatenate all modalities and classify with a three-layer network.

    .. math:: \tilde f_m = a_m f_m + (1 - a_m)\, t_m, \qquad
              z = W_3\, h_2(h_1([\tilde f_1; \dots; \tilde f_M])) + b

    with :math:`h_i` = Linear, ReLU, Dropout and :math:`t_m` a learned token. With
    ``modality_dropout`` > 0, training hides each available modality with that probability and
    always leaves one: the strong baseline that robustness papers rarely report.

    - Kept: early fusion as every paper runs it; modality dropout never restores a modality that
      is missing and never hides the last one.
    - Replaced: zeros for missing modalities become learned tokens, zero at birth, which is the
      mean of standardized features.
    - Missing rule: the learned token of the modality. With everything missing, the tokens alone.
    - Unverified: networks and schedule of the paper, whose modalities are video and audio.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        hidden_features: Width F of the hidden layers.
        dropout: Dropout after each hidden layer.
        modality_dropout: Probability of hiding a modality of a training row.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, F), the last hidden layer

    Raises:
        ValueError: If ``modality_dropout`` is outside [0, 1].

    Example:
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> head = ConcatenationHead({"text": 3, "image": 4}, 2, modality_dropout=0.3)
        >>> features = {"text": torch.randn(5, 3), "image": torch.full((5, 4), torch.nan)}
        >>> available = {"text": torch.ones(5).bool(), "image": torch.zeros(5).bool()}
        >>> output = head(features, available)
        >>> output.logits.isfinite().all().item()
        True

    Reference:
        Modality dropout: Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture Recognition",
        TPAMI 38, 2016.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 256,
        dropout: float = 0.1,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        check_between(modality_dropout, 0.0, 1.0, "modality_dropout")
        self.modality_dropout = modality_dropout
        self.tokens = nn.ParameterDict({n: torch.zeros(dim) for n, dim in self.dims.items()})
        width = sum(self.dims.values())
        self.network = mlp(
            width, hidden_features, hidden_features, dropout=dropout, activate_last=True
        )
        self.classifier = nn.Linear(hidden_features, num_classes)

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> HeadOutput:
        """Fill what is missing with its token, concatenate, classify."""
        inputs, mask = masked_inputs(features, available, self.dims)
        if self.training and self.modality_dropout > 0:
            mask = drop_modalities(mask, self.modality_dropout)
        filled = [
            torch.where(mask[:, index, None], inputs[name], self.tokens[name])
            for index, name in enumerate(self.dims)
        ]
        fused: Tensor = self.network(torch.cat(filled, dim=1))
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(output.logits, labels)
