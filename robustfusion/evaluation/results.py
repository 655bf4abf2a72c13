"""What a report holds, condition by condition, and the scores made from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustfusion.disruption import Condition
from robustfusion.evaluation.statistics import (
    UNKNOWN,
    Estimate,
    FloatArray,
    bootstrap_weights,
    calibration_error,
    classification_scores,
    estimate,
    risk_coverage,
    separation_auroc,
    weighted_mean,
)


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

    ``report[key]`` of a :class:`~robustfusion.evaluation.RobustnessReport`; see the example
    there.

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


class Summary(NamedTuple):
    """The scores of a report: what `summarize` makes from what was measured."""

    cells: dict[str, Cell]
    quality: dict[str, Quality]
    area: dict[str, Estimate]
    corruption_premium: dict[str, Estimate]
    majority: Majority


def rate_curve(conditions: Sequence[Condition], setting: str) -> list[tuple[float, str]]:
    """The points ``(rate, key)`` of a modality-random curve, clean at rate 0, ascending."""
    return sorted(
        (c.rate, c.key)
        for c in conditions
        if c.strategy in ("clean", "random")
        and c.setting in (None, setting)
        and not isinstance(c.rate, tuple)
    )


def _area(points: list[tuple[float, str]], accuracy: Mapping[str, FloatArray]) -> FloatArray:
    """Mean accuracy over the rates: the trapezoid area divided by the range of the rates."""
    rates = np.asarray([rate for rate, _ in points])
    values = np.stack([accuracy[key] for _, key in points])
    steps = np.diff(rates)
    return np.asarray((values[:-1] + values[1:]).T @ steps / (2 * steps.sum()))


class Intervals(NamedTuple):
    """How scores are made: level of the intervals, bootstrap, rate of the alarms."""

    level: float = 0.95
    replicates: int = 1000
    seed: int = 0
    alarm_rate: float = 0.05


def summarize(
    measured: Sequence[Cell],
    quality: Mapping[str, Quality],
    labels: NDArray[np.int16],
    names: tuple[Sequence[str], Sequence[str]],
    options: Intervals,
) -> Summary:
    """All scores with their intervals, from one set of bootstrap draws.

    Args:
        measured: The conditions, without scores; the first must be the clean one.
        quality: By modality, where the model gives scores.
        labels: True classes.
        names: Of the modalities, and of the classes.
        options: Level, replicates, seed and alarm rate.
    """
    modalities, class_names = names
    true = labels.astype(np.int64)
    # Row 0 of every array is the plain value, the rest are replicates: one pass for both.
    parts: dict[str, list[dict[str, FloatArray]]] = {c.condition.key: [] for c in measured}
    auroc: dict[str, list[FloatArray]] = {name: [] for name in quality}
    once = np.ones((1, len(labels)), dtype=np.float32)
    for weights in chain([once], bootstrap_weights(len(true), options.replicates, options.seed)):
        for cell in measured:
            scores = _scores(cell, true, len(class_names), weights, options.alarm_rate)
            parts[cell.condition.key].append(scores)
        for name, scored in quality.items():
            auroc[name].append(_auroc(scored, weights))
    joined = {
        key: {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        for key, found in parts.items()
    }
    accuracy = {key: found["accuracy"] for key, found in joined.items()}

    def interval(values: FloatArray) -> Estimate:
        return estimate(values[0], values[1:], options.level)

    cells = {}
    for cell in measured:
        key, right = cell.condition.key, cell.predictions == true
        by_seed = right.mean(1)
        found = joined[key]
        made: dict[str, Any] = {name: interval(found[name]) for name in _SCORES}
        alarms = {m: interval(found[f"alarm {k}"]) for k, m in enumerate(modalities)}
        cells[key] = replace(
            cell,
            **made,
            drop=interval(accuracy["clean"] - accuracy[key]),
            alarms={m: rate for m, rate in alarms.items() if not np.isnan(rate.value)},
            aurc=float(risk_coverage(right, cell.confidence)[1].mean()),
            spread=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
        )
    conditions = [c.condition for c in measured]
    settings = dict.fromkeys(c.setting for c in conditions if c.strategy == "random")
    premiums = {}
    for c in conditions:
        twin = c._replace(setting="C").key
        if c.setting == "D" and twin in accuracy:
            premiums[c.place] = interval(accuracy[c.key] - accuracy[twin])
    return Summary(
        cells=cells,
        quality={
            name: scored._replace(
                auroc=interval(np.concatenate(auroc[name])),
                class_means=_class_means(scored, true, class_names),
            )
            for name, scored in quality.items()
        },
        area={str(s): interval(_area(rate_curve(conditions, str(s)), accuracy)) for s in settings},
        corruption_premium=premiums,
        majority=_majority(true, class_names),
    )


_SCORES = ("accuracy", "macro_f1", "weighted_f1", "ece", "nll")


def _scores(
    cell: Cell,
    labels: NDArray[np.int64],
    classes: int,
    weights: NDArray[np.float32],
    alarm_rate: float,
) -> dict[str, FloatArray]:
    """Every score of a cell, (R,): means over the seeds."""
    scores = classification_scores(labels, cell.predictions, classes, weights)
    right = cell.predictions == labels
    ece = calibration_error(right, cell.confidence.astype(np.float64), weights=weights)
    nll = weighted_mean(-cell.log_likelihood.astype(np.float32), weights)
    made = dict(zip(_SCORES, (*scores, ece, nll), strict=True))
    for column in range(cell.p_values.shape[2]):
        p = cell.p_values[..., column].astype(np.float32)
        seen = ~np.isnan(p)
        alarm = np.full((len(weights), len(p)), np.nan)
        if seen.any():
            alarm = weighted_mean((p <= alarm_rate).astype(np.float32), weights, seen)
        made[f"alarm {column}"] = alarm
    return {name: values.mean(1) for name, values in made.items()}


def _auroc(scored: Quality, weights: NDArray[np.float32]) -> FloatArray:
    """Mean over the seeds, over the rows whose modality was observed."""
    seen = ~np.isnan(scored.clean)
    clean = scored.clean[seen].astype(np.float64)
    columns = [
        separation_auroc(clean, corrupted[seen].astype(np.float64), weights[:, seen])
        for corrupted in scored.corrupted
    ]
    return np.asarray(np.mean(columns, axis=0)) if columns else np.full(len(weights), np.nan)


def _class_means(
    scored: Quality, labels: NDArray[np.int64], names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    means = {}
    for index, name in enumerate(names):
        rows = (labels == index) & ~np.isnan(scored.clean)
        means[name] = (_finite_mean(scored.clean[rows]), _finite_mean(scored.corrupted[:, rows]))
    return means


def _finite_mean(values: NDArray[np.float32]) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean(dtype=np.float64)) if kept.size else float("nan")


def _majority(labels: NDArray[np.int64], names: Sequence[str]) -> Majority:
    winner = int(np.bincount(labels, minlength=len(names)).argmax())
    guess = np.full((1, len(labels)), winner)
    scores = classification_scores(labels, guess, len(names))
    return Majority(names[winner], *(float(s[0, 0]) for s in scores))
