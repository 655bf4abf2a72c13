"""The answers of a model under all conditions, and the scores with bootstrap intervals."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfusion.evaluation import results
from robustfusion.evaluation import statistics as stats
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
    labels: NDArray[np.int16]
    seeds: tuple[int, ...]
    fingerprint: Fingerprint
    answers: Mapping[str, Answers]
    log_quality: Mapping[str, Quality] = field(default_factory=dict)
    recovered: Mapping[tuple[str, str], Recovered] = field(default_factory=dict)
    intervals: Intervals = field(default_factory=Intervals)
    record: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _replicates(self) -> dict[tuple[str, str], FloatArray]:
        """Every score by (condition or modality, name): the value, then its replicates."""
        labels, options = self.labels.astype(np.int64), self.intervals
        parts: dict[tuple[str, str], list[FloatArray]] = {}
        original = np.ones((1, len(labels)), dtype=np.float32)
        drawn = stats.bootstrap_weights(len(labels), options.replicates, options.seed)
        for weights in chain([original], drawn):
            for key, answers in self.answers.items():
                scores = results.bootstrapped_scores(
                    answers, labels, len(self.class_names), weights, options.alarm_rate
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
            is_right = answers.predictions == self.labels
            by_seed = is_right.mean(1)
            alarms = {
                name: self._interval(replicates[key, f"alarm {column}"])
                for column, name in enumerate(self.modalities)
                if (key, f"alarm {column}") in replicates
            }
            estimates = {
                name: self._interval(replicates[key, name]) for name in results.BOOTSTRAPPED
            }
            scores[key] = Scores(
                condition=answers.condition,
                **estimates,
                drop=self._interval(replicates["clean", "accuracy"] - replicates[key, "accuracy"]),
                alarms={name: rate for name, rate in alarms.items() if not np.isnan(rate.value)},
                aurc=float(stats.risk_coverage(is_right, answers.confidence)[1].mean()),
                seed_std=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
            )
        return scores

    @cached_property
    def quality(self) -> dict[str, Quality]:
        """The quality scores by modality; empty for a model without them."""
        return {
            name: quality._replace(
                auroc=self._interval(self._replicates[name, "auroc"]),
                class_means={
                    class_name: results.mean_qualities(quality, self.labels == index)
                    for index, class_name in enumerate(self.class_names)
                },
            )
            for name, quality in self.log_quality.items()
        }

    @cached_property
    def area(self) -> dict[str, Estimate]:
        """Area under the rate curve by setting: mean accuracy over the rates, clean at rate 0."""
        conditions, areas = [answers.condition for answers in self.answers.values()], {}
        for setting in dict.fromkeys(c.setting for c in conditions if c.strategy == "random"):
            points = results.rate_curve(conditions, str(setting))
            values = np.stack([self._replicates[key, "accuracy"] for _, key in points])
            # The sum of the trapezoids, divided by the range of the rates.
            steps = np.diff(np.asarray([rate for rate, _ in points]))
            mean = (values[:-1] + values[1:]).T @ steps / (2 * steps.sum())
            areas[str(setting)] = self._interval(mean)
        return areas

    @cached_property
    def corruption_premium(self) -> dict[str, Estimate]:
        """Accuracy with an input missing minus accuracy with it corrupted.

        Above zero, the corrupted input misleads the model: ignoring it would be better. The keys
        are modalities ("image") and rates ("random 0.4").
        """
        premiums = {}
        for key, answers in self.answers.items():
            if answers.condition.setting == "D":
                twin = dataclasses.replace(answers.condition, setting="C").key
                if twin in self.answers:
                    missing, corrupted = (self._replicates[k, "accuracy"] for k in (key, twin))
                    premiums[answers.condition.where] = self._interval(missing - corrupted)
        return premiums

    @cached_property
    def majority(self) -> Majority:
        """The scores to beat: those of always predicting the most frequent class."""
        classes = len(self.class_names)
        winner = int(np.bincount(self.labels, minlength=classes).argmax())
        guess = np.full((1, len(self.labels)), winner)
        scores = stats.classification_scores(self.labels, guess, classes)
        return Majority(self.class_names[winner], *(float(s[0, 0]) for s in scores))
