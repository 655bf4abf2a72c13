"""The contract of quality estimators, which score how unusual features are."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._inputs import MAX_ABS_FEATURE
from robustfusion._modules import arguments_of, keep_rows
from robustfusion._state import keep_float32, snapshot
from robustfusion._validation import check_mask, check_positive, check_vectors
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import at_least_float32, conformal_p_value, standardize
from robustfusion.moments import RunningMoments

_RECENT = 512  # number of training rows whose scores are the references until `calibrate`
_REFERENCES = 2048  # number of calibration scores that are stored; p-values need no finer steps
# Standard deviations subtracted from the length scores before the maximum is taken.
_LENGTH_TOLERANCE = 2.0
_LOGISTIC_SLOPE = math.pi / math.sqrt(3)  # a logistic distribution of this slope has std 1
_HASH = -1640531535  # 2**32 over the golden ratio: its products mix all bits
# With a smaller mark, a row of the queue is a mixture: 1 % of another row does no harm.
_MIN_MARK = 0.98
_MIN_STD = 1e-3  # with a smaller one, rounding errors would look unusual where all rows are alike
# Mean and std of the three statistics and the score before any row is known. The last mean makes
# every log-quality so low that a modality which training never had gets no weight.
_NO_STATS = torch.tensor([[0.0, 0.0, 0.0, -1e3], [1.0, 1e9, 1e9, 1.0]])


class QualityEstimator(nn.Module, ABC):
    r"""Score how unusual the features of one modality are, without labels of damage.

    From one outlier score :math:`s`, higher is less usual, come two answers:

    - ``forward``: the **log-quality**, by which fusion weights modalities: the log of the share of
      intact features that score at least as high, by a logistic curve through the scores of intact
      features. It is at most 0, keeps falling beyond the largest intact score, and is comparable
      across widths, modalities and estimators.
    - ``p_value``: the same share, counted: :math:`(1 + \#\{s_i \ge s\}) / (n + 1)`. For an intact
      feature :math:`P(p \le \alpha) \le \alpha` for every distribution and n, if the n reference
      features were never observed. :meth:`calibrate` takes such references. Before that, the
      references are training features, each scored before it was stored. An encoder that trains on
      a sample makes it look more usual than a new one, so p-values of new samples are too small.

    Before it has learned from two rows, an estimator knows nothing: p-values are NaN, and
    log-qualities so low that fusion gives the modality no weight. :attr:`ready` tells.

    Moving averages of weights that average the queue as well leave mixtures of samples in it.
    Then p-values are NaN, the switch to evaluation and :meth:`calibrate` warn, and
    :func:`robustfusion.calibration.refresh` makes both right. :attr:`mixed` tells.

    A feature with NaN or inf has log-quality −inf and the smallest p-value. A feature with a value
    beyond 1e13 is never learned from.

    To write your own estimator, implement :meth:`distance`, and :meth:`update` if some state has
    to follow the queue.

    Args:
        dim: Width D of one feature vector.
        capacity: Number of past features N that are kept in ``queue``.

    Attributes:
        queue: The :class:`~robustfusion.FeatureQueue` of past features.
        moments: Mean and standard deviation of the features in the queue.

    Shape:
        - ``features``: (B, D); ``available``: (B,) bool
        - Output: (B,), float32 or better

    Raises:
        ValueError: If a shape or an option does not fit.
        TypeError: If ``features`` is not floating or a mask not bool.

    Example:
        >>> import torch
        >>> from robustfusion import QualityEstimator
        >>> class LargestCoordinate(QualityEstimator):  # an estimator of your own
        ...     def distance(self, features):
        ...         return self.standardize(features).abs().amax(1)
        >>> estimator = LargestCoordinate(dim=8).fit(torch.randn(500, 8))
        >>> estimator = estimator.calibrate(torch.randn(200, 8))
        >>> bool((estimator.p_value(9 + torch.randn(50, 8)) < 0.05).all())
        True

    Note:
        The score combines the distance :math:`u` from the queue with two log-lengths of the
        feature, :math:`v` from zero and :math:`v'` from the queue's mean. An unusual length, too
        long or too short, gives away a blank, a constant or an average, which have no direction to
        compare:

        .. math:: s = \max\Big(\frac{u - \bar u}{\sigma_u},\;
                  \Big|\frac{v - \bar v}{\sigma_v}\Big| - 2,\;
                  \Big|\frac{v' - \bar v'}{\sigma_{v'}}\Big| - 2\Big)

        with means and standard deviations over intact features.

    Reference:
        P-values: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; split
        conformal prediction, https://arxiv.org/abs/2107.07511.
    """

    score_stats: Tensor
    references: Tensor
    reference_count: Tensor
    unscored: Tensor
    marks: Tensor

    def __init__(self, dim: int, capacity: int = 2048) -> None:
        super().__init__()
        check_positive(dim, "dim")
        check_positive(capacity, "capacity")
        self.dim = dim
        self.capacity = capacity
        self.queue = FeatureQueue(dim, capacity)
        self.moments = RunningMoments(dim, window=capacity)
        # Each row holds distance, two log-lengths and score of a recent training feature.
        self.recent_scores = FeatureQueue(4, _RECENT)
        # Mean (first row) and standard deviation (second row) of the same four over intact
        # features.
        self.register_buffer("score_stats", _NO_STATS.clone())
        # Scores of features that were never observed.
        self.register_buffer("references", torch.zeros(_REFERENCES))
        self.register_buffer("reference_count", torch.zeros((), dtype=torch.long))
        # 1 if rows were stored since scores were last computed from the queue.
        self.register_buffer("unscored", torch.zeros((), dtype=torch.long))
        # 1 or -1 for each row of the queue, from its bits: an average of rows is in between.
        self.register_buffer("marks", torch.ones(capacity + 1))
        self.register_load_state_dict_pre_hook(_add_marks)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        change = keep_float32(fn, self.score_stats, self.references, self.recent_scores.slots)
        return cast("Self", super()._apply(change, recurse))  # type: ignore[no-untyped-call]

    @abstractmethod
    def distance(self, features: Tensor) -> Tensor:
        """Return how far each feature is from the queue, (B, D) -> (B,), higher is less usual.

        The features are finite. The result must be finite as well, also with an empty queue.
        """

    def leave_one_out_distance(self, features: Tensor) -> Tensor:
        """Return the distance of rows of the queue as if they were not in it.

        The default returns :meth:`distance`.
        """
        return self.distance(features)

    def update(self, features: Tensor, available: Tensor, slots: Tensor) -> None:
        """Follow the queue, which has just stored these rows in these slots; default: nothing."""

    def score(self, features: Tensor) -> Tensor:
        """Return the outlier score of each feature, (B, D) -> (B,), inf if it is not finite."""
        check_vectors(features, self.dim, "features", batched=True)
        score = self._score(self._statistics(features, self.distance(features)))
        return score.nan_to_num(nan=torch.inf)

    def forward(self, features: Tensor) -> Tensor:
        """Return the log-quality of each feature, at most 0."""
        return self._log_quality(self.score(features))

    def p_value(self, features: Tensor) -> Tensor:
        """Return the share of intact features that are at least as unusual as each feature."""
        return self.p_value_of(self(features))

    def p_value_of(self, log_quality: Tensor) -> Tensor:
        """Return the p-values that belong to known log-qualities, (B,) -> (B,)."""
        with torch.no_grad():
            references = torch.cat([self.references, self.recent_scores.storage[:, 3]])
            index = torch.arange(len(references), device=references.device)
            valid = torch.where(
                self.reference_count > 0,
                index < self.reference_count,
                (index >= _REFERENCES) & (index < _REFERENCES + self.recent_scores.count),
            )
            p_value = conformal_p_value(-log_quality, -self._log_quality(references), valid)
            return p_value.where(valid.any() & ~self.mixed, torch.nan)

    @property
    def ready(self) -> bool:
        """Return whether there are references, so that p-values are not NaN."""
        known = bool(self.reference_count > 0) or len(self.recent_scores) > 0
        return known and not bool(self.mixed)

    @property
    def mixed(self) -> Tensor:
        """Return whether rows of the queue are averages of several rows, () bool."""
        return (self.marks[:-1].abs() < _MIN_MARK).any()

    def standardize(self, features: Tensor) -> Tensor:
        """Give each coordinate mean 0 and standard deviation 1 by the moments of the queue."""
        return standardize(features, self.moments.gaussian())

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the switch to evaluation scores the rows that were stored in training."""
        super().train(mode)
        if not mode and not self.unscored.is_meta:
            self._warn_if_mixed()
            if int(self.unscored):
                self._score_queue()
        return self

    @torch.no_grad()
    def store(self, features: Tensor, available: Tensor) -> None:
        """Store finite training features without scoring them, as heads do in training.

        Scores are computed once, at the switch to evaluation, so a training step searches nothing.
        The references of :meth:`calibrate` are dropped, because they belong to earlier features.
        """
        self._mark(features, self.queue.enqueue(features, available))
        self.moments.observe_finite(features, available)
        self.unscored.fill_(1)
        self.reference_count.zero_()

    @torch.no_grad()
    def observe(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Return the log-quality of each feature as ``forward`` does, then learn from the rows.

        Use it for an estimator outside a head, one batch after the other. Rows that are not
        available may hold anything and change nothing. The references of :meth:`calibrate` are
        dropped, because they belong to earlier features.
        """
        features, available = self._checked(features, available)
        statistics = self._statistics(features, self.distance(features))
        score = self._score(statistics)
        log_quality = self._log_quality(score)
        known = available & (self.queue.count > 1)  # an empty queue makes every row unusual
        slots = self.queue.enqueue(features, available)
        self._mark(features, slots)
        self.moments.observe_finite(features, available)
        self.update(features, available, slots)
        self.recent_scores.enqueue(torch.cat([statistics, score[:, None]], dim=1), known)
        self._update_stats()
        self.reference_count.zero_()
        return log_quality

    @torch.no_grad()
    def fit(self, features: Tensor, available: Tensor | None = None) -> Self:
        """Learn from the newest N features alone, each scored without itself."""
        features, available = self._checked(features, available)
        self.reset()
        self.store(features, available)
        self._score_queue()
        return self

    @torch.no_grad()
    def calibrate(self, features: Tensor, available: Tensor | None = None) -> Self:
        """Take the scores of intact features that were never observed as references.

        Of more than 2,048 features an evenly spaced selection is kept.
        """
        features, available = self._checked(features, available)
        rows = features[available]
        if len(rows) < 2:
            raise ValueError(f"features must have at least 2 available rows, got {len(rows)}")
        self._warn_if_mixed()
        # State of each row that was computed when it came follows today's moments.
        self._follow_queue()
        if int(self.unscored) or len(self.recent_scores) < 2:
            self._score_queue()
        scores = torch.cat([self.score(part) for part in torch.split(rows, _RECENT)])
        index = torch.linspace(0, len(scores) - 1, min(len(scores), _REFERENCES))
        scores = scores[index.round().long()]
        self.references[: len(scores)] = scores
        self.reference_count.fill_(len(scores))
        self.score_stats[0, 3], self.score_stats[1, 3] = scores.mean(), scores.std() + _MIN_STD
        return self

    extra_repr = arguments_of

    def reset(self) -> None:
        """Forget everything."""
        self.queue.reset()
        self.moments.reset()
        self.recent_scores.reset()
        self.reference_count.zero_()
        self.unscored.zero_()
        self.score_stats.copy_(_NO_STATS)
        self.marks.fill_(1)

    def _mark(self, features: Tensor, slots: Tensor) -> None:
        """Mark the rows that were stored in these slots by 1 or -1, a hash of the row."""
        # Lengths and sums may be alike in all rows, those of normalized features are.
        bits = torch.linalg.vector_norm(features.float(), 3, dim=1).view(torch.int32)
        sign = (bits * _HASH).view(torch.float32)
        marks = torch.copysign(sign.new_ones(()), sign)
        self.marks.index_copy_(0, slots, marks.to(self.marks.dtype))

    def _warn_if_mixed(self) -> None:
        if self.mixed:
            warnings.warn(
                "the rows of a queue are averages of several rows, as moving averages of weights "
                "leave them: p-values are NaN until robustfusion.calibration.refresh(model, "
                "training_batches) and then calibrate were called",
                stacklevel=3,
            )

    def _follow_queue(self) -> None:
        every_slot = torch.arange(self.capacity, device=self.queue.count.device)
        self.update(self.queue.storage, self.queue.valid, every_slot)

    @torch.no_grad()
    def _score_queue(self) -> None:
        """Compute score statistics from the newest queued rows, each scored without itself."""
        self._follow_queue()
        self.unscored.zero_()
        number = min(len(self.queue), _RECENT)
        if number < 2:
            return
        age = torch.arange(number, device=self.queue.count.device)
        rows = self.queue.storage[(self.queue.cursor - 1 - age) % self.capacity]
        statistics = self._statistics(rows, self.leave_one_out_distance(rows))
        self.score_stats[0, :3] = statistics.mean(0)
        self.score_stats[1, :3] = statistics.std(0) + _MIN_STD
        score = self._score(statistics)
        self.recent_scores.reset()
        self.recent_scores.enqueue(torch.cat([statistics, score[:, None]], dim=1))
        self._update_stats()

    def _statistics(self, features: Tensor, distance: Tensor) -> Tensor:
        """Return the distance and two log-lengths of each feature, (B, 3)."""
        centered = self.standardize(features)
        both = torch.stack([features.to(centered), centered], dim=1)
        lengths = torch.linalg.vector_norm(both, dim=2)
        return torch.cat([distance[:, None], lengths.clamp_min(1e-6).log()], dim=1)

    def _score(self, statistics: Tensor) -> Tensor:
        """Return the outlier score, (B, 3) -> (B,)."""
        return _outlier_score(statistics, self._score_stats())

    def _log_quality(self, score: Tensor) -> Tensor:
        """Return the log-quality of outlier scores."""
        return _log_tail(score, self._score_stats())

    def _score_stats(self) -> Tensor:
        """Return the score statistics, as a copy where a backward pass may read them."""
        return snapshot(self.score_stats, training=self.training and torch.is_grad_enabled())

    def _update_stats(self) -> None:
        """Compute the score statistics from the recent scores."""
        rows, count = at_least_float32(self.recent_scores.storage), self.recent_scores.count
        number = count.clamp_min(1)
        mean = rows.sum(0) / number
        variance = (rows.square().sum(0) / number - mean.square()).clamp_min(0)
        stats = torch.stack([mean, variance.sqrt() + _MIN_STD])
        self.score_stats.copy_(torch.where(count > 1, stats, self.score_stats))

    def _checked(self, features: Tensor, available: Tensor | None) -> tuple[Tensor, Tensor]:
        """Set rows that are unavailable or not finite to zero, and return the final mask."""
        check_vectors(features, self.dim, "features", batched=True)
        if available is None:
            available = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
        check_mask(available, (features.shape[0],), "available")
        available = available & (features.abs().amax(-1) < MAX_ABS_FEATURE)
        return keep_rows(features.detach(), available), available


def log_qualities(estimators: Iterable[QualityEstimator], features: Iterable[Tensor]) -> Tensor:
    """Return the log-qualities of M modalities, (B, M): those of each estimator, made at once.

    >>> from robustfusion import NeighborQualityEstimator
    >>> estimator, features = (
    ...     NeighborQualityEstimator(8).fit(torch.randn(99, 8)),
    ...     torch.randn(5, 8),
    ... )
    >>> both = log_qualities([estimator, estimator], [features, 9 * features])
    >>> torch.equal(both[:, 0], estimator(features))
    True
    """
    parts = list(estimators)
    statistics = [
        part._statistics(x, part.distance(x)) for part, x in zip(parts, features, strict=True)
    ]
    stats = torch.stack([part._score_stats() for part in parts], dim=1)
    score = _outlier_score(torch.stack(statistics, dim=1), stats)
    return _log_tail(score.nan_to_num(nan=torch.inf), stats)


def _outlier_score(statistics: Tensor, stats: Tensor) -> Tensor:
    """Return the outlier score, (..., 3) -> (...), by score statistics (2, ..., 4)."""
    mean, std = stats[..., :3]
    deviation = (statistics - mean) / std
    lengths = torch.linalg.vector_norm(deviation[..., 1:], torch.inf, dim=-1)
    return torch.maximum(deviation[..., 0], lengths - _LENGTH_TOLERANCE)


def _log_tail(score: Tensor, stats: Tensor) -> Tensor:
    """Return the log of the upper tail of a logistic curve fitted to intact scores."""
    mean, std = stats[..., 3]
    # In ONNX Runtime, logsigmoid is -inf below -16; softplus is not.
    return -_LOGISTIC_SLOPE * F.softplus((score - mean) / std, beta=_LOGISTIC_SLOPE)


def _add_marks(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the rows of a state without marks, of robustfusion 0.2 or older, for whole ones."""
    marks = cast("Tensor", module.marks)
    if prefix + "queue.slots" in state:
        state.setdefault(prefix + "marks", torch.ones_like(marks))
