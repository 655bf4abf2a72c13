"""A Transformer over one token per modality, as SimBaMM has it."""

from collections.abc import Mapping

from torch import Tensor, nn

from reproductions._transformer import ModalityTransformer
from robustfusion._validation import check_positive
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.output import HeadOutput


class LateTransformerHead(BaselineHead):
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
    - Missing rule: the token of a missing modality is not among the keys of any attention. With
      everything missing the class token attends to itself.

    Other arguments, shapes and errors are those of
    :class:`~robustfusion.baselines.BaselineHead`; ``fused`` is the class token.

    Args:
        hidden_features: Width F of the tokens, divisible by four.
        num_layers: Number of blocks.

    Example:
        >>> import torch
        >>> from reproductions import LateTransformerHead
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
        super().__init__(dims, num_classes, modality_dropout=modality_dropout)
        check_positive(num_layers, "num_layers")
        self.transformer = ModalityTransformer(
            self.dims, hidden_features=hidden_features, num_layers=num_layers, dropout=dropout
        )
        self.classifier = nn.Linear(hidden_features, num_classes)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Mix the tokens of the available modalities."""
        fused = self.transformer(inputs, self.apply_modality_dropout(mask))
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))
