"""Score features by the distance from a Gaussian that is fitted to a queue."""

import math
from collections.abc import Callable
from typing import Self, get_args

import torch
from torch import Tensor

from robustfusion._state import keep_float32, snapshot
from robustfusion._validation import check_between, check_positive, check_vectors
from robustfusion.functional import (
    CovarianceType,
    Gaussian,
    fit_gaussian,
    gaussian_log_prob,
    mahalanobis_sq,
)
from robustfusion.quality import QualityEstimator


class GaussianQualityEstimator(QualityEstimator):
    r"""Score features by a Gaussian fitted to the queue.

    The distance of a feature from the queue is the log of its Mahalanobis distance. ``log_prob``
    is the log-density; for "spherical" it is exactly the log of the paper's (9).

    Below ``min_samples`` queued rows the Gaussian stays what it was, which is N(0, I) at first:
    the covariance of a single point is zero, and dividing by it would destroy training.

    Each update fits the whole queue again, in :math:`O(ND)` or, for "full", :math:`O(ND^2 + D^3)`.

    Args:
        dim: Width D of one feature vector.
        covariance_type: "spherical" (one σ, the paper's (2)), "diag" or "full".
        capacity: Number of past features N that are kept.
        min_samples: Smallest number of queued rows that changes the fit.
        shrinkage: Between 0 and 1, pulls variances towards their mean; see
            :func:`~robustfusion.functional.fit_gaussian`. "full" needs some where N < 10 D.
        eps: Smallest variance.

    Shape:
        - ``features``: (B, D), for ``log_prob`` (..., D); ``available``: (B,) bool
        - Output: (B,), float32 or better

    Raises:
        ValueError: If a width or an option does not fit.
        TypeError: If ``features`` is not floating.

    Example:
        >>> import torch
        >>> from robustfusion import GaussianQualityEstimator
        >>> estimator = GaussianQualityEstimator(dim=8).fit(torch.randn(512, 8))
        >>> intact, damaged = torch.randn(1000, 8), 5 * torch.randn(1000, 8)
        >>> bool(estimator(intact).mean() > estimator(damaged).mean())
        True

    Reference:
        Equations (1), (2) and (9) of https://arxiv.org/abs/2511.18751.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        *,
        covariance_type: CovarianceType = "spherical",
        capacity: int = 2048,
        min_samples: int = 2,
        shrinkage: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(dim, capacity)
        check_positive(min_samples, "min_samples")
        check_between(shrinkage, 0.0, 1.0, "shrinkage")
        if eps <= 0:
            raise ValueError(f"eps must be positive, got {eps}")
        if covariance_type not in get_args(CovarianceType):
            raise ValueError(
                f"covariance_type must be in {get_args(CovarianceType)}, got {covariance_type!r}"
            )
        self.covariance_type: CovarianceType = covariance_type
        self.min_samples = min_samples
        self.shrinkage = shrinkage
        self.eps = eps
        initial = self._standard_normal()
        self.register_buffer("mean", initial.mean)
        self.register_buffer("scale", initial.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn, self.mean, self.scale), recurse)

    @property
    def distribution(self) -> Gaussian:
        """The fitted Gaussian, as copies: a later update cannot disturb a pending backward."""
        mean = snapshot(self.mean, training=self.training)
        return Gaussian(mean, snapshot(self.scale, training=self.training))

    def log_prob(self, features: Tensor) -> Tensor:
        """Return the log-density of each feature vector, (..., D) -> (...)."""
        check_vectors(features, self.dim, "features")
        return gaussian_log_prob(features, self.distribution)

    def distance(self, features: Tensor) -> Tensor:
        """Return the log of the Mahalanobis distance."""
        return self._log_distance(mahalanobis_sq(features, self.distribution))

    def leave_one_out_distance(self, features: Tensor) -> Tensor:
        r"""Return the distance from the Gaussian of the other rows: :math:`d^2/(1-d^2/(n-1))`.

        Up to a constant factor this is the distance after removing the row from mean and
        covariance.
        """
        count = (self.queue.count - 1).clamp_min(1)
        squared = mahalanobis_sq(features, self.distribution)
        # For "diag" the sum over coordinates is treated as D equal parts.
        parts = self.dim if self.covariance_type == "diag" else 1
        # A row that alone spans its direction has infinite leave-one-out distance; cap it at 10x.
        remainder = (1 - squared / (parts * count)).clamp_min(0.01)
        return self._log_distance(squared / remainder)

    def update(self, features: Tensor, available: Tensor, slots: Tensor) -> None:
        """Fit mean and covariance to the queue."""
        mean, scale = fit_gaussian(
            self.queue.storage,
            self.queue.valid,
            covariance_type=self.covariance_type,
            shrinkage=self.shrinkage,
            eps=self.eps,
        )
        enough = self.queue.count >= self.min_samples
        self.mean.copy_(torch.where(enough, mean.to(self.mean.dtype), self.mean))
        # Written through a view: compiled, torch loses a `copy_` into a 0-dimensional float64
        # buffer on a CPU.
        self.scale[...] = torch.where(enough, scale.to(self.scale.dtype), self.scale)

    def reset(self) -> None:
        """Forget everything; the Gaussian becomes N(0, I) again."""
        super().reset()
        mean, scale = self._standard_normal()
        self.mean.copy_(mean)
        self.scale[...] = scale.to(self.scale)

    def _standard_normal(self) -> Gaussian:
        scales = {
            # The spherical σ is a distance: under N(0, I) it is the root of D.
            "spherical": torch.tensor(math.sqrt(self.dim)),
            "diag": torch.ones(self.dim),
            "full": torch.eye(self.dim),
        }
        return Gaussian(torch.zeros(self.dim), scales[self.covariance_type])

    def _log_distance(self, squared: Tensor) -> Tensor:
        return 0.5 * squared.clamp_min(1e-12).log()
