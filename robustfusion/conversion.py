"""A learned map from the features of one modality to those of another."""

from typing import cast

from torch import Tensor, nn

from robustfusion._modules import arguments_of, mlp
from robustfusion._validation import check_between, check_positive, check_vectors


class ModalityConverter(nn.Module):
    r"""Convert features of one modality into features of another: the paper's two-layer MLP.

    :math:`C(f) = W_2 \operatorname{ReLU}(W_1 f + b_1) + b_2`. It learns to regress to what the
    source tells about the target, so its outputs vary less than real features and a density finds
    them more typical than real ones: do not read a recovered feature's density as its quality.

    Args:
        in_features: Width of the source features.
        out_features: Width of the target features.
        hidden_features: Width between; ``None`` means the larger of the two.
        dropout: Probability of dropping a hidden unit in training.

    Shape:
        - Input: (..., in_features)
        - Output: (..., out_features)

    Raises:
        ValueError: If a width is not positive, or the input's does not fit.
        TypeError: If the input is not floating.

    Example:
        >>> import torch
        >>> from robustfusion import ModalityConverter
        >>> image_to_text = ModalityConverter(in_features=512, out_features=384)
        >>> image_to_text(torch.randn(16, 512)).shape
        torch.Size([16, 384])

    Reference:
        Section 3.3 of https://arxiv.org/abs/2511.18751.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden_features: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = max(in_features, out_features) if hidden_features is None else hidden_features
        check_positive(in_features, "in_features")
        check_positive(out_features, "out_features")
        check_positive(hidden, "hidden_features")
        check_between(dropout, 0.0, 1.0, "dropout")
        self.in_features = in_features
        self.out_features = out_features
        self.hidden_features = hidden
        self.dropout = dropout
        self.layers = mlp(in_features, hidden, out_features, dropout=dropout)

    def encode(self, features: Tensor) -> Tensor:
        """Return the hidden units, (..., in_features) -> (..., hidden_features)."""
        check_vectors(features, self.in_features, "features")
        return cast("Tensor", self.layers[:-1](features))

    def decode(self, hidden: Tensor) -> Tensor:
        """Return features made of hidden units, (..., hidden_features) -> (..., out_features)."""
        return cast("Tensor", self.layers[-1](hidden))

    def forward(self, features: Tensor) -> Tensor:
        """Convert each feature vector."""
        return self.decode(self.encode(features))

    extra_repr = arguments_of
