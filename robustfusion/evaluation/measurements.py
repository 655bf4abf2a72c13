"""The answers of a model under all conditions, and the scores with bootstrap intervals."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfusion.evaluation import metrics, results
from robustfusion.evaluation import statistics as stats
from robustfusion.evaluation.metrics import Metric
from robustfusion.evaluation.results import (
    Answers,
    Fingerprint,
    Intervals,
    Majority,
    Quality,
    Recovered,
    Scores,
)
from robustfusion.evaluation.statistics import Estimate, FloatArray


@dataclass(frozen=True, eq=False)
class Measurements:
    """The data of a report, and the scores that are made from them when they are asked for."""

    name: str
    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    candidates: tuple[str, ...]
    labels: NDArray[Any]
    seeds: tuple[int, ...]
    fingerprint: Fingerprint
    answers: Mapping[str, Answers]
    log_quality: Mapping[str, Quality] = field(default_factory=dict)
    recovered: Mapping[tuple[str, str], Recovered] = field(default_factory=dict)
    intervals: Intervals = field(default_factory=Intervals)
    record: Mapping[str, Any] = field(default_factory=dict)
    task: str = "multiclass"

    @property
    def main_metric(self) -> str:
        """The metric of the drop, the curves and the premium."""
        return metrics.MAIN[self.task]

    @cached_property
    def _replicates(self) -> dict[tuple[str, str], FloatArray]:
        """Every score by (condition or modality, name): the value, then its replicates."""
        options, is_class = self.intervals, self.task == "multiclass"
        labels: NDArray[Any] = self.labels.astype(np.int64 if is_class else np.float64)
        parts: dict[tuple[str, str], list[FloatArray]] = {}
        original = np.ones((1, len(labels)), dtype=np.float32)
        drawn = stats.bootstrap_weights(len(labels), options.replicates, options.seed)
        for weights in chain([original], drawn):
            for key, answers in self.answers.items():
                if is_class:
                    scores = results.bootstrapped_scores(
                        answers, labels, len(self.class_names), weights, options.alarm_rate
                    )
                else:
                    scores = results.target_scores(
                        self.task, labels, answers, weights, options.alarm_rate
                    )
                for name, values in scores.items():
                    parts.setdefault((key, name), []).append(values)
            for name, quality in self.log_quality.items():
                parts.setdefault((name, "auroc"), []).append(results.aurocs(quality, weights))
        return {key: np.concatenate(values) for key, values in parts.items()}

    def _interval(self, values: FloatArray) -> Estimate:
        return stats.estimate(values[0], values[1:], self.intervals.level)

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """The scores of each condition by its key, clean first."""
        scores, replicates = {}, self._replicates
        for key, answers in self.answers.items():
            alarms = {
                name: self._interval(replicates[key, f"alarm {column}"])
                for column, name in enumerate(self.modalities)
                if (key, f"alarm {column}") in replicates
            }
            estimates = {
                name: self._interval(values)
                for (where, name), values in replicates.items()
                if where == key and not name.startswith("alarm ")
            }
            main = (replicates[where, self.main_metric] for where in ("clean", key))
            by_seed, aurc = self._by_seed(answers), float("nan")
            if self.task == "multiclass":
                estimates["auroc"] = Estimate(self._auroc(answers), float("nan"), float("nan"))
                is_right = answers.predictions == self.labels
                aurc = float(stats.risk_coverage(is_right, answers.confidence)[1].mean())
            scores[key] = Scores(
                condition=answers.condition,
                metrics=estimates,
                drop=self._interval(next(main) - next(main)),
                alarms={name: rate for name, rate in alarms.items() if not np.isnan(rate.value)},
                aurc=aurc,
                seed_std=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
            )
        return scores

    def _by_seed(self, answers: Answers) -> FloatArray:
        """Return the main metric (S,) under each seed."""
        if self.task == "multiclass":
            return np.asarray((answers.predictions == self.labels).mean(1))
        once = np.ones((1, len(self.labels)), dtype=np.float32)
        parts = [
            dataclasses.replace(
                answers,
                **{
                    name: getattr(answers, name)[k : k + 1]
                    for name in (*results.ARRAYS, *results.OPTIONAL)
                    if getattr(answers, name) is not None
                },
            )
            for k in range(len(answers.seeds))
        ]
        targets = self.labels.astype(np.float64)
        scores = [results.target_scores(self.task, targets, part, once, 0.0) for part in parts]
        return np.asarray([float(score[self.main_metric][0]) for score in scores])

    def _auroc(self, answers: Answers) -> float:
        """Return the AUROC of the classes; NaN for a report that holds no probabilities."""
        if answers.probabilities is None:
            return float("nan")
        once = np.ones((1, len(self.labels)), dtype=np.float32)
        each = [metrics.class_auroc(self.labels, p, once)[0] for p in answers.probabilities]
        return float(np.mean(each))

    def measure(self, metric: Metric) -> dict[str, Estimate]:
        """Return a metric of your own under each condition, with its bootstrap interval.

        Args:
            metric: Called as ``metric(targets, predictions)``, as in scikit-learn, for the data
                and for each bootstrap replicate: with classes (N,), labels (N, C), 0 or 1, or
                numbers (N, C). Fewer replicates are quicker, see ``with_intervals``.
        """
        options, measured = self.intervals, {}
        for key, answers in self.answers.items():
            drawn = stats.bootstrap_weights(len(self.labels), options.replicates, options.seed)
            weights = chain([np.ones((1, len(self.labels)), dtype=np.float32)], drawn)
            values = metrics.own_metric(metric, self.labels, answers.predictions, weights)
            measured[key] = self._interval(values)
        return measured

    @cached_property
    def quality(self) -> dict[str, Quality]:
        """The quality scores by modality; empty for a model without them."""
        return {
            name: quality._replace(
                auroc=self._interval(self._replicates[name, "auroc"]),
                class_means={
                    class_name: results.mean_qualities(quality, self.labels == index)
                    for index, class_name in enumerate(self.class_names)
                    if self.task == "multiclass"
                },
            )
            for name, quality in self.log_quality.items()
        }

    @cached_property
    def area(self) -> dict[str, Estimate]:
        """Area under the rate curve by setting: mean of the main metric over the rates."""
        conditions, areas = [answers.condition for answers in self.answers.values()], {}
        for setting in dict.fromkeys(c.setting for c in conditions if c.strategy == "random"):
            points = results.rate_curve(conditions, str(setting))
            values = np.stack([self._replicates[key, self.main_metric] for _, key in points])
            # The sum of the trapezoids, divided by the range of the rates.
            steps = np.diff(np.asarray([rate for rate, _ in points]))
            mean = (values[:-1] + values[1:]).T @ steps / (2 * steps.sum())
            areas[str(setting)] = self._interval(mean)
        return areas

    @cached_property
    def corruption_premium(self) -> dict[str, Estimate]:
        """The main metric with an input missing minus that with it corrupted.

        Above zero, the corrupted input misleads the model: ignoring it would be better. The keys
        are modalities ("image") and rates ("random 0.4").
        """
        premiums = {}
        for key, answers in self.answers.items():
            if answers.condition.setting == "D":
                twin = dataclasses.replace(answers.condition, setting="C").key
                if twin in self.answers:
                    missing, corrupted = (
                        self._replicates[k, self.main_metric] for k in (key, twin)
                    )
                    premiums[answers.condition.where] = self._interval(missing - corrupted)
        return premiums

    @cached_property
    def majority(self) -> Majority:
        """The scores to beat: those of always predicting the most frequent class.

        Raises:
            ValueError: If the task is not one class a sample; see `baseline`.
        """
        if self.task != "multiclass":
            raise ValueError(f"a report of task={self.task!r} has no majority class: see baseline")
        classes = len(self.class_names)
        winner = int(np.bincount(self.labels, minlength=classes).argmax())
        guess = np.full((1, len(self.labels)), winner)
        scores = stats.classification_scores(self.labels, guess, classes)
        return Majority(self.class_names[winner], *(float(s[0, 0]) for s in scores))

    @cached_property
    def baseline(self) -> dict[str, float]:
        """The scores to beat by name: those of the best constant prediction.

        It is the most frequent class, the share of the samples with each label, or the mean of
        each number.
        """
        if self.task == "multiclass":
            return dict(zip(Majority._fields[1:], self.majority[1:], strict=True))
        once = np.ones((1, len(self.labels)), dtype=np.float32)
        targets = self.labels.astype(np.float64)
        constant = np.broadcast_to(
            metrics.constant_predictions(self.task, targets), targets.shape
        ).astype(np.float64)
        if self.task == "multilabel":
            got = metrics.label_metrics(targets, (constant > 0.5).astype(int), constant, once)
        else:
            got = metrics.number_metrics(targets, constant, None, once)
        return {name: float(values[0]) for name, values in got.items()}
