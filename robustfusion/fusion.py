"""Fuse several candidates of one sample by their quality."""

from einops import einsum
from torch import Tensor, nn

from robustfusion._modules import arguments_of
from robustfusion._validation import check_mask, check_vectors
from robustfusion.functional import masked_softmax


class QualityWeightedFusion(nn.Module):
    r"""Sum K candidates weighted by their log-quality, the paper's (12).

    .. math::
        M = \sum_k w_k F_k, \qquad
        w_k = \frac{a_k \exp(q_k / T)}{\sum_j a_j \exp(q_j / T)}
        \quad\text{or, unnormalised,}\quad w_k = a_k \exp(q_k / T)

    with log-quality :math:`q`, availability :math:`a` and temperature :math:`T`. Candidates may be
    anything: modalities, completions of a sample, the logits of an ensemble; the scores may come
    from anywhere. A sample with no available candidate gets weights 0 and a fused vector of 0.

    The paper does not normalise. In 384 dimensions its weights are near 1e-5 for clean data, which
    scales the fused vector to nothing; normalised weights compare candidates instead.

    Args:
        normalize: Whether weights sum to 1 over the available candidates. ``False`` is the paper.
        temperature: Above 1 evens the weights out, below 1 sharpens them.

    Shape:
        - ``candidates``: (B, K, F); ``log_quality``: (B, K); ``available``: (B, K) bool
        - Output: (B, F); ``weights``: (B, K)

    Raises:
        ValueError: If a shape does not fit or ``temperature`` is not positive.
        TypeError: If a tensor has the wrong dtype.

    Example:
        >>> import torch
        >>> from robustfusion import QualityWeightedFusion
        >>> fusion = QualityWeightedFusion()
        >>> logits_of_three_models = torch.randn(4, 3, 10)
        >>> fusion(logits_of_three_models, log_quality=torch.randn(4, 3)).shape
        torch.Size([4, 10])

    Reference:
        Equation (12) of https://arxiv.org/abs/2511.18751.
    """

    def __init__(self, *, normalize: bool = True, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.normalize = normalize
        self.temperature = temperature

    def weights(self, log_quality: Tensor, available: Tensor | None = None) -> Tensor:
        """Return the weight of each candidate, (B, K) -> (B, K)."""
        check_vectors(log_quality, log_quality.shape[-1], "log_quality", batched=True)
        if available is not None:
            check_mask(available, tuple(log_quality.shape), "available")
        scores = log_quality if self.temperature == 1 else log_quality / self.temperature
        if self.normalize:
            return masked_softmax(scores, available)
        # Masked before exp: the gradient of exp at a masked NaN would be NaN.
        return (scores if available is None else scores.where(available, -float("inf"))).exp()

    def forward(
        self, candidates: Tensor, log_quality: Tensor, available: Tensor | None = None
    ) -> Tensor:
        """Return the fused vector of each sample."""
        if candidates.ndim != 3 or candidates.shape[:2] != log_quality.shape:
            raise ValueError(
                "candidates must have shape (B, K, F) for log_quality of shape (B, K), got "
                f"{tuple(candidates.shape)} and {tuple(log_quality.shape)}"
            )
        check_vectors(candidates, candidates.shape[-1], "candidates")
        weights = self.weights(log_quality, available)
        if available is not None:
            candidates = candidates.where(available[..., None], 0.0)
        return einsum(weights.to(candidates.dtype), candidates, "b k, b k f -> b f")

    extra_repr = arguments_of
