"""Mean and variance of a ring buffer, kept up to date at a cost that does not grow with it."""

import torch
from torch import Tensor, nn

from robustfusion._state import snapshot
from robustfusion._validation import check_positive
from robustfusion.functional import CovarianceType, Gaussian, at_least_float32

_FARTHEST = 1e9


class RunningMoments(nn.Module):
    r"""Track mean and variance of the rows in a ring buffer by what enters and what leaves.

    Each update adds the entering rows and subtracts those that they overwrite, so a step costs
    :math:`O(BD)` at any capacity. Subtracting leaves rounding errors behind; therefore a second
    sum counts only the rows of the current lap, and replaces the first whenever the ring closes.
    Errors thus live for a few laps at most, however long the run. Rows are taken relative to a
    pivot, a recent mean, because :math:`E[x^2] - E[x]^2` of features far from zero would cancel;
    each lap takes a new one.

    :class:`~robustfusion.FeatureQueue` owns one when built with ``track_moments=True``.

    Args:
        dim: Width D of one row.
        capacity: Number of rows N of the ring.

    Attributes:
        totals: (3, D), sums over the ring of the deviations from the pivot, their squares and
            their cubes.
        lap: (3, D), the same over the rows written since slot 0 was last written.
        count: (), how many rows hold data.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> from robustfusion import FeatureQueue
        >>> queue = FeatureQueue(dim=3, capacity=100, track_moments=True)
        >>> queue.enqueue(torch.randn(250, 3) + 5)
        >>> torch.allclose(queue.moments.gaussian("diag").mean, queue.storage.mean(0), atol=1e-5)
        True

    Reference:
        The pivot: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The
        American Statistician 37, 1983.
    """

    pivots: Tensor
    totals: Tensor
    lap: Tensor
    count: Tensor

    def __init__(self, dim: int, capacity: int) -> None:
        super().__init__()
        check_positive(dim, "dim")
        check_positive(capacity, "capacity")
        self.dim = dim
        self.capacity = capacity
        self.register_buffer("pivots", torch.zeros(2, dim))
        self.register_buffer("totals", torch.zeros(3, dim))
        self.register_buffer("lap", torch.zeros(3, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def replace(
        self,
        entering: Tensor,
        leaving: Tensor,
        kept: Tensor,
        slots: Tensor,
        cursor: Tensor,
        stored: Tensor,
    ) -> None:
        """Account for rows that were written over others.

        Args:
            entering: (B, D), the new rows.
            leaving: (B, D), what stood in their slots.
            kept: (B,) bool, True where the new row was written.
            slots: (B,) long, where.
            cursor: (), the slot of the first new row; from there slots follow each other.
            stored: (), how many rows came; of more than N only the newest N were kept.
        """
        entering = at_least_float32(entering).where(kept[:, None], 0.0)
        leaving = at_least_float32(leaving)
        batch_mean = entering.sum(0) / kept.sum().clamp_min(1)
        ring, lap = torch.where(self.count == 0, batch_mean, self.pivots).unbind()

        end = cursor + stored
        replaced, closes = stored >= self.capacity, end >= self.capacity
        wrapped = kept & (slots < torch.where(closes, end % self.capacity, 0))
        new = torch.stack([kept & ~wrapped, wrapped]).to(entering.dtype)
        old = new * (slots < self.count)

        def sums(counted: Tensor, rows: Tensor, pivot: Tensor) -> Tensor:
            return (counted @ _powers(rows - pivot)).view(*counted.shape[:-1], 3, -1)

        # Of the rows written before the ring closes, and of those of the next lap.
        before, after = sums(new, entering, lap)
        closed = self.lap + before
        fresh_pivot = torch.where(closes, lap + closed[0] / self.capacity, lap)
        # When the ring closes, the rows of the lap are the whole ring: a fresh total, of which
        # the next lap has replaced some. When a batch replaces every row, its own rows are.
        total = torch.where(
            closes,
            closed + after - sums(old[1], leaving, lap),
            self.totals + sums(new[0], entering, ring) - sums(old[0], leaving, ring),
        )
        self.totals.copy_(torch.where(replaced, before + after, total))
        self.lap.copy_(torch.where(closes, sums(new[1], entering, fresh_pivot), closed))
        self.pivots.copy_(torch.stack([torch.where(closes, lap, ring), fresh_pivot]))
        self.count.add_(stored).clamp_max_(self.capacity)

    def gaussian(self, covariance_type: CovarianceType = "diag", eps: float = 1e-6) -> Gaussian:
        """Return the spherical or diagonal Gaussian of the rows in the ring."""
        totals, pivot, count = (
            snapshot(state, training=self.training)
            for state in (self.totals, self.pivots[0], self.count)
        )
        shift, square, _ = at_least_float32(totals) / count.clamp_min(1)
        variance = (square - shift.square()).clamp_min(0)
        mean = at_least_float32(pivot) + shift
        if covariance_type == "spherical":
            return Gaussian(mean, variance.sum().clamp_min(eps).sqrt())
        if covariance_type == "diag":
            return Gaussian(mean, variance.clamp_min(eps).sqrt())
        raise ValueError(
            'covariance_type must be "spherical" or "diag" for running moments, got '
            f"{covariance_type!r}: fit a full covariance to the queue's storage"
        )

    def third_central_moment(self) -> Tensor:
        """Return (D,), whose sign says to which side a coordinate is skewed."""
        shift, square, cube = at_least_float32(self.totals) / self.count.clamp_min(1)
        moment: Tensor = cube - 3 * shift * square + 2 * shift**3
        return moment

    def reset(self) -> None:
        """Forget everything."""
        for buffer in (self.pivots, self.totals, self.lap, self.count):
            buffer.zero_()

    def extra_repr(self) -> str:
        """Return the arguments of the constructor."""
        return f"dim={self.dim}, capacity={self.capacity}"


def _powers(rows: Tensor) -> Tensor:
    """The rows, their squares and their cubes, (B, D) -> (B, 3 D); far outliers are clipped."""
    rows = rows.clamp(-_FARTHEST, _FARTHEST)  # a cube of more would overflow
    return torch.cat([rows, rows.square(), rows**3], dim=1)
