"""Scores over per-sample results, their bootstrap intervals and paired tests.

Predictions are `(S, N)`: S disruption seeds of the same N samples. `weights` `(R, N)` say how
often each sample counts in each of R bootstrap replicates; scores are then `(R, S)`. The bootstrap
draws whole samples, with all their seeds, because the answers under different seeds depend.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer]
Weights = NDArray[np.float32]

_BLOCK_ELEMENTS = 8_000_000  # 64 MB in double precision


class Estimate(NamedTuple):
    """A value with the ends of its confidence interval; NaN where it is undefined.

    Example:
        >>> from robustfusion.evaluation.statistics import Estimate
        >>> Estimate(0.5, 0.4, 0.6)
        Estimate(value=0.5, low=0.4, high=0.6)
    """

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


class ClassScores(NamedTuple):
    """Accuracy, macro and weighted F1, each `(R, S)`."""

    accuracy: FloatArray
    macro_f1: FloatArray
    weighted_f1: FloatArray


def _blocks(total: int, size: int) -> Iterator[int]:
    """Split `total` rows of `size` columns into blocks that fit in memory; yield their lengths."""
    block = max(1, _BLOCK_ELEMENTS // max(size, 1))
    return (min(block, total - start) for start in range(0, total, block))


def bootstrap_weights(size: int, replicates: int, seed: int) -> Iterator[Weights]:
    """Yield weights `(r, size)` of the replicates, in blocks whose r sum to `replicates`.

    The draws depend on the arguments alone, so two models, or two conditions, share them, and
    their differences are paired.
    """
    generator = np.random.default_rng(seed)
    for rows in _blocks(replicates, size):
        drawn = generator.integers(size, size=(rows, size)) + np.arange(rows)[:, None] * size
        counts = np.bincount(drawn.ravel(), minlength=rows * size)
        yield counts.reshape(rows, size).astype(np.float32)


def bootstrap_means(
    values: Mapping[str, NDArray[np.float32]], replicates: int, seed: int
) -> dict[str, FloatArray]:
    """Return bootstrap means `(replicates,)` of each `(T, S, N)`, from one resampling for all.

    Training seeds T, disruption seeds S and samples N are drawn with replacement. S is 1 where
    the disruption seed does not matter.
    """
    replicate_means: dict[str, list[FloatArray]] = {key: [np.empty(0)] for key in values}
    runs, _, samples = next(iter(values.values())).shape
    sizes = [runs, *sorted({part.shape[1] for part in values.values()} - {1})]
    generator = np.random.default_rng([seed, 1])
    for weights in bootstrap_weights(samples, replicates, seed):
        over_runs, *others = (
            generator.multinomial(k, np.full(k, 1 / k), size=len(weights)) / k for k in sizes
        )
        shares = {1: np.ones((1, 1)), **dict(zip(sizes[1:], others, strict=True))}
        for key, part in values.items():
            means = (weights @ part.reshape(-1, samples).T).reshape(-1, *part.shape[:2]) / samples
            over_seeds = np.einsum("rts,rs->rt", means, shares[part.shape[1]])
            replicate_means[key].append(np.einsum("rt,rt->r", over_seeds, over_runs))
    return {key: np.concatenate(parts) for key, parts in replicate_means.items()}


def _one_hot(classes: IntArray, num_classes: int) -> Weights:
    return np.asarray(classes[..., None] == np.arange(num_classes), dtype=np.float32)


def _counted(weights: Weights, columns: NDArray[np.float32]) -> FloatArray:
    """Return the sums `(R, S, K)` of columns `(S, N, K)` under weights `(R, N)`."""
    seeds, rows, width = columns.shape
    flat = columns.transpose(1, 0, 2).reshape(rows, seeds * width)
    # The product is torch's, because numpy's ignores the caller's limit on threads.
    sums = torch.from_numpy(weights) @ torch.from_numpy(flat)
    return np.asarray(sums.double().numpy().reshape(len(weights), seeds, width))


def _once(size: int) -> Weights:
    return np.ones((1, size), dtype=np.float32)


def classification_scores(
    labels: IntArray, predictions: IntArray, num_classes: int, weights: Weights | None = None
) -> ClassScores:
    """Return accuracy, macro and weighted F1 of predictions `(S, N)` of true classes `(N,)`.

    A class that is neither present nor predicted has no F1 and is left out of the macro mean, as
    in scikit-learn and torchmetrics. A prediction outside `0 .. C-1` (a sample whose logits were
    not finite) counts as wrong and as no class.
    """
    weights = _once(len(labels)) if weights is None else weights
    true, guess = _one_hot(labels, num_classes), _one_hot(predictions, num_classes)
    # One product for all seeds reads the weights, by far the largest array, only once.
    support = _counted(weights, true[None])
    hits = _counted(weights, true * guess)
    claimed = support + _counted(weights, guess)
    total = support.sum(-1)
    f1 = np.divide(2 * hits, claimed, out=np.zeros_like(hits), where=claimed > 0)
    return ClassScores(
        accuracy=hits.sum(-1) / total,
        macro_f1=f1.sum(-1) / (claimed > 0).sum(-1),
        weighted_f1=(f1 * support).sum(-1) / total,
    )


def calibration_error(
    correct: NDArray[np.bool_],
    confidence: FloatArray,
    bins: int = 15,  # as many as Guo et al., 2017
    weights: Weights | None = None,
) -> FloatArray:
    """Return the expected calibration error `(R, S)`, over bins of equal width.

    Both arguments are `(S, N)`; bins are open on the left and closed on the right. The error is
    the mean gap between confidence and accuracy.
    """
    weights = _once(correct.shape[1]) if weights is None else weights
    column = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = _one_hot(column, bins) * (confidence - correct).astype(np.float32)[..., None]
    total = weights.sum(-1, dtype=np.float64)
    return np.asarray(np.abs(_counted(weights, gap)).sum(-1) / total[:, None])


def weighted_mean(
    values: NDArray[np.float32], weights: Weights, counted: NDArray[np.bool_] | None = None
) -> FloatArray:
    """Return the mean of values `(S, N)`, of all or those `counted`; NaN where none counts."""
    total = weights.sum(-1, dtype=np.float64)[:, None]
    if counted is not None:
        values = np.where(counted, values, np.float32(0))
        total = _counted(weights, counted.astype(np.float32)[..., None])[..., 0]
    sums = _counted(weights, values[..., None])[..., 0]
    nothing = np.full_like(sums, np.nan)
    return np.asarray(np.divide(sums, total, out=nothing, where=total > 0))


def risk_coverage(
    correct: NDArray[np.bool_], confidence: NDArray[np.floating]
) -> tuple[FloatArray, FloatArray]:
    """Return the risk-coverage curve: shares of the samples `(N,)` and the error among these.

    The most confident samples come first. Samples of equal confidence have no order, so each
    counts with the mean error of all of them. The error `(N,)` is the mean over the seeds; its
    mean is the area under the curve.
    """
    size = correct.shape[1]
    risk = np.zeros(size)
    for is_right, score in zip(correct, confidence, strict=True):
        order = np.argsort(-score, kind="stable")
        _, group = np.unique(-score[order], return_inverse=True)
        mean = np.bincount(group, ~is_right[order]) / np.bincount(group)
        risk += np.cumsum(mean[group]) / np.arange(1, size + 1)
    return np.arange(1, size + 1) / size, risk / len(correct)


def separation_auroc(
    higher: FloatArray, lower: FloatArray, weights: Weights | None = None
) -> FloatArray:
    """Return the probability `(R,)` that a score of `higher` exceeds one of `lower`.

    Ties count half. Both are `(N,)`, scores of the same samples when clean and when corrupted.
    -inf is a score; with NaN among them, or without samples, the result is NaN.
    """
    weights = _once(len(higher)) if weights is None else weights
    if not len(higher) or np.isnan(higher).any() or np.isnan(lower).any():
        return np.full(len(weights), np.nan)
    order = np.argsort(lower, kind="stable")
    below, upto = (np.searchsorted(lower[order], higher, side=s) for s in ("left", "right"))
    # With samples first, the cumulative sum runs over contiguous rows.
    drawn = np.ascontiguousarray(weights.T)
    cumulative = np.zeros((len(lower) + 1, len(weights)), dtype=np.float32)
    np.cumsum(drawn[order], axis=0, out=cumulative[1:])
    wins = cumulative[below] + cumulative[upto]
    total = weights.sum(-1, dtype=np.float64)
    won: FloatArray = np.einsum("nr,nr->r", wins, drawn, dtype=np.float64, casting="safe") / 2
    none = np.full_like(won, np.nan)  # a replicate may draw no such sample
    return np.asarray(np.divide(won, total**2, out=none, where=total > 0))


def estimate(value: float, replicates: FloatArray, level: float) -> Estimate:
    """Return the value with the percentile interval of its bootstrap replicates."""
    if not len(replicates) or not np.isfinite(replicates).all():
        return Estimate(float(value), math.nan, math.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def sign_flip_p_values(differences: FloatArray, flips: int = 10_000, seed: int = 0) -> FloatArray:
    """Return two-sided permutation p-values `(K,)` for "the mean is zero" of columns `(N, K)`.

    If two models are alike, the difference of a sample is as likely as its negative. The p-value
    is the share of random sign flips, the observed signs included, for which the mean is at least
    as far from zero. With one run of each model this is McNemar's test; with several, average
    each sample over its runs first, so that it counts once. Columns share the signs. With 10,000
    flips the standard error of a p-value of 0.05 is 0.002.

    Reference:
        Fisher, "The Design of Experiments", 1935; the share counted as by Phipson and Smyth,
        "Permutation P-values Should Never Be Zero", 2010.
    """
    generator = np.random.default_rng(seed)
    size = len(differences)
    beyond = np.zeros(differences.shape[1])
    # The tolerance makes sums in another order equal.
    observed = np.abs(differences.sum(0)) - 1e-9 * max(size, 1)
    columns = torch.from_numpy(np.ascontiguousarray(differences, dtype=np.float64))
    for rows in _blocks(flips, size):
        signs = 2.0 * generator.integers(2, size=(rows, size), dtype=np.int8) - 1.0
        beyond += (np.abs((torch.from_numpy(signs) @ columns).numpy()) >= observed).sum(0)
    return np.asarray((beyond + 1) / (flips + 1))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the p-value of the exact two-sided McNemar test.

    If the models are alike, each of the b + c samples that only one model predicts correctly falls
    on either side with
    probability ½; the p-value is twice the smaller binomial tail, at most 1.

    Reference:
        McNemar, "Note on the sampling error of the difference between correlated proportions or
        percentages", Psychometrika 1947.
    """
    total, few = only_first + only_second, min(only_first, only_second)
    # Python integers are exact, where a float binomial coefficient would overflow.
    tail = sum(accumulate(range(1, few + 1), lambda t, k: t * (total - k + 1) // k, initial=1))
    p_value: float = 2 * tail / 2**total
    return min(1.0, p_value)


def combine_p_values(p_values: FloatArray) -> float:
    """Return one p-value from one test for each seed: twice their median.

    It is valid for any dependence between the tests. The same samples are tested under every
    seed, so pooling the counts would count a sample S times. With one seed it is that seed's
    p-value.

    Reference:
        Rüger, "Das maximale Signifikanzniveau des Tests: Lehne H0 ab, wenn k unter n gegebenen
        Tests zur Ablehnung führen", Metrika 1978.
    """
    # The upper median: k = floor(S/2) + 1 of S tests reject at level p; Rüger's factor is S / k.
    k = len(p_values) // 2 + 1
    return min(1.0, float(np.sort(p_values)[k - 1]) * len(p_values) / k)


def holm(p_values: FloatArray) -> FloatArray:
    """Return Holm's step-down adjustment of several p-values.

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
