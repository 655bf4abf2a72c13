"""The result of a damage report: scores by kind and severity, as tables, files and a figure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustfusion._markdown import table
from robustfusion.evaluation._damage_figure import METRICS, draw_damage
from robustfusion.evaluation._tables import csv_text, metric_text, written
from robustfusion.evaluation.metrics import TITLES, Metric, title


class DamageScores(NamedTuple):
    """The scores of one model under one kind of damage at one severity.

    They are entries of the report that :func:`~robustfusion.evaluation.damage_report` returns.

    Args:
        model: Name of the model.
        modality: The damaged modality.
        kind: The kind of damage, or ``"intact"``, or ``"missing"`` for the modality declared
            missing.
        severity: The severity; 0 for intact and 1 for missing.
        accuracy: Share of right predictions among all samples, or of right labels; NaN for
            numbers.
        accuracy_se: Its bootstrap standard error over the samples.
        macro_f1: Mean F1 of the classes or labels; NaN for numbers.
        alarms: Share of the samples with the modality whose p-value is at most the alarm rate;
            NaN for a model without p-values.
        trust: Mean trust in the modality; NaN for a model whose output has none.
        metrics: All metrics of the task by name, as in
            :class:`~robustfusion.evaluation.results.Scores`, without ``ece``, ``nll`` and
            ``weighted_f1``.
    """

    model: str
    modality: str
    kind: str
    severity: float
    accuracy: float
    accuracy_se: float
    macro_f1: float
    alarms: float
    trust: float
    metrics: Mapping[str, float] = {}

    def values(self) -> dict[str, Any]:
        """Return everything by name, and each metric under its own."""
        own = self._asdict()
        del own["metrics"]
        return {**own, **{name: x for name, x in self.metrics.items() if name not in own}}


@dataclass(frozen=True, eq=False)
class DamageReport:
    """The scores of one or several models over kinds and severities of damage.

    :func:`~robustfusion.evaluation.damage_report` makes it; see the example there.

    Args:
        models: Names of the models.
        labels: True classes (N,), or labels or numbers (N, C).
        seeds: Seeds of the damage; scores are means over them.
        majority: Accuracy and macro-F1 of always predicting the most frequent of these classes;
            see ``baseline`` for other tasks.
        alarm_rate: A sample whose p-value is at most this raises an alarm.
        scores: One entry for each model, modality, kind and severity.
        predictions: The predicted classes (S, N) by (model, modality, kind, severity), for paired
            comparisons of your own; -1 where the logits were not finite. Labels or numbers are
            (S, N, C).
        task: The task of the models.
        baseline: The metrics of the best constant prediction: the most frequent class, the share
            of samples with each label, or the mean of each number.
    """

    models: tuple[str, ...]
    labels: NDArray[Any]
    seeds: tuple[int, ...]
    majority: tuple[float, float]
    alarm_rate: float
    scores: tuple[DamageScores, ...]
    predictions: Mapping[tuple[str, str, str, float], NDArray[Any]]
    task: str = "multiclass"
    baseline: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, str, str, float]) -> DamageScores:
        """Return the scores of (model, modality, kind, severity)."""
        for scores in self.scores:
            if scores[:4] == key:
                return scores
        raise KeyError(f"no scores of {key!r} in this report")

    def __repr__(self) -> str:
        return f"DamageReport(models={self.models}, samples={len(self.labels)})"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the predictions, as JSON can hold it: NaN becomes None."""
        rows = [
            {name: None if value != value else value for name, value in scores.values().items()}
            for scores in self.scores
        ]
        return {
            "models": list(self.models),
            "samples": len(self.labels),
            "seeds": list(self.seeds),
            **(
                {"majority": dict(zip(("accuracy", "macro_f1"), self.majority, strict=True))}
                if self.task == "multiclass"
                else {"task": self.task, "baseline": _without_nan(self.baseline)}
            ),
            "alarm_rate": self.alarm_rate,
            "scores": rows,
        }

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the scores as CSV, and write them to `path` if there is one."""
        rows = [
            {name: "" if value is None else value for name, value in row.items()}
            for row in self.to_dict()["scores"]
        ]
        return written(csv_text(rows, list(rows[0])), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return tables by metric and modality, and write them to `path` if there is one."""
        constant = {
            "multiclass": "the majority class",
            "multilabel": "the share of the samples with each label",
            "regression": "the mean",
        }[self.task]
        baseline = ", ".join(
            f"{TITLES[name]} {metric_text(x, name)}" for name, x in self.baseline.items()
        )
        units = " or in their units" if self.task == "regression" else ""
        lines = [
            "# Scores under damage",
            "",
            f"{len(self.labels)} samples; mean over the seeds {', '.join(map(str, self.seeds))}; "
            f"all numbers in %{units}, columns are severities. Always predicting {constant}: "
            f"{baseline}. Alarms: share of the samples "
            f"with a p-value of at most {self.alarm_rate:g}.",
            "",
        ]
        for metric, heading in self._titles().items():
            for modality in dict.fromkeys(scores.modality for scores in self.scores):
                rows = [s for s in self.scores if s.modality == modality]
                if not all(math.isnan(s.values().get(metric, math.nan)) for s in rows):
                    lines += [f"## {heading}, {modality} damaged", "", *self._table(rows, metric)]
        return written("\n".join(lines).rstrip() + "\n", path)

    def _table(self, rows: list[DamageScores], metric: str) -> list[str]:
        """Return a table with a line for each kind and model and a column for each severity."""
        severities = sorted({s.severity for s in rows if s.kind not in ("intact", "missing")})
        several = len(self.models) > 1
        values: dict[tuple[str, str], dict[float, float]] = {}
        for s in rows:
            values.setdefault((s.kind, s.model), {})[s.severity] = s.values().get(metric, math.nan)
        body = []
        for kind in dict.fromkeys(s.kind for s in rows):
            for model in self.models:
                by_severity = values[kind, model]
                if kind in ("intact", "missing"):  # one number, which every column repeats
                    by_severity = dict.fromkeys(severities, next(iter(by_severity.values())))
                cells = [metric_text(by_severity[severity], metric) for severity in severities]
                body.append([kind, *([model] if several else []), *cells])
        names = ["kind", *(["model"] if several else [])]
        return table([*names, *[f"{severity:g}" for severity in severities]], body)

    def measure(self, metric: Metric) -> dict[tuple[str, str, str, float], float]:
        """Return your own metric by model, modality, kind and severity, a mean over the seeds.

        Args:
            metric: Called as ``metric(targets, predictions)``, as in scikit-learn, with classes
                (N,), labels (N, C), 0 or 1, or numbers (N, C).
        """
        return {
            cell: float(np.mean([metric(self.labels, guess) for guess in predictions]))
            for cell, predictions in self.predictions.items()
        }

    def _titles(self) -> dict[str, str]:
        """Return the titles of all metrics by name."""
        names = [name for name in TITLES if name in self.scores[0].metrics]
        own = {name: title(name) for name in names if name not in METRICS}
        return {**METRICS, **own}

    def plot(self, path: str | Path, *, metric: str = "accuracy") -> Path:
        """Draw a metric over the severity, with a panel for each modality and kind.

        Args:
            path: The file to write; its ending is the format.
            metric: ``"accuracy"``, ``"macro_f1"``, ``"alarms"``, ``"trust"``, or one of the
                metrics of the task.

        Returns:
            The path.

        Raises:
            ValueError: If the metric is unknown, or no model has it.
            ImportError: Without matplotlib; `pip install "robustfusion[report]"`.
        """
        known = self._titles()
        if metric not in known:
            raise ValueError(f"metric must be among {tuple(known)}, got {metric!r}")
        rows = [scores.values() for scores in self.scores]
        if all(math.isnan(row[metric]) for row in rows):
            raise ValueError(f"metric={metric!r} is in no model's results")
        draw_damage(rows, metric, self.baseline.get(metric)).savefig(path)
        return Path(path)


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
