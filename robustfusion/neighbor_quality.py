"""Score features by their nearest neighbors in a queue of the same modality."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from robustfusion._state import keep_float32
from robustfusion._validation import check_positive
from robustfusion.functional import at_least_float32, nearest_similarity
from robustfusion.quality import QualityEstimator

# Offset of the origin in standard deviations; at the mean itself, the cosine ignores the length of
# a feature. Measured against 0 and 1 by benchmarks/quality.py.
_ORIGIN_OFFSET = 0.5


class NeighborQualityEstimator(QualityEstimator):
    r"""Score features by their nearest neighbors among past features.

    A density measures how close a feature is to the center; neighbors measure whether anything
    like it was seen before. The distance from the queue is :math:`\log(1 - c)` with the mean
    cosine :math:`c` to the ``neighbors`` most similar rows of standardized features. Copies of the
    feature itself, which earlier epochs left in the queue, are ignored.

    Angles are taken at a point half a standard deviation from the mean, against the skew of each
    coordinate (closer to the mean if the skew is small). Features after a ReLU are therefore seen
    from near zero, and shifted or flipped features give the same scores.

    See :class:`~robustfusion.QualityEstimator` for how the distance becomes a log-quality and a
    p-value.

    Args:
        dim: Width D of one feature vector.
        capacity: Number of past features that are kept.
        neighbors: Number of neighbors that are averaged.

    Shape:
        - ``features``: (B, D); ``available``: (B,) bool
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
        >>> intact, noise = torch.randn(100, 4) @ mixing, torch.randn(100, 32)
        >>> bool((estimator.p_value(noise) < 0.05).all())  # every row raises an alarm
        True
        >>> bool((estimator.p_value(intact) < 0.05).float().mean() < 0.2)
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
        # One over the length of each queued row, standardized by the moments of its time.
        self.register_buffer("inverse_lengths", torch.zeros(capacity + 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn, self.origin, self.inverse_lengths), recurse)

    @torch.no_grad()
    def distance(self, features: Tensor) -> Tensor:
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

    def update(self, features: Tensor, available: Tensor, slots: Tensor) -> None:
        """Move the origin and store the lengths of the new rows."""
        mean, scale = self.moments.gaussian()
        valid = self.queue.valid
        share = (valid / self.queue.count.clamp_min(1)).to(scale.dtype)
        skew = share @ self.standardize(self.queue.storage).pow(3)
        origin = mean - _ORIGIN_OFFSET * (10 * skew).clamp(-1, 1) * scale
        self.origin.copy_(origin)
        length = torch.linalg.vector_norm((at_least_float32(features) - origin) / scale, dim=-1)
        inverse = (available / length.clamp_min(1e-6)).to(self.inverse_lengths.dtype)
        self.inverse_lengths.index_copy_(0, slots, inverse)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.origin.zero_()
        self.inverse_lengths.zero_()
