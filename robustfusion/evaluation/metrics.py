"""The metrics of each task, with bootstrap weights; NaN where one is undefined.

``weights`` (R, N) say how often each sample counts in each of R bootstrap replicates; a metric is
then (R,). Unknown targets, NaN, and for labels −1 as well, are left out.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustfusion.evaluation.statistics import FloatArray, Weights

Metric: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], float]
"""A metric of your own: ``metric(targets, predictions)``, as in scikit-learn."""

# The metric of the rate curves, the area under them, the drop and the corruption premium.
MAIN = {
    "multiclass": "accuracy",
    "multilabel": "mean_average_precision",
    "regression": "r2",
}
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "weighted_f1": "weighted F1",
    "auroc": "AUROC",
    "mean_average_precision": "mean average precision",
    "mae": "mean absolute error",
    "r2": "R²",
    "spearman": "Spearman correlation",
    "coverage": "interval coverage",
}
IN_UNITS = ("mae", "r2", "spearman")  # all other metrics are shares


def title(metric: str) -> str:
    """Return the name of a metric as it begins a heading."""
    return TITLES[metric][0].upper() + TITLES[metric][1:]


def label_metrics(
    targets: FloatArray, predictions: NDArray[Any], probabilities: FloatArray, weights: Weights
) -> dict[str, FloatArray]:
    """Return the metrics (R,) of predicted labels (N, C), 0 or 1, and their probabilities.

    A label that is neither true nor predicted in any sample counts in no F1, and one that is never
    true in no average precision. A prediction of −1 is wrong whatever the label.
    """
    known = ~np.isnan(targets) & (targets >= 0)
    true, claimed = (targets > 0.5) & known, (predictions > 0) & known
    wrong = (predictions < 0) & known
    hits = _sums(weights, true & claimed & ~wrong)
    errors = _sums(weights, (true != claimed) | wrong)
    both = 2 * hits + errors
    return {
        "micro_f1": _ratio(2 * hits.sum(1), both.sum(1)),
        "macro_f1": _mean_defined(_ratio(2 * hits, both)),
        "mean_average_precision": _mean_defined(
            np.stack(
                [
                    average_precision(t[k], p[k], weights[:, k])
                    for t, p, k in zip(true.T, probabilities.T, known.T, strict=True)
                ],
                axis=1,
            )
        ),
        "accuracy": _ratio(
            _sums(weights, known).sum(1) - errors.sum(1), _sums(weights, known).sum(1)
        ),
    }


def number_metrics(
    targets: FloatArray, predictions: FloatArray, half_widths: FloatArray | None, weights: Weights
) -> dict[str, FloatArray]:
    """Return the metrics (R,) of predicted numbers (N, C), each a mean over the numbers.

    ``half_widths`` (N, C) are those of the intervals, if there are any; all infinite ones, of a
    head that is not calibrated, are none.
    """
    parts: dict[str, list[FloatArray]] = {}
    for column, (y, x) in enumerate(zip(targets.T, predictions.T, strict=True)):
        known = ~np.isnan(y)
        y, x = y[known].astype(np.float64), x[known].astype(np.float64)
        w = weights[:, known].astype(np.float64)
        total = w.sum(1)
        error, mean = np.abs(x - y), _ratio(w @ y, total)
        variation = w @ y**2 - total * mean**2
        values = {
            "mae": _ratio(w @ error, total),
            "r2": 1
            - _ratio(w @ error**2, np.where(variation > 1e-12 * (w @ y**2), variation, 0.0)),
            "spearman": spearman(y, x, w),
        }
        if half_widths is not None and np.isfinite(half_widths).any():
            values["coverage"] = _ratio(w @ (error <= half_widths[known, column]), total)
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    return {name: np.mean(values, axis=0) for name, values in parts.items()}


def class_auroc(labels: NDArray[Any], probabilities: FloatArray, weights: Weights) -> FloatArray:
    """Return the AUROC (R,) of each class (N,) against the rest, a mean over the classes."""
    columns = [
        auroc(labels == index, column, weights) for index, column in enumerate(probabilities.T)
    ]
    return _mean_defined(np.stack(columns, axis=1))


def auroc(true: NDArray[np.bool_], scores: FloatArray, weights: Weights) -> FloatArray:
    """Return the probability (R,) that a true sample scores above a false one, ties half.

    NaN without both kinds.
    """
    w = weights.astype(np.float64)
    ranks = midranks(scores, w)
    yes, no = w @ true, w @ ~true
    # The mean rank of true samples, less that of the true ones among themselves.
    total = np.einsum("rn,rn->r", ranks, w * true) - yes**2 / 2
    return _ratio(total, yes * no)


def average_precision(true: NDArray[np.bool_], scores: FloatArray, weights: Weights) -> FloatArray:
    """Return the average precision (R,): the precision at each recall step, weighted by the step.

    Samples of equal score enter together. NaN without a true sample.
    """
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # the last sample of each score
    w = weights[:, order].astype(np.float64)
    hits = np.cumsum(w * true[order], axis=1)[:, last]
    seen = np.cumsum(w, axis=1)[:, last]
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    steps = np.diff(hits, axis=1, prepend=0.0)
    return _ratio((precision * steps).sum(1), hits[:, -1])


def spearman(first: NDArray[Any], second: NDArray[Any], weights: FloatArray) -> FloatArray:
    """Return the rank correlation (R,); NaN if one side is constant."""
    if not len(first):
        return np.full(len(weights), np.nan)
    total = weights.sum(1, keepdims=True)
    a, b = (midranks(x, weights) - total / 2 for x in (first, second))
    products = [np.einsum("rn,rn->r", weights * x, y) for x, y in ((a, b), (a, a), (b, b))]
    scale = np.sqrt(np.maximum(products[1] * products[2], 0.0))
    return _ratio(products[0], np.where(scale > 1e-9 * total[:, 0], scale, 0.0))


def midranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the rank (R, N) of each sample: the weight below it and half that of its equals."""
    _, group = np.unique(values, return_inverse=True)
    sums = np.zeros((len(weights), int(group.max(initial=-1)) + 1))
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    if len(starts):
        sums = np.add.reduceat(weights[:, order], starts, axis=1)
    middles = np.cumsum(sums, axis=1) - sums / 2
    return np.asarray(middles[:, group])


def own_metric(
    metric: Metric, targets: NDArray[Any], predictions: NDArray[Any], weights: Iterator[Weights]
) -> FloatArray:
    """Return a metric of your own under bootstrap weights, whose rows are then repeated."""
    values = []
    for block in weights:
        for counts in block.astype(np.int64):
            rows = np.repeat(np.arange(len(targets)), counts)
            values.append([float(metric(targets[rows], guess[rows])) for guess in predictions])
    return np.asarray(np.mean(values, axis=1)) if values else np.empty(0)


def utility(task: str, targets: NDArray[Any], predictions: NDArray[Any]) -> NDArray[np.float32]:
    """Return what paired tests compare, (S, N): larger is better.

    A right class is 1, labels count by the share of the known ones that are right, numbers by
    minus the mean absolute error.
    """
    if task == "multiclass":
        return np.asarray(predictions == targets, dtype=np.float32)
    known = ~np.isnan(targets) & ((targets >= 0) | (task == "regression"))
    y = np.where(known, targets, 0)
    if task == "multilabel":
        values = (predictions == (y > 0.5)).astype(np.float64)
    else:
        values = -np.abs(predictions - y).astype(np.float64)
    count = np.maximum(known.sum(-1), 1)
    return np.asarray(np.where(known, values, 0.0).sum(-1) / count, dtype=np.float32)


def constant_predictions(task: str, targets: FloatArray) -> FloatArray:
    """Return the best constant (C,): the share of samples with each label, or the mean number."""
    known = ~np.isnan(targets) & ((targets >= 0) | (task == "regression"))
    sums = np.where(known, targets, 0).sum(0, dtype=np.float64)
    return _ratio(sums, known.sum(0).astype(np.float64))


def _sums(weights: Weights, columns: NDArray[np.bool_]) -> FloatArray:
    return weights.astype(np.float64) @ columns


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    nothing = np.full_like(above, np.nan, dtype=np.float64)
    return np.asarray(np.divide(above, below, out=nothing, where=below > 0))


def _mean_defined(columns: FloatArray) -> FloatArray:
    """Return the mean over the defined columns, (R, C) -> (R,)."""
    defined = ~np.isnan(columns)
    return _ratio(np.where(defined, columns, 0).sum(1), defined.sum(1).astype(np.float64))
