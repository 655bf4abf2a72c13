"""What a report holds, condition by condition, and the scores made from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustfusion.disruption import Condition
from robustfusion.evaluation import statistics as stats
from robustfusion.evaluation.statistics import UNKNOWN, Estimate, FloatArray, Weights

CELL = ("predictions", "confidence", "log_likelihood", "p_values", "counts")
SCORES = ("accuracy", "macro_f1", "weighted_f1", "ece", "nll")


@dataclass(frozen=True, eq=False)
class Cell:
    """One condition: what the model said sample by sample, and the scores made from it.

    A score is the mean over the S disruption seeds, with its bootstrap interval.

    Args:
        condition: Which one.
        seeds: The disruption seeds; the first alone where seeds do not matter.
        predictions: Classes, int16 (S, N); -1 where the logits were not finite.
        confidence: Probability of the predicted class, float16 (S, N).
        log_likelihood: Log-probability of the true class, float16 (S, N).
        p_values: Of each modality, float16 (S, N, M); NaN where not available, or none were given.
        counts: Rows corrupted and rows discarded, int64 (S, M, 2), as realized.
        weights: Mean fusion weight of each candidate, or None for a model without weights.
        accuracy: Share of right predictions.
        macro_f1: Mean F1 of the classes.
        weighted_f1: Mean F1 of the classes, weighted by their size.
        drop: Accuracy when clean minus accuracy here.
        ece: Expected calibration error, 15 bins.
        nll: Negative log-likelihood: mean of minus ``log_likelihood``.
        alarms: By modality, the share of its rows with a p-value of at most the report's
            ``alarm_rate``; empty for a model without p-values.
        aurc: Area under the risk-coverage curve: error among the most confident share of the
            samples, mean over all shares.
        spread: Standard deviation of the accuracy over the seeds; NaN for one seed.

    ``report[key]`` of a :class:`~robustfusion.evaluation.RobustnessReport`; see the example there.

    Reference:
        Calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Area
        under the risk-coverage curve: Geifman et al., "Bias-Reduced Uncertainty Estimation for
        Deep Neural Classifiers", ICLR 2019.
    """

    condition: Condition
    seeds: tuple[int, ...]
    predictions: NDArray[np.int16]
    confidence: NDArray[np.float16]
    log_likelihood: NDArray[np.float16]
    p_values: NDArray[np.float16]
    counts: NDArray[np.int64]
    weights: tuple[float, ...] | None
    accuracy: Estimate = UNKNOWN
    macro_f1: Estimate = UNKNOWN
    weighted_f1: Estimate = UNKNOWN
    drop: Estimate = UNKNOWN
    ece: Estimate = UNKNOWN
    nll: Estimate = UNKNOWN
    alarms: Mapping[str, Estimate] = field(default_factory=dict)
    aurc: float = float("nan")
    spread: float = float("nan")


class Quality(NamedTuple):
    """How well the quality score of one modality tells clean from corrupted.

    Args:
        clean: Log-quality of each sample, (N,); NaN where the modality was not observed.
        corrupted: The same with the modality corrupted throughout, (S, N).
        auroc: Probability that a clean sample scores above a corrupted one; 0.5 is chance.
        class_means: Mean score of each class, ``{class: (clean, corrupted)}``. Clean
            means far apart say that the score judges the class, not the quality.

    ``report.quality[modality]`` of a :class:`~robustfusion.evaluation.RobustnessReport`.
    """

    clean: NDArray[np.float32]
    corrupted: NDArray[np.float32]
    auroc: Estimate = UNKNOWN
    class_means: Mapping[str, tuple[float, float]] = {}


class Recovered(NamedTuple):
    """True and recovered features of one direction on their common principal axes.

    Args:
        true: Coordinates (n, p) of the target's own features.
        recovered: Coordinates (n, p) of what was recovered from the source.
        explained: Share of the variance on each axis, (p,).
        labels: Classes of the n samples.
    """

    true: NDArray[np.float32]
    recovered: NDArray[np.float32]
    explained: NDArray[np.float32]
    labels: NDArray[np.int16]


class Majority(NamedTuple):
    """The scores of always answering with the most frequent class.

    ``report.majority`` of a :class:`~robustfusion.evaluation.RobustnessReport`.
    """

    name: str
    accuracy: float
    macro_f1: float
    weighted_f1: float


class Fingerprint(NamedTuple):
    """Digests that say whether two reports may be compared.

    Args:
        samples: Of the ids and the labels, in their order.
        disruptions: Of which row is disrupted how, in every condition and seed.
        inputs: Of the values the model was given.
    """

    samples: str
    disruptions: str
    inputs: str


class Intervals(NamedTuple):
    """How scores are made: level of the intervals, bootstrap, rate of the alarms."""

    level: float = 0.95
    replicates: int = 1000
    seed: int = 0
    alarm_rate: float = 0.05


def rate_curve(conditions: Sequence[Condition], setting: str) -> list[tuple[float, str]]:
    """The points ``(rate, key)`` of a modality-random curve, clean at rate 0, ascending."""
    return sorted(
        (c.rate, c.key)
        for c in conditions
        if c.strategy in ("clean", "random")
        and c.setting in (None, setting)
        and not isinstance(c.rate, tuple)
    )


def cell_scores(
    cell: Cell, labels: NDArray[np.int64], classes: int, weights: Weights, alarm_rate: float
) -> dict[str, FloatArray]:
    """Every score of a cell, (R,), under bootstrap weights (R, N): means over the seeds."""
    right = cell.predictions == labels
    ece = stats.calibration_error(right, cell.confidence.astype(np.float64), weights=weights)
    nll = stats.weighted_mean(-cell.log_likelihood.astype(np.float32), weights)
    f1 = stats.classification_scores(labels, cell.predictions, classes, weights)
    made = dict(zip(SCORES, (*f1, ece, nll), strict=True))
    for column in np.flatnonzero(~np.isnan(cell.p_values).all((0, 1))):
        p = cell.p_values[..., column].astype(np.float32)
        alarm = (p <= alarm_rate).astype(np.float32)
        made[f"alarm {column}"] = stats.weighted_mean(alarm, weights, ~np.isnan(p))
    return {name: values.mean(1) for name, values in made.items()}


def aurocs(scored: Quality, weights: Weights) -> FloatArray:
    """The AUROC, (R,), over the rows whose modality was observed: mean over the seeds."""
    seen = ~np.isnan(scored.clean)
    clean = scored.clean[seen].astype(np.float64)
    columns = [
        stats.separation_auroc(clean, corrupted[seen].astype(np.float64), weights[:, seen])
        for corrupted in scored.corrupted
    ]
    return np.asarray(np.mean(columns, axis=0)) if columns else np.full(len(weights), np.nan)


def mean_qualities(scored: Quality, rows: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean finite score of some rows, clean and corrupted."""
    rows = rows & ~np.isnan(scored.clean)
    kept = [x[np.isfinite(x)] for x in (scored.clean[rows], scored.corrupted[:, rows])]
    clean, corrupted = (x.mean(dtype=np.float64) if x.size else np.nan for x in kept)
    return float(clean), float(corrupted)
