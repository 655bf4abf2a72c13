"""What the grid produced: per-sample results of each condition and the scores made from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustfusion.evaluation.grid import Condition
from robustfusion.evaluation.statistics import (
    Estimate,
    FloatArray,
    bootstrap_weights,
    calibration_error,
    classification_scores,
    estimate,
    separation_auroc,
)

_SCORES = ("accuracy", "macro_f1", "weighted_f1")


class CellSamples(NamedTuple):
    """What a model said in one condition, sample by sample.

    Args:
        condition: which one.
        seeds: the disruption seeds, S of them; the first alone where seeds do not matter.
        predictions: classes, int16 `(S, N)`; -1 where the logits were not finite.
        confidence: probability of the predicted class, float16 `(S, N)`.
        counts: rows corrupted and rows discarded, int64 `(S, M, 2)`, as realised.
        weights: mean fusion weight of each candidate, or None for a model without weights.

    ``report[key].samples`` of a :class:`~robustfusion.evaluation.RobustnessReport`.
    """

    condition: Condition
    seeds: tuple[int, ...]
    predictions: NDArray[np.int16]
    confidence: NDArray[np.float16]
    counts: NDArray[np.int64]
    weights: tuple[float, ...] | None


class Cell(NamedTuple):
    """The scores of one condition, each the mean over the seeds with its bootstrap interval.

    Args:
        samples: the per-sample results they were made from.
        accuracy: share of right predictions.
        macro_f1: mean F1 of the classes.
        weighted_f1: mean F1 of the classes, weighted by their size.
        drop: accuracy when clean minus accuracy here.
        ece: expected calibration error, 15 bins.
        spread: standard deviation of the accuracy over the seeds; NaN for one seed.

    ``report[key]`` of a :class:`~robustfusion.evaluation.RobustnessReport`; see the example
    there.

    Reference:
        Calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """

    samples: CellSamples
    accuracy: Estimate
    macro_f1: Estimate
    weighted_f1: Estimate
    drop: Estimate
    ece: Estimate
    spread: float


class QualitySamples(NamedTuple):
    """Quality scores of one modality: `clean` `(N,)`, `corrupted` `(S, N)`; NaN: not observed.

    ``samples`` of a :class:`Quality`.
    """

    clean: NDArray[np.float32]
    corrupted: NDArray[np.float32]


class Quality(NamedTuple):
    """How well the quality score of one modality tells clean from corrupted.

    Args:
        samples: the scores.
        auroc: probability that a clean sample scores above a corrupted one; 0.5 is chance.
        class_means: mean score of each class, clean and corrupted, `{class: (clean, corrupted)}`.
            Clean means far apart say that the score judges the class, not the quality.

    ``report.quality[modality]`` of a :class:`~robustfusion.evaluation.RobustnessReport`.
    """

    samples: QualitySamples
    auroc: Estimate
    class_means: dict[str, tuple[float, float]]


class Recovered(NamedTuple):
    """True and recovered features of one direction on their common principal axes.

    Args:
        true: `(n, p)` coordinates of the target's own features.
        recovered: `(n, p)` coordinates of what was recovered from the source.
        explained: share of the variance on each axis, `(p,)`.
        labels: classes of the n samples.
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


@dataclass(frozen=True)
class Fingerprint:
    """Digests that say whether two reports may be compared.

    Args:
        samples: of the ids and the labels, in their order.
        disruptions: of which row is disrupted how, in every condition and seed.
        inputs: of the values the model was given, "" where they were not hashed.
    """

    samples: str
    disruptions: str
    inputs: str


@dataclass(frozen=True)
class Summary:
    """The scores of a report: what `summarise` makes from per-sample results."""

    cells: dict[str, Cell]
    qualities: dict[str, Quality]
    areas: dict[str, Estimate]
    premiums: dict[str, Estimate]
    majority: Majority


@dataclass(frozen=True)
class Context:
    """What was measured, on what, and how: the report's head.

    Args:
        name: of the model.
        modalities: their names, M.
        class_names: C.
        candidates: names of the K fusion candidates, in the order of `weights`.
        labels: true classes, int16 `(N,)`.
        seeds: the disruption seeds.
        level: of the confidence intervals.
        replicates: bootstrap replicates.
        bootstrap_seed: their seed.
        fingerprint: of the data.
        record: whatever the caller wants kept: command, commit, machine.
    """

    name: str
    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    candidates: tuple[str, ...]
    labels: NDArray[np.int16]
    seeds: tuple[int, ...]
    level: float
    replicates: int
    bootstrap_seed: int
    fingerprint: Fingerprint
    record: Mapping[str, Any] = field(default_factory=dict)


def rate_curve(cells: Sequence[Condition], setting: str) -> list[tuple[float, str]]:
    """The points `(rate, cell key)` of a modality-random curve, clean at rate 0, ascending."""
    points = [(0.0, c.key) for c in cells if c.strategy == "clean"]
    points += [(c.rate, c.key) for c in cells if c.strategy == "random" and c.setting == setting]
    return sorted(points)


def _area(points: list[tuple[float, str]], accuracy: Mapping[str, FloatArray]) -> FloatArray:
    """Mean accuracy over the rates: the trapezoid area divided by the range of the rates."""
    rates = np.asarray([rate for rate, _ in points])
    values = np.stack([accuracy[key] for _, key in points])
    steps = np.diff(rates)
    return np.asarray((values[:-1] + values[1:]).T @ steps / (2 * steps.sum()))


def summarise(
    context: Context,
    samples: Sequence[CellSamples],
    qualities: Mapping[str, QualitySamples],
) -> Summary:
    """All scores with their intervals, from one set of bootstrap draws.

    Args:
        context: labels, level, replicates and seed.
        samples: the conditions; the first must be the clean one.
        qualities: by modality, where the model gives scores.

    Returns:
        the scores.
    """
    conditions = [s.condition for s in samples]
    labels = context.labels.astype(np.int64)
    classes = len(context.class_names)
    # Row 0 of every array is the plain value, the rest are replicates: one pass for both.
    once = np.ones((1, len(labels)), dtype=np.float32)
    metrics: dict[str, dict[str, list[FloatArray]]] = {
        m: {c.key: [] for c in conditions} for m in (*_SCORES, "ece")
    }
    auroc: dict[str, list[FloatArray]] = {name: [] for name in qualities}
    draws = bootstrap_weights(len(labels), context.replicates, context.bootstrap_seed)
    for weights in chain([once], draws):
        for cell in samples:
            key = cell.condition.key
            scores = classification_scores(labels, cell.predictions, classes, weights)
            for name, values in zip(_SCORES, scores, strict=True):
                metrics[name][key].append(values.mean(1))
            right = cell.predictions == labels
            sure = cell.confidence.astype(np.float64)
            ece = calibration_error(right, sure, weights=weights)
            metrics["ece"][key].append(ece.mean(1))
        for name, scored in qualities.items():
            auroc[name].append(_quality_auroc(scored, weights))
    joined = {m: {k: np.concatenate(v) for k, v in by.items()} for m, by in metrics.items()}
    accuracy = joined["accuracy"]

    def interval(values: FloatArray) -> Estimate:
        return estimate(values[0], values[1:], context.level)

    cells = {}
    for cell in samples:
        key = cell.condition.key
        by_seed = (cell.predictions == labels).mean(1)
        cells[key] = Cell(
            samples=cell,
            accuracy=interval(accuracy[key]),
            macro_f1=interval(joined["macro_f1"][key]),
            weighted_f1=interval(joined["weighted_f1"][key]),
            drop=interval(accuracy["clean"] - accuracy[key]),
            ece=interval(joined["ece"][key]),
            spread=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
        )
    areas = {}
    for setting in dict.fromkeys(c.setting for c in conditions if c.strategy == "random"):
        points = rate_curve(conditions, str(setting))
        areas[str(setting)] = interval(_area(points, accuracy))
    premiums = {}
    for c in conditions:
        twin = c._replace(setting="C").key
        if c.setting == "D" and twin in accuracy:
            premiums[c.place] = interval(accuracy[c.key] - accuracy[twin])
    return Summary(
        cells=cells,
        qualities={
            name: Quality(
                scored,
                interval(np.concatenate(auroc[name])),
                _class_means(scored, labels, context.class_names),
            )
            for name, scored in qualities.items()
        },
        areas=areas,
        premiums=premiums,
        majority=_majority(labels, context.class_names),
    )


def _quality_auroc(scored: QualitySamples, weights: NDArray[np.float32]) -> FloatArray:
    """Mean over the seeds, over the rows whose modality was observed."""
    seen = ~np.isnan(scored.clean)
    clean = scored.clean[seen].astype(np.float64)
    columns = [
        separation_auroc(clean, corrupted[seen].astype(np.float64), weights[:, seen])
        for corrupted in scored.corrupted
    ]
    return np.asarray(np.mean(columns, axis=0)) if columns else np.full(len(weights), np.nan)


def _class_means(
    scored: QualitySamples, labels: NDArray[np.int64], names: Sequence[str]
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
