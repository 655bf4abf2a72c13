"""The results of one condition: answers sample by sample, and the scores made from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustfusion.disruption import Disruption
from robustfusion.evaluation import metrics
from robustfusion.evaluation import statistics as stats
from robustfusion.evaluation.statistics import UNKNOWN, Estimate, FloatArray, Weights

ARRAYS = ("predictions", "confidence", "log_likelihood", "p_values", "counts")
OPTIONAL = ("probabilities", "half_widths")  # arrays of some tasks
BOOTSTRAPPED = ("accuracy", "macro_f1", "weighted_f1", "ece", "nll")


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a model under one condition, sample by sample.

    ``report.answers[key]`` of a :class:`~robustfusion.evaluation.RobustnessReport`.

    Args:
        condition: The condition.
        seeds: The S disruption seeds; only the first where seeds do not matter.
        predictions: Classes, int16 (S, N), or labels, int8 (S, N, C); -1 where the logits were not
            finite. Or numbers, float32 (S, N, C); NaN where they were not finite.
        confidence: Probability of the predicted class, float16 (S, N); NaN for other tasks.
        log_likelihood: Log-probability of the true class, float16 (S, N); NaN for other tasks.
        p_values: P-values of each modality, float16 (S, N, M); NaN where it was not available or
            the model has none.
        counts: How many inputs were corrupted and how many missing, int64 (S, M, 2).
        weights: Mean fusion weight of each candidate, or None for a model without weights.
        probabilities: Of classes or labels, float32 (S, N, C); None for numbers.
        half_widths: Half the width of the interval of each number, float32 (S, N, C); None for
            other tasks, NaN for a model without intervals.
    """

    condition: Disruption
    seeds: tuple[int, ...]
    predictions: NDArray[Any]
    confidence: NDArray[np.float16]
    log_likelihood: NDArray[np.float16]
    p_values: NDArray[np.float16]
    counts: NDArray[np.int64]
    weights: tuple[float, ...] | None
    probabilities: NDArray[np.float32] | None = None
    half_widths: NDArray[np.float32] | None = None

    def not_finite(self) -> NDArray[np.bool_]:
        """Return where the model gave no finite answer, (S, N)."""
        answers = self.predictions
        wrong = answers < 0 if answers.dtype.kind == "i" else np.isnan(answers)
        return np.asarray(wrong if wrong.ndim == 2 else wrong.any(-1))


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a model under one condition: means over the seeds, with intervals.

    ``report[key]`` of a :class:`~robustfusion.evaluation.RobustnessReport`; see the example there.
    A score that the task does not have is NaN.

    Args:
        condition: The condition.
        metrics: All metrics of the task by name. For classes: ``accuracy``, the share of right
            predictions; ``macro_f1``, the mean F1 of the classes, and ``weighted_f1``, weighted by
            their size; ``auroc``, of each class against the rest, mean over the classes, without
            interval; ``ece``, the expected calibration error with 15 bins; ``nll``, the mean of
            minus the log-probability of the true class. For labels: ``mean_average_precision``
            over the labels, ``micro_f1``, ``macro_f1``, and ``accuracy``, the share of right
            labels. For numbers, means over these: ``mae``, the mean absolute error; ``r2``;
            ``spearman``, the rank correlation; ``coverage``, the share within the intervals.
        drop: The main metric when clean minus that under this condition. It is the accuracy, the
            mean average precision, or R².
        alarms: By modality, the share of its samples with a p-value of at most the report's
            ``alarm_rate``; empty for a model without p-values.
        aurc: Area under the risk-coverage curve: error among the most confident share of the
            samples, mean over all shares.
        seed_std: Standard deviation of the main metric over the seeds; NaN for one seed.

    Reference:
        Calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Area
        under the risk-coverage curve: Geifman et al., "Bias-Reduced Uncertainty Estimation for
        Deep Neural Classifiers", ICLR 2019.
    """

    condition: Disruption
    metrics: Mapping[str, Estimate]
    drop: Estimate
    alarms: Mapping[str, Estimate]
    aurc: float
    seed_std: float

    @property
    def accuracy(self) -> Estimate:
        """Share of right predictions."""
        return self.metrics.get("accuracy", UNKNOWN)

    @property
    def macro_f1(self) -> Estimate:
        """Mean F1 of the classes or labels."""
        return self.metrics.get("macro_f1", UNKNOWN)

    @property
    def weighted_f1(self) -> Estimate:
        """Mean F1 of the classes, weighted by their size."""
        return self.metrics.get("weighted_f1", UNKNOWN)

    @property
    def ece(self) -> Estimate:
        """Expected calibration error."""
        return self.metrics.get("ece", UNKNOWN)

    @property
    def nll(self) -> Estimate:
        """Negative log-likelihood."""
        return self.metrics.get("nll", UNKNOWN)


class Quality(NamedTuple):
    """The quality scores of one modality: do they separate clean from corrupted inputs?

    ``report.quality[modality]`` of a :class:`~robustfusion.evaluation.RobustnessReport`.

    Args:
        clean: Log-quality of each sample, (N,); NaN where the modality was not observed.
        corrupted: The same with the modality corrupted in every sample, (S, N).
        auroc: Probability that a clean sample scores above a corrupted one; 0.5 is chance.
        class_means: Mean score of each class, ``{class: (clean, corrupted)}``. If the clean means
            are far apart, the score depends on the class and not only on the quality.
    """

    clean: NDArray[np.float32]
    corrupted: NDArray[np.float32]
    auroc: Estimate = UNKNOWN
    class_means: Mapping[str, tuple[float, float]] = {}


class Recovered(NamedTuple):
    """True features of one modality and those recovered from another, on common axes.

    Args:
        true: Coordinates (n, p) of the target's own features on their principal axes.
        recovered: Coordinates (n, p) of the features recovered from the source.
        explained: Share of the variance on each axis, (p,).
        labels: Classes of the n samples; zeros for other tasks.
    """

    true: NDArray[np.float32]
    recovered: NDArray[np.float32]
    explained: NDArray[np.float32]
    labels: NDArray[np.int16]


class Majority(NamedTuple):
    """The scores of always predicting the most frequent class.

    ``report.majority`` of a :class:`~robustfusion.evaluation.RobustnessReport`.
    """

    name: str
    accuracy: float
    macro_f1: float
    weighted_f1: float


class Fingerprint(NamedTuple):
    """Digests that show whether two reports may be compared.

    Args:
        samples: Digest of the ids and the labels, in their order.
        disruptions: Digest of which input is disrupted how, in every condition and seed.
        inputs: Digest of the values that the model received.
    """

    samples: str
    disruptions: str
    inputs: str


class Intervals(NamedTuple):
    """Options of the scores: level of the intervals, bootstrap, rate of the alarms."""

    level: float = 0.95
    replicates: int = 1000
    seed: int = 0
    alarm_rate: float = 0.05


def rate_curve(conditions: Sequence[Disruption], setting: str) -> list[tuple[float, str]]:
    """Return the points ``(rate, key)`` of a modality-random curve, clean at rate 0, ascending."""
    return sorted(
        (c.rate, c.key)
        for c in conditions
        if c.strategy in ("clean", "random")
        and c.setting in (None, setting)
        and isinstance(c.rate, int | float)
    )


def bootstrapped_scores(
    answers: Answers, labels: NDArray[np.int64], classes: int, weights: Weights, alarm_rate: float
) -> dict[str, FloatArray]:
    """Return every score (R,) under bootstrap weights (R, N), each a mean over the seeds."""
    is_right = answers.predictions == labels
    confidence = answers.confidence.astype(np.float64)
    ece = stats.calibration_error(is_right, confidence, weights=weights)
    nll = stats.weighted_mean(-answers.log_likelihood.astype(np.float32), weights)
    f1 = stats.classification_scores(labels, answers.predictions, classes, weights)
    scores = dict(zip(BOOTSTRAPPED, (*f1, ece, nll), strict=True))
    scores |= alarm_rates(answers, weights, alarm_rate)
    return {name: values.mean(1) for name, values in scores.items()}


def target_scores(
    task: str, targets: FloatArray, answers: Answers, weights: Weights, alarm_rate: float
) -> dict[str, FloatArray]:
    """Return the scores (R,) of labels or numbers (N, C), each a mean over the seeds."""
    each: dict[str, list[FloatArray]] = {}
    for index, predictions in enumerate(answers.predictions):
        if task == "multilabel":
            assert answers.probabilities is not None
            got = metrics.label_metrics(
                targets, predictions, answers.probabilities[index], weights
            )
        else:
            assert answers.half_widths is not None
            got = metrics.number_metrics(targets, predictions, answers.half_widths[index], weights)
        for name, values in got.items():
            each.setdefault(name, []).append(values)
    alarms = alarm_rates(answers, weights, alarm_rate)
    scores = {name: np.asarray(np.mean(values, axis=0)) for name, values in each.items()}
    return scores | {name: values.mean(1) for name, values in alarms.items()}


def alarm_rates(answers: Answers, weights: Weights, alarm_rate: float) -> dict[str, FloatArray]:
    """Return the share of alarms (R, S) of each modality that has p-values."""
    scores = {}
    for column in np.flatnonzero(~np.isnan(answers.p_values).all((0, 1))):
        p = answers.p_values[..., column].astype(np.float32)
        alarm = (p <= alarm_rate).astype(np.float32)
        scores[f"alarm {column}"] = stats.weighted_mean(alarm, weights, ~np.isnan(p))
    return scores


def aurocs(quality: Quality, weights: Weights) -> FloatArray:
    """Return the AUROC (R,) over the samples with the modality, a mean over the seeds."""
    seen = ~np.isnan(quality.clean)
    clean = quality.clean[seen].astype(np.float64)
    columns = [
        stats.separation_auroc(clean, corrupted[seen].astype(np.float64), weights[:, seen])
        for corrupted in quality.corrupted
    ]
    return np.asarray(np.mean(columns, axis=0)) if columns else np.full(len(weights), np.nan)


def mean_qualities(quality: Quality, rows: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the mean finite score of some samples, clean and corrupted."""
    rows = rows & ~np.isnan(quality.clean)
    finite = [x[np.isfinite(x)] for x in (quality.clean[rows], quality.corrupted[:, rows])]
    clean, corrupted = (x.mean(dtype=np.float64) if x.size else np.nan for x in finite)
    return float(clean), float(corrupted)
