"""Scores over per-sample results, their bootstrap intervals and paired tests.

Every function takes predictions of shape `(S, N)`: S disruption seeds of the same N samples. A
bootstrap resamples the samples, never the seeds times the samples: the rows of one sample stand
or fall together.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer]

_BLOCK_ELEMENTS = 8_000_000


class Estimate(NamedTuple):
    """A value with the ends of its confidence interval; NaN where it is undefined.

    Example:
        >>> Estimate(0.5, 0.4, 0.6)
        Estimate(value=0.5, low=0.4, high=0.6)
    """

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


class Scores(NamedTuple):
    """Accuracy, macro and weighted F1, each `(...)`."""

    accuracy: FloatArray
    macro_f1: FloatArray
    weighted_f1: FloatArray


def bootstrap_weights(size: int, replicates: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each sample is drawn in each bootstrap replicate, in blocks of replicates.

    The draws depend on `size`, `replicates` and `seed` alone, so that two models, or two
    conditions, share them: differences are paired.

    Args:
        size: number of samples, N.
        replicates: number of replicates over all blocks, R.
        seed: seed of the draws.

    Yields:
        arrays `(r, N)` of counts, each row summing to N; the r sum to R.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // max(size, 1))
    for start in range(0, replicates, block):
        rows = min(block, replicates - start)
        drawn = generator.integers(size, size=(rows, size))
        drawn += np.arange(rows)[:, None] * size
        counts = np.bincount(drawn.ravel(), minlength=rows * size)
        block_counts: NDArray[np.float32] = counts.reshape(rows, size).astype(np.float32)
        yield block_counts


def _one_hot(classes: IntArray, num_classes: int) -> NDArray[np.float32]:
    hot: NDArray[np.float32] = (classes[..., None] == np.arange(num_classes)).astype(np.float32)
    return hot


def _counted(weights: NDArray[np.float32], columns: NDArray[np.float32]) -> FloatArray:
    """`(R, N)` weights times `(S, N, K)` columns: sums `(R, S, K)`."""
    seeds, rows, width = columns.shape
    flat = columns.transpose(1, 0, 2).reshape(rows, seeds * width)
    # torch's product: numpy's own threads ignore the limit that the caller has set.
    sums = torch.from_numpy(weights) @ torch.from_numpy(flat)
    result: FloatArray = sums.double().numpy().reshape(len(weights), seeds, width)
    return result


def classification_scores(
    labels: IntArray,
    predictions: IntArray,
    num_classes: int,
    weights: NDArray[np.float32] | None = None,
) -> Scores:
    """Accuracy, macro and weighted F1 of each seed and bootstrap replicate.

    A class that is neither present nor predicted has no F1 and is left out of the macro mean, as
    scikit-learn and torchmetrics do. A prediction outside `0 .. C-1` (a row whose logits were not
    finite) counts as wrong and as no class.

    Args:
        labels: true classes, `(N,)`.
        predictions: predicted classes, `(S, N)`.
        num_classes: C.
        weights: how often each sample counts in each replicate, `(R, N)`; None means once, R = 1.

    Returns:
        three arrays `(R, S)`.
    """
    if weights is None:
        weights = np.ones((1, len(labels)), dtype=np.float32)
    true = _one_hot(labels, num_classes)
    guess = _one_hot(predictions, num_classes)
    # One product for all seeds: it reads the weights, the largest array by far, once.
    support = _counted(weights, true[None])
    hits = _counted(weights, true * guess)
    claimed = support + _counted(weights, guess)
    total = support.sum(-1)
    f1 = np.divide(2 * hits, claimed, out=np.zeros_like(hits), where=claimed > 0)
    accuracy = hits.sum(-1) / total
    macro = f1.sum(-1) / (claimed > 0).sum(-1)
    weighted = (f1 * support).sum(-1) / total
    return Scores(accuracy, macro, weighted)


def calibration_error(
    correct: NDArray[np.bool_],
    confidence: FloatArray,
    bins: int = 15,
    weights: NDArray[np.float32] | None = None,
) -> FloatArray:
    """Expected calibration error: mean gap of confidence and accuracy over equal-width bins.

    Args:
        correct: `(S, N)`.
        confidence: probability of the predicted class, `(S, N)`, in [0, 1].
        bins: number of bins, each open on the left and closed on the right.
        weights: `(R, N)` as in `classification_scores`.

    Returns:
        array `(R, S)`.
    """
    if weights is None:
        weights = np.ones((1, correct.shape[1]), dtype=np.float32)
    total = weights.sum(-1, dtype=np.float64)
    column = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = _one_hot(column, bins) * (confidence - correct).astype(np.float32)[..., None]
    return np.asarray(np.abs(_counted(weights, gap)).sum(-1) / total[:, None])


def weighted_mean(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    counted: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Mean of each seed and bootstrap replicate, over the samples that count.

    Args:
        values: `(S, N)`.
        weights: `(R, N)` as in `classification_scores`.
        counted: bool `(S, N)`; None means all.

    Returns:
        array `(R, S)`; NaN where nothing counts.
    """
    if counted is None:
        total = weights.sum(-1, dtype=np.float64)[:, None]
    else:
        values = np.where(counted, values, np.float32(0))
        total = _counted(weights, counted.astype(np.float32)[..., None])[..., 0]
    sums = _counted(weights, values[..., None])[..., 0]
    nothing = np.full_like(sums, np.nan)
    return np.asarray(np.divide(sums, total, out=nothing, where=total > 0))


def risk_coverage(
    correct: NDArray[np.bool_], confidence: NDArray[np.floating]
) -> tuple[FloatArray, FloatArray]:
    """Error among the most confident samples, for every share of them: the risk-coverage curve.

    Samples of equal confidence have no order: each of them counts with their mean.

    Args:
        correct: `(S, N)`.
        confidence: `(S, N)`.

    Returns:
        the shares of the samples that are answered, `(N,)`, and the error among these, mean over
        the seeds, `(N,)`; its mean is the area under the curve.

    Example:
        >>> coverage, risk = risk_coverage(np.array([[True, False]]), np.array([[0.9, 0.6]]))
        >>> coverage, risk
        (array([0.5, 1. ]), array([0. , 0.5]))
    """
    size = correct.shape[1]
    risk = np.zeros(size)
    for right, sure in zip(correct, confidence, strict=True):
        order = np.argsort(-sure, kind="stable")
        wrong = ~right[order]
        _, group = np.unique(-sure[order], return_inverse=True)
        mean = np.bincount(group, wrong) / np.bincount(group)
        risk += np.cumsum(mean[group]) / np.arange(1, size + 1)
    return np.arange(1, size + 1) / size, risk / len(correct)


def separation_auroc(
    higher: FloatArray, lower: FloatArray, weights: NDArray[np.float32] | None = None
) -> FloatArray:
    """Probability that a score of `higher` exceeds a score of `lower`, ties counting half.

    Args:
        higher: scores expected to be large (clean), `(N,)`; -inf is a score, NaN is not.
        lower: scores of the same N samples expected to be small (corrupted), `(N,)`.
        weights: `(R, N)` as in `classification_scores`: one weight for both scores of a sample.

    Returns:
        array `(R,)`; NaN where a score is NaN or there is no sample.
    """
    rows = 1 if weights is None else len(weights)
    if not len(higher) or np.isnan(higher).any() or np.isnan(lower).any():
        return np.full(rows, np.nan)
    order = np.argsort(lower, kind="stable")
    ranked = lower[order]
    below = np.searchsorted(ranked, higher, side="left")
    upto = np.searchsorted(ranked, higher, side="right")
    if weights is None:
        return np.asarray([(below + upto).mean() / 2 / len(lower)])
    # Samples first: a row is then the same step for all replicates, and lies in one piece.
    drawn = np.ascontiguousarray(weights.T)
    cumulative = np.zeros((len(lower) + 1, rows), dtype=np.float32)
    np.cumsum(drawn[order], axis=0, out=cumulative[1:])
    wins = cumulative[below] + cumulative[upto]
    total = weights.sum(-1, dtype=np.float64)
    won: FloatArray = np.einsum("nr,nr->r", wins, drawn, dtype=np.float64, casting="safe") / 2
    return np.asarray(won / total**2)


def estimate(value: float, replicates: FloatArray, level: float) -> Estimate:
    """The value with the percentile interval of its bootstrap replicates."""
    if not len(replicates) or not np.isfinite(replicates).all():
        return Estimate(float(value), math.nan, math.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def sign_flip_p_values(differences: FloatArray, flips: int = 10_000, seed: int = 0) -> FloatArray:
    """Two-sided permutation tests for "the mean difference is zero", one for each column.

    If two models are alike, the difference of a sample is as likely as its negative. The p-value
    is the share of random signs, given ones included, under which the mean is as far from zero.
    With one run a side this is McNemar's test; with several, average each sample over its runs
    first, so that it counts once.

    Args:
        differences: `(N, K)`, of each sample under K conditions; the signs are shared.
        flips: random assignments of signs.
        seed: of the signs.

    Returns:
        array `(K,)`.

    Example:
        >>> sign_flip_p_values(np.ones((20, 1))).round(4)
        array([0.0001])

    Reference:
        Fisher, "The Design of Experiments", 1935; the share counted as by Phipson and Smyth,
        "Permutation P-values Should Never Be Zero", 2010.
    """
    generator = np.random.default_rng(seed)
    size = len(differences)
    beyond = np.zeros(differences.shape[1])
    found = np.abs(differences.sum(0)) - 1e-9 * max(size, 1)
    block = max(1, _BLOCK_ELEMENTS // max(size, 1))
    columns = torch.from_numpy(np.ascontiguousarray(differences, dtype=np.float64))
    for start in range(0, flips, block):
        rows = min(block, flips - start)
        signs = 2.0 * generator.integers(2, size=(rows, size), dtype=np.int8) - 1.0
        beyond += (np.abs((torch.from_numpy(signs) @ columns).numpy()) >= found).sum(0)
    return np.asarray((beyond + 1) / (flips + 1))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar test: are the samples that one model alone gets right balanced?

    Under the null each of the `b + c` samples on which exactly one model is right falls on either
    side with probability ½; the p-value is twice the smaller binomial tail, at most 1.

    Args:
        only_first: samples only the first model gets right, b.
        only_second: samples only the second model gets right, c.

    Returns:
        the p-value; 1 where the models never differ.

    Example:
        >>> mcnemar_exact(8, 0)
        0.0078125

    Reference:
        McNemar, "Note on the sampling error of the difference between correlated proportions or
        percentages", Psychometrika 1947.
    """
    total, few = only_first + only_second, min(only_first, only_second)
    # Integers of any size: exact, where a float binomial coefficient would overflow.
    term: int = 1
    tail: int = 1
    for k in range(1, few + 1):
        term = term * (total - k + 1) // k
        tail += term
    p_value: float = 2 * tail / 2**total
    return min(1.0, p_value)


def combine_p_values(p_values: FloatArray) -> float:
    """One p-value from one test a seed: twice their median, valid however they depend.

    The same samples are tested under every seed, so that pooling the counts would count a sample
    S times. With one seed it is that seed's p-value.

    Reference:
        Rüger, "Das maximale Signifikanzniveau des Tests: Lehne H0 ab, wenn k unter n gegebenen
        Tests zur Ablehnung führen", Metrika 1978.
    """
    if len(p_values) == 1:
        return float(p_values[0])
    # The upper median: k = floor(S/2) + 1 of S tests reject at level p; Rüger's factor is S / k.
    ordered = np.sort(p_values)
    k = len(ordered) // 2 + 1
    return min(1.0, float(ordered[k - 1]) * len(ordered) / k)


def holm(p_values: FloatArray) -> FloatArray:
    """Holm's step-down adjustment of several p-values.

    Example:
        >>> [round(float(p), 10) for p in holm(np.array([0.01, 0.04, 0.03]))]
        [0.03, 0.06, 0.06]

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
