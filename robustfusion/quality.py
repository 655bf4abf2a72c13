"""How far can a feature be trusted? What every quality estimator is, and the Gaussian one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._inputs import LARGEST
from robustfusion._modules import arguments_of, keep_rows
from robustfusion._state import keep_float32, snapshot
from robustfusion._validation import check_between, check_mask, check_positive, check_vectors
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import (
    CovarianceType,
    Gaussian,
    at_least_float32,
    fit_gaussian,
    gaussian_log_prob,
    mahalanobis_sq,
    standardize,
)
from robustfusion.moments import RunningMoments

_RECENT = 512  # training rows whose scores say what is usual, until held-out rows do
_REFERENCES = 2048  # held-out rows kept; with more, p-values gain no useful digits
_PATIENCE = 2.0  # deviations by which an odd length must exceed an odd look to count
_LOGISTIC = math.pi / math.sqrt(3)  # a logistic curve of this slope has the deviation 1
_LEAST = 1e-3  # deviation of a statistic, or rounding errors would look odd where all are alike
_UNKNOWN = torch.tensor([[0.0] * 4, [1.0, 1e9, 1e9, 1.0]])


class QualityEstimator(nn.Module, ABC):
    r"""Say how odd the features of one modality look beside intact ones, without any label.

    An implementation says how unlike the queue a feature is, :math:`u` (:meth:`measure`). To that
    come the logarithms of two lengths, :math:`v` from zero and :math:`v'` from the queue's mean.
    A feature is odd if it looks like nothing known, or if a length is unusual, too long or too
    short, as that of a blank, a constant or an average is, which have no direction to look at:

    .. math:: s = \max\Big(\frac{u - \bar u}{\sigma_u},\;
              \Big|\frac{v - \bar v}{\sigma_v}\Big| - 2,\;
              \Big|\frac{v' - \bar v'}{\sigma_{v'}}\Big| - 2\Big)

    with means and deviations over intact rows.

    From this one score, higher is odder, come two answers:

    - ``forward``: the **log-quality**, what fusion weighs by: the log of the share of intact rows
      that look at least as odd, by a normal curve through the scores of intact rows, so that it
      keeps falling where no intact row was ever seen. At most 0, comparable across widths,
      modalities and estimators.
    - ``p_value``: that share itself, counted: :math:`(1 + \#\{s_i \ge s\}) / (n + 1)`. For an
      intact feature :math:`P(p \le \alpha) \le \alpha`, whatever the distribution and n, as long
      as the n reference rows were never observed: that is what :meth:`calibrate` is for.

    Until it was calibrated, the reference rows are those of training, each scored before it was
    stored. After the first epoch the queue holds copies of them; these are passed over, but an
    encoder that trains on a row also makes it look more usual than a new one, and then p-values
    of new rows are too small.

    A row with NaN or inf has log-quality −inf and the smallest p-value; one with a value beyond
    1e9 is never learned from.

    To write your own: implement :meth:`measure`, and :meth:`adapt` where something has to follow
    the queue. :class:`~robustfusion.NeighborQualityEstimator` and
    :class:`~robustfusion.GaussianQualityEstimator` are examples.

    Args:
        dim: Width D of one feature vector.
        capacity: Number of past features kept in ``queue``.

    Attributes:
        queue: The :class:`~robustfusion.FeatureQueue` of past features; tracks moments.

    Shape:
        - ``features``, ``samples``, ``held_out``: (B, D); ``available``, ``valid``: (B,) bool
        - Output: (B,), float32 or better

    Raises:
        ValueError: If a shape or an option does not fit.
        TypeError: If ``features`` is not floating or a mask not bool.

    Example:
        >>> import torch
        >>> from robustfusion import QualityEstimator
        >>> class Spread(QualityEstimator):  # an estimator of your own
        ...     def measure(self, features):
        ...         return self.queue.standardize(features).abs().amax(1)
        >>> estimator = Spread(dim=8).fit(torch.randn(500, 8)).calibrate(torch.randn(200, 8))
        >>> bool((estimator.p_value(9 + torch.randn(50, 8)) < 0.05).all())
        True

    Reference:
        P-values: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; split
        conformal prediction, https://arxiv.org/abs/2107.07511.
    """

    usual: Tensor
    held_out: Tensor
    held_out_count: Tensor

    def __init__(self, dim: int, capacity: int = 2048) -> None:
        super().__init__()
        check_positive(dim, "dim")
        check_positive(capacity, "capacity")
        self.dim = dim
        self.capacity = capacity
        self.queue = FeatureQueue(dim, capacity, track_moments=True)
        # Of training rows when they came: unlikeness, two lengths, score; the latest of them.
        self.recent = FeatureQueue(4, _RECENT)
        # Mean and deviation of each over intact rows; what nothing is known of never looks odd.
        self.register_buffer("usual", _UNKNOWN.clone())
        self.register_buffer("held_out", torch.zeros(_REFERENCES))
        self.register_buffer("held_out_count", torch.zeros((), dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        change = keep_float32(fn, self.usual, self.held_out, self.recent.rows)
        return cast("Self", super()._apply(change, recurse))  # type: ignore[no-untyped-call]

    @abstractmethod
    def measure(self, features: Tensor) -> Tensor:
        """Return how unlike the queue each feature is, (B, D) -> (B,), higher is less alike.

        The features are finite, and so must be what is returned, with an empty queue too.
        """

    def measure_stored(self, features: Tensor) -> Tensor:
        """Measure rows of the queue as if they were not in it; by default ``measure`` does."""
        return self.measure(features)

    def adapt(self, features: Tensor, available: Tensor, slots: Tensor) -> None:
        """Follow the queue, which has just put these rows into these slots; by default nothing."""

    def score(self, features: Tensor) -> Tensor:
        """Return how odd each feature looks, (B, D) -> (B,), inf where it is not finite."""
        check_vectors(features, self.dim, "features", batched=True)
        score = self._score(self._statistics(features, self.measure(features)))
        return score.nan_to_num(nan=torch.inf)

    def forward(self, features: Tensor) -> Tensor:
        """Return the log-quality of each feature, at most 0."""
        return self._log_quality(self.score(features))

    def p_value(self, features: Tensor) -> Tensor:
        """Return the share of intact rows that look at least as odd as each feature."""
        return self.p_value_of(self(features))

    def p_value_of(self, log_quality: Tensor) -> Tensor:
        """Return the p-values of features whose log-quality is known, (B,) -> (B,)."""
        with torch.no_grad():
            held_out = self.held_out_count > 0
            reference = torch.cat([self.held_out, self.recent.storage[:, 3]])
            place = torch.arange(len(reference), device=reference.device)
            counted = torch.where(
                held_out,
                place < self.held_out_count,
                (place >= _REFERENCES) & (place < _REFERENCES + self.recent.count),
            )
            as_odd = self._log_quality(reference)[None] <= log_quality[:, None]
            return (1 + (as_odd & counted).sum(1)) / (1 + counted.sum())

    @torch.no_grad()
    def observe(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Return the log-quality of each feature as ``forward`` does, then learn from the rows.

        Rows that are not available may hold anything; nothing is learned from them. What
        ``calibrate`` was told is forgotten: it was said of features as they were then.
        """
        features, available = self._checked(features, available)
        statistics = self._statistics(features, self.measure(features))
        score = self._score(statistics)
        log_quality = self._log_quality(score)
        known = available & (self.queue.count > 1)  # beside an empty queue everything is odd
        self._store(features, available)
        self.recent.enqueue(torch.cat([statistics, score[:, None]], dim=1), known)
        self._refresh()
        self.held_out_count.zero_()
        return log_quality

    @torch.no_grad()
    def fit(self, samples: Tensor, valid: Tensor | None = None) -> Self:
        """Forget everything, then learn from the newest N samples, each scored without itself."""
        samples, valid = self._checked(samples, valid, "samples", "valid")
        self.reset()
        self._store(samples, valid)
        self._look_back()
        return self

    @torch.no_grad()
    def calibrate(self, held_out: Tensor, available: Tensor | None = None) -> Self:
        """Take the scores of rows that were never observed as what is usual for intact ones.

        Of more than 2,048 rows an even choice is kept.
        """
        held_out, available = self._checked(held_out, available, "held_out")
        rows = held_out[available]
        if len(rows) < 2:
            raise ValueError(f"held_out must have at least 2 available rows, got {len(rows)}")
        # What was computed of each stored row when it came, by what is known now.
        everywhere = torch.arange(self.capacity, device=rows.device)
        self.adapt(self.queue.storage, self.queue.valid, everywhere)
        if len(self.recent) < 2:  # trained on one batch, which came to an empty queue
            self._look_back()
        scores = torch.cat([self.score(part) for part in torch.split(rows, _RECENT)])
        even = torch.linspace(0, len(scores) - 1, min(len(scores), _REFERENCES))
        scores = scores[even.round().long()]
        self.held_out[: len(scores)] = scores
        self.held_out_count.fill_(len(scores))
        self.usual[0, 3], self.usual[1, 3] = scores.mean(), scores.std() + _LEAST
        return self

    @property
    def moments(self) -> RunningMoments:
        """Mean and deviation of the features in the queue."""
        return cast("RunningMoments", self.queue.moments)

    extra_repr = arguments_of

    def reset(self) -> None:
        """Forget everything."""
        self.queue.reset()
        self.recent.reset()
        self.held_out_count.zero_()
        self.usual.copy_(_UNKNOWN)

    def _store(self, features: Tensor, available: Tensor) -> None:
        self.adapt(features, available, self.queue.store(features, available))

    def _look_back(self) -> None:
        """Learn what is usual from the rows of the queue, each scored without itself."""
        rows = self.queue.storage[: len(self.queue)]
        if len(rows) < 2:
            return
        unlike = torch.cat([self.measure_stored(part) for part in torch.split(rows, _RECENT)])
        statistics = self._statistics(rows, unlike)
        self.usual[0, :3], self.usual[1, :3] = statistics.mean(0), statistics.std(0) + _LEAST
        score = self._score(statistics)
        self.recent.enqueue(torch.cat([statistics, score[:, None]], dim=1))
        self._refresh()

    def _statistics(self, features: Tensor, unlike: Tensor) -> Tensor:
        """Unlikeness and the logarithms of two lengths, (B, 3)."""
        centered = standardize(features, self.moments.gaussian())
        both = torch.stack([features.to(centered), centered], dim=1)
        lengths = torch.linalg.vector_norm(both, dim=2)
        return torch.cat([unlike[:, None], lengths.clamp_min(1e-6).log()], dim=1)

    def _score(self, statistics: Tensor) -> Tensor:
        """How odd, from (B, 3)."""
        mean, deviation = self._usual()[:, :3]
        unusual = (statistics - mean) / deviation
        return torch.maximum(unusual[:, 0], unusual[:, 1:].abs().amax(1) - _PATIENCE)

    def _log_quality(self, score: Tensor) -> Tensor:
        """The tail of a logistic curve with the mean and deviation of intact scores."""
        mean, deviation = self._usual()[:, 3]
        # The log of a sigmoid; as logsigmoid it would be -inf below -16 in ONNX Runtime.
        return -_LOGISTIC * F.softplus((score - mean) / deviation, beta=_LOGISTIC)

    def _usual(self) -> Tensor:
        """Mean and deviation of what is usual, (2, 4); a copy where a backward may read it."""
        return snapshot(self.usual, training=self.training and torch.is_grad_enabled())

    def _refresh(self) -> None:
        """Make scores and log-qualities comparable with those of the rows seen lately."""
        rows, count = at_least_float32(self.recent.storage), self.recent.count
        number = count.clamp_min(1)
        mean = rows.sum(0) / number
        variance = (rows.square().sum(0) / number - mean.square()).clamp_min(0)
        fresh = torch.stack([mean, variance.sqrt() + _LEAST])
        self.usual.copy_(torch.where(count > 1, fresh, self.usual))

    def _checked(
        self,
        features: Tensor,
        mask: Tensor | None,
        name: str = "features",
        mask_name: str = "available",
    ) -> tuple[Tensor, Tensor]:
        """Zero the rows that are not there, or are not finite."""
        check_vectors(features, self.dim, name, batched=True)
        if mask is None:
            mask = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
        check_mask(mask, (features.shape[0],), mask_name)
        mask = mask & (features.abs().amax(-1) < LARGEST)
        return keep_rows(features.detach(), mask), mask


class GaussianQualityEstimator(QualityEstimator):
    r"""Score features by a Gaussian fitted to the queue.

    How unlike the queue a feature is, is the log of its Mahalanobis distance. ``log_prob`` is the
    log-density; for "spherical" exactly the log of the paper's (9).

    Below ``min_samples`` queued rows the moments stay what they were; at birth those of N(0, I).
    A covariance of one point is zero, and dividing by it is how training blows up.

    Each update fits the whole queue anew, in :math:`O(ND)` or, "full", :math:`O(ND^2 + D^3)`.

    Args:
        dim: Width D of one feature vector.
        covariance_type: "spherical" (one σ, the paper's (2)), "diag" or "full".
        capacity: Number of past features N that are kept.
        min_samples: Fewest queued rows that change the fit.
        shrinkage: Between 0 and 1, pulls variances towards their mean; see
            :func:`~robustfusion.functional.fit_gaussian`. "full" needs some where N < 10 D.
        eps: Smallest variance.

    Shape:
        - ``samples``, ``features``: (B, D); ``log_prob`` takes (..., D)
        - Output: (B,), float32 or better

    Raises:
        ValueError: If a width or an option does not fit.
        TypeError: If ``features`` is not floating.

    Example:
        >>> import torch
        >>> from robustfusion import GaussianQualityEstimator
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
        born = self._standard_normal()
        self.register_buffer("mean", born.mean)
        self.register_buffer("scale", born.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn, self.mean, self.scale), recurse)

    @property
    def distribution(self) -> Gaussian:
        """The fitted Gaussian, as copies: a later update cannot disturb a pending backward."""
        mean = snapshot(self.mean, training=self.training)
        return Gaussian(mean, snapshot(self.scale, training=self.training))

    def log_prob(self, features: Tensor) -> Tensor:
        """Log-density of each feature vector, (..., D) -> (...)."""
        check_vectors(features, self.dim, "features")
        return gaussian_log_prob(features, self.distribution)

    def measure(self, features: Tensor) -> Tensor:
        """Return the log of the Mahalanobis distance."""
        return self._log_distance(mahalanobis_sq(features, self.distribution))

    def measure_stored(self, features: Tensor) -> Tensor:
        r"""As ``measure``, by the Gaussian of the other rows: :math:`d^2/(1-d^2/(n-1))`.

        To a constant factor that is the distance once the row is taken out of mean and covariance.
        """
        count = (self.queue.count - 1).clamp_min(1)
        squared = mahalanobis_sq(features, self.distribution)
        # For "diag" the sum over coordinates is treated as D equal parts.
        parts = self.dim if self.covariance_type == "diag" else 1
        # Of a row that is alone in its direction nothing is left: ten times as far is enough.
        left = (1 - squared / (parts * count)).clamp_min(0.01)
        return self._log_distance(squared / left)

    def adapt(self, features: Tensor, available: Tensor, slots: Tensor) -> None:
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
        # Through a view: compiled, torch loses a `copy_` into a 0-dimensional float64 CPU buffer.
        self.scale[...] = torch.where(enough, scale.to(self.scale.dtype), self.scale)

    def reset(self) -> None:
        """Forget everything; the Gaussian is N(0, I) again."""
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
