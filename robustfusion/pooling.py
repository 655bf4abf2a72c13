"""Pool a sequence of token vectors into the one vector per sample that all parts take."""

import torch
from einops import einsum
from torch import Tensor, nn

from robustfusion._modules import arguments_of
from robustfusion._validation import check_mask, check_positive
from robustfusion.functional import at_least_float32, masked_softmax


class MaskedMean(nn.Module):
    r"""Take the mean over the available tokens, :math:`\sum_t a_t x_t / \sum_t a_t`.

    A sample without any token becomes zeros, and no gradient is NaN.

    Shape:
        - ``features``: (B, T, D); ``available``: (B, T) bool, True where there is a token
        - Output: (B, D), float32 or better

    Raises:
        ValueError: If a shape does not fit.
        TypeError: If ``features`` is not floating or ``available`` not bool.

    Example:
        >>> import torch
        >>> from robustfusion import MaskedMean
        >>> tokens, attention_mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.long)
        >>> MaskedMean()(tokens, attention_mask.bool()).shape
        torch.Size([2, 8])
    """

    def forward(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Pool the tokens of each sample."""
        features, available = _checked(features, available)
        return _pool(features, features.new_zeros(()).expand(available.shape), available)


class AttentionPooling(nn.Module):
    r"""Take the mean over the tokens, weighted by how well each fits one learned query.

    .. math:: \sum_t w_t x_t, \qquad w = \operatorname{softmax}_{t:\, a_t} (x_t \cdot q / \sqrt D).

    It starts as :class:`MaskedMean`, because the query starts at zero. A sample without any token
    becomes zeros, and no gradient is NaN.

    Args:
        dim: Width D of one token vector.

    Shape:
        - ``features``: (B, T, D); ``available``: (B, T) bool, True where there is a token
        - Output: (B, D), float32 or better; ``weights``: (B, T)

    Raises:
        ValueError: If a shape or ``dim`` does not fit.
        TypeError: If ``features`` is not floating or ``available`` not bool.

    Example:
        >>> import torch
        >>> from robustfusion import AttentionPooling
        >>> pool = AttentionPooling(dim=8)
        >>> tokens, attention_mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.long)
        >>> pool(tokens, attention_mask.bool()).shape
        torch.Size([2, 8])

    Reference:
        Ilse, Tomczak and Welling, Attention-based deep multiple instance learning, ICML 2018,
        https://arxiv.org/abs/1802.04712.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_positive(dim, "dim")
        self.dim = dim
        self.query = nn.Parameter(torch.zeros(dim))

    def weights(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Return the weight of each token, (B, T, D) -> (B, T)."""
        features, available = _checked(features, available, self.dim)
        with torch.autocast(features.device.type, enabled=False):
            return masked_softmax(self._scores(features), available)

    def forward(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Pool the tokens of each sample."""
        features, available = _checked(features, available, self.dim)
        with torch.autocast(features.device.type, enabled=False):
            return _pool(features, self._scores(features), available)

    def _scores(self, features: Tensor) -> Tensor:
        query = at_least_float32(self.query).to(features.dtype) / self.dim**0.5
        scores: Tensor = einsum(features, query, "b t d, d -> b t")
        return scores

    extra_repr = arguments_of


def _checked(
    features: Tensor, available: Tensor | None, dim: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the tokens in float32 or better, zeros where none is available, and their mask."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"features must be a floating tensor, got {kind}")
    if features.ndim != 3 or (dim is not None and features.shape[-1] != dim):
        raise ValueError(
            f"features must have shape (B, T, {'D' if dim is None else dim}), got "
            f"{tuple(features.shape)}"
        )
    if available is None:
        available = features.new_ones(features.shape[:2], dtype=torch.bool)
    check_mask(available, tuple(features.shape[:2]), "available")
    # This comes first: values that the mask hides may be NaN and must not reach a gradient.
    return at_least_float32(features).where(available[..., None], 0.0), available


def _pool(features: Tensor, scores: Tensor, available: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        weights = masked_softmax(scores, available)
        pooled: Tensor = einsum(weights, features, "b t, b t d -> b d")
        return pooled
