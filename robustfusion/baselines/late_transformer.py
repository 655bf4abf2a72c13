"""A late-fusion Transformer over one token per modality: simple, and hard to beat."""

from collections.abc import Mapping

from torch import Tensor, nn

from robustfusion._validation import check_between, check_dims, check_positive
from robustfusion.baselines._attention import ModalityTransformer
from robustfusion.baselines._inputs import drop_modalities, masked_inputs
from robustfusion.baselines._objectives import cross_entropy, zero_loss
from robustfusion.output import HeadOutput


class LateTransformerHead(nn.Module):
    r"""Mix one token per modality with a Transformer, as SimBaMM does.

    .. math:: x_m = P_m f_m + k_m, \qquad
              h = \mathrm{Transformer}([x_{cls}; x_1; \dots; x_M])_{cls}, \qquad z = W h + b

    - Kept: a linear map of each modality to a common width, one token a modality, a Transformer
      encoder over them, and masking for what is missing.
    - Replaced: the encoders are the caller's; training may hide modalities, so that masked
      attention is trained on complete data, too.
    - Unverified: how the authors pool (here a class token), depth, width, an embedding that says
      which modality a token is of, and whether blocks are pre-norm. Read in the abstract and in
      summaries; its tables were not reproduced.
    - Missing rule: the token of a missing modality is no key of any attention. With everything
      missing the class token is alone.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        hidden_features: Width F of the tokens, divisible by four.
        num_layers: Number of blocks.
        dropout: Dropout in the blocks.
        modality_dropout: Probability of hiding a modality of a training row; one always stays.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, F), the class token

    Raises:
        ValueError: If ``hidden_features`` is not divisible by four.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import LateTransformerHead
        >>> head = LateTransformerHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.randn(5, 3), "image": torch.randn(5, 4)}).fused.shape
        torch.Size([5, 128])

    Reference:
        Rheude et al., "Fusion or Confusion? Multimodal Complexity Is Not All You Need",
        https://arxiv.org/abs/2512.22991.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 128,
        num_layers: int = 2,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        check_positive(num_layers, "num_layers")
        check_between(modality_dropout, 0.0, 1.0, "modality_dropout")
        self.modality_dropout = modality_dropout
        self.transformer = ModalityTransformer(
            self.dims, hidden_features=hidden_features, num_layers=num_layers, dropout=dropout
        )
        self.classifier = nn.Linear(hidden_features, num_classes)

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> HeadOutput:
        """Mix the tokens of the modalities that are there."""
        inputs, mask = masked_inputs(features, available, self.dims)
        if self.training:
            mask = drop_modalities(mask, self.modality_dropout)
        fused = self.transformer(inputs, mask)
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(output.logits, labels)
