"""How typical is a feature of its modality? Log-quality from a fitted Gaussian."""

import math
from typing import Self

import torch
from torch import Tensor, nn

from robustfusion._state import snapshot
from robustfusion._validation import check_between, check_mask, check_positive, check_vectors
from robustfusion.functional import (
    CovarianceType,
    Gaussian,
    fit_gaussian,
    gaussian_log_prob,
    mahalanobis_sq,
)


class GaussianQualityEstimator(nn.Module):
    r"""Score features by a Gaussian fitted to samples of their modality.

    ``log_prob`` is the log-density; for "spherical" exactly the log of the paper's (9).
    ``forward`` is the log-quality :math:`-\tfrac12 d^2 / \mathbb{E}[d^2]` with the squared
    Mahalanobis distance :math:`d^2` and its expectation under the fit (1 for spherical, D
    otherwise): −½ on average in distribution at any width and type, and never above 0.
    Log-densities of different widths cannot be compared; log-qualities can.

    Below ``min_samples`` valid rows ``fit`` keeps the moments it had: at birth those of N(0, I). A
    covariance of one point is zero, and dividing by it is how training blows up.

    Args:
        dim: Width D of one feature vector.
        covariance_type: "spherical" (one σ, the paper's (2)), "diag" or "full".
        min_samples: Fewest valid rows that change the fit.
        shrinkage: Between 0 and 1, pulls variances towards their mean; see
            :func:`~robustfusion.functional.fit_gaussian`.
        eps: Smallest variance.

    Shape:
        - ``samples``: (N, D), ``valid``: (N,) bool
        - ``features``: (..., D)
        - Output: (...), float32 or better

    Raises:
        ValueError: If a width or an option does not fit.
        TypeError: If ``features`` is not floating.

    Example:
        >>> estimator = GaussianQualityEstimator(dim=8).fit(torch.randn(512, 8))
        >>> clean, odd = torch.randn(1000, 8), 5 * torch.randn(1000, 8)
        >>> bool(estimator(clean).mean() > estimator(odd).mean())
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
        min_samples: int = 2,
        shrinkage: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_positive(dim, "dim")
        check_positive(min_samples, "min_samples")
        check_between(shrinkage, 0.0, 1.0, "shrinkage")
        if eps <= 0:
            raise ValueError(f"eps must be positive, got {eps}")
        scales = {
            # The spherical σ is a distance: under N(0, I) it is the root of D.
            "spherical": torch.tensor(math.sqrt(dim)),
            "diag": torch.ones(dim),
            "full": torch.eye(dim),
        }
        if covariance_type not in scales:
            raise ValueError(f"covariance_type must be in {list(scales)}, got {covariance_type!r}")
        self.dim = dim
        self.covariance_type: CovarianceType = covariance_type
        self.min_samples = min_samples
        self.shrinkage = shrinkage
        self.eps = eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", scales[covariance_type])

    @property
    def distribution(self) -> Gaussian:
        """The fitted Gaussian, as copies: a later ``fit`` cannot disturb a pending backward."""
        mean = snapshot(self.mean, training=self.training)
        return Gaussian(mean, snapshot(self.scale, training=self.training))

    @torch.no_grad()
    def fit(self, samples: Tensor, valid: Tensor | None = None) -> Self:
        """Fit to the valid rows; keep the old fit if they are fewer than ``min_samples``."""
        check_vectors(samples, self.dim, "samples", batched=True)
        if valid is None:
            valid = torch.ones(samples.shape[0], dtype=torch.bool, device=samples.device)
        check_mask(valid, (samples.shape[0],), "valid")
        mean, scale = fit_gaussian(
            samples,
            valid,
            covariance_type=self.covariance_type,
            shrinkage=self.shrinkage,
            eps=self.eps,
        )
        enough = valid.sum() >= self.min_samples
        self.mean.copy_(torch.where(enough, mean.to(self.mean.dtype), self.mean))
        # Through a view: compiled, torch loses a `copy_` into a 0-dimensional float64 CPU buffer.
        self.scale[...] = torch.where(enough, scale.to(self.scale.dtype), self.scale)
        return self

    def log_prob(self, features: Tensor) -> Tensor:
        """Log-density of each feature vector, (..., D) -> (...)."""
        check_vectors(features, self.dim, "features")
        return gaussian_log_prob(features, self.distribution)

    def forward(self, features: Tensor) -> Tensor:
        """Log-quality of each feature vector, at most 0, (..., D) -> (...)."""
        check_vectors(features, self.dim, "features")
        expectation = 1 if self.covariance_type == "spherical" else self.dim
        return -0.5 / expectation * mahalanobis_sq(features, self.distribution)

    def extra_repr(self) -> str:
        """Return the arguments of the constructor."""
        return (
            f"dim={self.dim}, covariance_type={self.covariance_type!r}, "
            f"min_samples={self.min_samples}, shrinkage={self.shrinkage}, eps={self.eps}"
        )
