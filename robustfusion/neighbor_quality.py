"""How odd a feature is, from its neighbors in a queue of its modality."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from robustfusion._state import keep_float32
from robustfusion._validation import check_positive
from robustfusion.functional import at_least_float32, nearest_similarity
from robustfusion.quality import QualityEstimator

# Of a standard deviation. At the mean itself angles would ignore lengths, and nothing points
# anywhere; measured on benchmarks/quality.py beside 0 and 1.
_OFFSET = 0.5


class NeighborQualityEstimator(QualityEstimator):
    r"""Score features by their nearest neighbors among past features.

    A density asks how close a feature is to the center; neighbors ask whether anything like it
    was ever seen. How unlike the queue a feature is, is :math:`\log(1 - c)` with the mean cosine
    :math:`c` to the ``neighbors`` most similar rows, of standardized features. Copies of the
    feature itself, left in the queue by earlier epochs, are passed over.

    Angles are taken at a point half a standard deviation from the mean, on the side where each
    coordinate rests, against its skew (less where it has hardly any): so features after a ReLU
    are seen from near their zero, and it does not matter how features were shifted or flipped.

    See :class:`~robustfusion.QualityEstimator` for what is made of it.

    Args:
        dim: Width D of one feature vector.
        capacity: Number of past features kept.
        neighbors: Number of neighbors that are averaged.

    Shape:
        - ``features``, ``samples``: (B, D); ``available``, ``valid``: (B,) bool
        - Output: (B,), float32 or better

    Raises:
        ValueError: If a shape or an option does not fit.
        TypeError: If ``features`` is not floating or a mask not bool.

    Example:
        >>> import torch
        >>> from robustfusion import NeighborQualityEstimator
        >>> mixing = torch.randn(4, 32)
        >>> estimator = NeighborQualityEstimator(dim=32).fit(torch.randn(1000, 4) @ mixing)
        >>> estimator = estimator.calibrate(torch.randn(200, 4) @ mixing)
        >>> seen, noise = torch.randn(100, 4) @ mixing, torch.randn(100, 32)
        >>> bool((estimator.p_value(noise) < 0.05).all())  # an alarm for each
        True
        >>> bool((estimator.p_value(seen) < 0.05).float().mean() < 0.2)
        True

    Reference:
        Neighbors as a score: Sun et al., ICML 2022, https://arxiv.org/abs/2204.06507.
    """

    origin: Tensor
    inverse_lengths: Tensor

    def __init__(self, dim: int, *, capacity: int = 2048, neighbors: int = 10) -> None:
        super().__init__(dim, capacity)
        check_positive(neighbors, "neighbors")
        self.neighbors = neighbors
        self.register_buffer("origin", torch.zeros(dim))
        # Of each row as it was standardized when it came, in the slots of the queue.
        self.register_buffer("inverse_lengths", torch.zeros(capacity + 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn, self.origin, self.inverse_lengths), recurse)

    @torch.no_grad()
    def measure(self, features: Tensor) -> Tensor:
        """Return log(1 - mean cosine to the nearest rows)."""
        cosine = nearest_similarity(
            features,
            self.queue.storage,
            self.inverse_lengths[:-1],
            origin=at_least_float32(self.origin),
            scale=self.moments.gaussian().scale,
            neighbors=self.neighbors,
        )
        return (1 - cosine).clamp_min(1e-6).log()

    def adapt(self, features: Tensor, available: Tensor, slots: Tensor) -> None:
        """Move the origin, and keep the lengths of the new rows."""
        mean, scale = self.moments.gaussian()
        skew = at_least_float32(self.moments.moments)[2] / scale**3
        origin = mean - _OFFSET * (10 * skew).clamp(-1, 1) * scale
        self.origin.copy_(origin)
        length = torch.linalg.vector_norm((at_least_float32(features) - origin) / scale, dim=-1)
        inverse = (available / length.clamp_min(1e-6)).to(self.inverse_lengths.dtype)
        self.inverse_lengths.index_copy_(0, slots, inverse)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.origin.zero_()
        self.inverse_lengths.zero_()
