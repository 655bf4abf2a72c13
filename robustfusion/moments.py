"""Mean and variance of a stream of rows, at a cost that does not grow with its length."""

from collections.abc import Callable, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of, keep_rows
from robustfusion._state import joined, keep_float32, snapshot
from robustfusion._validation import check_positive
from robustfusion.functional import CovarianceType, Gaussian, at_least_float32

_MIN_STD = 1e-3
_SHARED_STD = (
    0.01  # share of the mean std that is added to every std: some coordinates hardly vary
)


class RunningMoments(nn.Module):
    r"""Track mean and variance of about the last ``window`` rows.

    A batch of n rows moves each moment by the share :math:`a = n / \min(t, N)` towards its own,
    with t rows seen in all and the window N. The variance follows the mean to its new place:

    .. math:: \mu' = \mu + \delta, \qquad
              \delta = a\,(\mu_b - \mu), \qquad
              \sigma'^2 = (1-a)\,(\sigma^2 + \delta^2) + \frac{a}{n} \sum_i (x_i - \mu')^2

    Up to N rows these are exactly the moments of all rows; beyond, old rows fade. Each moment is
    taken about the mean, so features far from zero lose no digits, and rounding errors fade like
    the rows. Every :class:`~robustfusion.QualityEstimator` owns one.

    Args:
        dim: Width D of one row.
        window: Number of rows N.

    Attributes:
        moments: (2, D), mean and variance.
        diagonal: (2, D), mean and standard deviation of ``gaussian("diag")``.
        count: (), the number of rows seen, at most N.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> from robustfusion.moments import RunningMoments
        >>> running, rows = RunningMoments(dim=3, window=100), torch.randn(80, 3) + 5
        >>> for batch in rows.split(16):
        ...     running.observe(batch)
        >>> torch.allclose(running.gaussian("diag").mean, rows.mean(0), atol=1e-5)
        True

    Reference:
        Joining two sets: Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
        The American Statistician 37, 1983.
    """

    moments: Tensor
    diagonal: Tensor
    count: Tensor

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        check_positive(dim, "dim")
        check_positive(window, "window")
        self.dim = dim
        self.window = window
        self.register_buffer("moments", torch.zeros(2, dim))
        self.register_buffer("diagonal", torch.stack([torch.zeros(dim), torch.ones(dim)]))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        change = keep_float32(fn, self.moments, self.diagonal)
        return cast("Self", super()._apply(change, recurse))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def observe(self, rows: Tensor, available: Tensor | None = None) -> None:
        """Update the moments with the available rows of (B, D); other rows may hold anything."""
        if available is None:
            available = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
        self.observe_finite(keep_rows(rows, available), available)

    @torch.no_grad()
    def observe_finite(self, rows: Tensor, available: Tensor) -> None:
        """Update the moments as ``observe`` does, if unavailable rows are finite as well."""
        with torch.autocast(rows.device.type, enabled=False):
            x, number = at_least_float32(rows).to(self.moments.dtype), available.sum()
            self.count.add_(number).clamp_max_(self.window)
            total = self.count.clamp_min(1)
            if rows.shape[0] > self.window:  # such a batch replaces everything
                total = torch.maximum(total, number)
            weight = (available / total).to(x.dtype)[None]
            mean, variance = self.moments
            step = (weight @ (x - mean))[0]
            mean.add_(step)
            variance.addcmul_(step, step)
            variance.addcmul_(variance, (number / total).to(x.dtype), value=-1)
            variance[None].addmm_(weight, (x - mean).square())
            std = variance.sqrt()
            std = torch.add(std, std.mean(), alpha=_SHARED_STD).clamp_min_(_MIN_STD)
            self.diagonal[0].copy_(mean)
            self.diagonal[1].copy_(std.masked_fill_(self.count < 2, 1.0))

    def gaussian(self, covariance_type: CovarianceType = "diag") -> Gaussian:
        """Return the spherical or diagonal Gaussian; below two rows its standard deviations are 1.

        A diagonal one adds a hundredth of the mean standard deviation to each coordinate, because
        some coordinates hardly vary.
        """
        mean, std = at_least_float32(snapshot(self.diagonal, training=self.training))
        if covariance_type == "diag":
            return Gaussian(mean, std)
        if covariance_type == "spherical":
            variance = at_least_float32(snapshot(self.moments, training=self.training))[1].sum()
            return Gaussian(
                mean, torch.where(self.count > 1, variance, self.dim).sqrt().clamp_min(_MIN_STD)
            )
        raise ValueError(
            'covariance_type must be "spherical" or "diag" for running moments, got '
            f"{covariance_type!r}: fit a full covariance to the queue's storage"
        )

    def reset(self) -> None:
        """Forget everything."""
        self.moments.zero_()
        self.diagonal[0], self.diagonal[1] = 0.0, 1.0
        self.count.zero_()

    extra_repr = arguments_of


def gaussian_of_all(parts: Sequence[RunningMoments]) -> Gaussian:
    """Return the diagonal Gaussian of several modalities side by side.

    >>> gaussian_of_all([RunningMoments(dim=2, window=9), RunningMoments(dim=1, window=9)])
    Gaussian(mean=tensor([0., 0., 0.]), scale=tensor([1., 1., 1.]))
    """
    training = any(part.training for part in parts)
    return Gaussian(
        *at_least_float32(joined([part.diagonal for part in parts], training=training))
    )
