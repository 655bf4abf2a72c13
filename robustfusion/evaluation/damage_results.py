"""The result of a damage report: scores by kind and severity, as tables, files and a figure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustfusion._markdown import table
from robustfusion.evaluation._damage_figure import METRICS, draw_damage
from robustfusion.evaluation._tables import csv_text, percent, written


class DamageScores(NamedTuple):
    """The scores of one model under one kind of damage at one severity.

    They are entries of the report that :func:`~robustfusion.evaluation.damage_report` returns.

    Args:
        model: Name of the model.
        modality: The damaged modality.
        kind: The kind of damage, or ``"intact"``, or ``"missing"`` for the modality declared
            missing.
        severity: The severity; 0 for intact and 1 for missing.
        accuracy: Share of right predictions among all samples.
        accuracy_se: Its bootstrap standard error over the samples.
        macro_f1: Mean F1 of the classes.
        alarms: Share of the samples with the modality whose p-value is at most the alarm rate;
            NaN for a model without p-values.
        trust: Mean trust in the modality; NaN for a model whose output has none.
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


@dataclass(frozen=True, eq=False)
class DamageReport:
    """The scores of one or several models over kinds and severities of damage.

    :func:`~robustfusion.evaluation.damage_report` makes it; see the example there.

    Args:
        models: Names of the models.
        labels: True classes (N,).
        seeds: Seeds of the damage; scores are means over them.
        majority: Accuracy and macro-F1 of always predicting the most frequent of these classes.
        alarm_rate: A sample whose p-value is at most this raises an alarm.
        scores: One entry for each model, modality, kind and severity.
        predictions: The predicted classes (S, N) by (model, modality, kind, severity), for paired
            comparisons of your own; -1 where the logits were not finite.
    """

    models: tuple[str, ...]
    labels: NDArray[np.int64]
    seeds: tuple[int, ...]
    majority: tuple[float, float]
    alarm_rate: float
    scores: tuple[DamageScores, ...]
    predictions: Mapping[tuple[str, str, str, float], NDArray[np.int64]]

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
            {name: None if value != value else value for name, value in scores._asdict().items()}
            for scores in self.scores
        ]
        return {
            "models": list(self.models),
            "samples": len(self.labels),
            "seeds": list(self.seeds),
            "majority": dict(zip(("accuracy", "macro_f1"), self.majority, strict=True)),
            "alarm_rate": self.alarm_rate,
            "scores": rows,
        }

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the scores as CSV, and write them to `path` if there is one."""
        rows = [
            {name: "" if value is None else value for name, value in row.items()}
            for row in self.to_dict()["scores"]
        ]
        return written(csv_text(rows, DamageScores._fields), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return tables by metric and modality, and write them to `path` if there is one."""
        accuracy, f1 = self.majority
        lines = [
            "# Scores under damage",
            "",
            f"{len(self.labels)} samples; mean over the seeds {', '.join(map(str, self.seeds))}; "
            "all numbers in %, columns are severities. Always predicting the majority class: "
            f"accuracy {percent(accuracy)}, macro-F1 {percent(f1)}. Alarms: share of the samples "
            f"with a p-value of at most {self.alarm_rate:g}.",
            "",
        ]
        for metric, title in METRICS.items():
            for modality in dict.fromkeys(scores.modality for scores in self.scores):
                rows = [s for s in self.scores if s.modality == modality]
                if not all(math.isnan(getattr(s, metric)) for s in rows):
                    lines += [f"## {title}, {modality} damaged", "", *self._table(rows, metric)]
        return written("\n".join(lines).rstrip() + "\n", path)

    def _table(self, rows: list[DamageScores], metric: str) -> list[str]:
        """Return a table with a line for each kind and model and a column for each severity."""
        severities = sorted({s.severity for s in rows if s.kind not in ("intact", "missing")})
        several = len(self.models) > 1
        values: dict[tuple[str, str], dict[float, float]] = {}
        for s in rows:
            values.setdefault((s.kind, s.model), {})[s.severity] = getattr(s, metric)
        body = []
        for kind in dict.fromkeys(s.kind for s in rows):
            for model in self.models:
                by_severity = values[kind, model]
                if kind in ("intact", "missing"):  # one number, which every column repeats
                    by_severity = dict.fromkeys(severities, next(iter(by_severity.values())))
                cells = [percent(by_severity[severity]) for severity in severities]
                body.append([kind, *([model] if several else []), *cells])
        names = ["kind", *(["model"] if several else [])]
        return table([*names, *[f"{severity:g}" for severity in severities]], body)

    def plot(self, path: str | Path, *, metric: str = "accuracy") -> Path:
        """Draw a metric over the severity, with a panel for each modality and kind.

        Args:
            path: The file to write; its ending is the format.
            metric: ``"accuracy"``, ``"macro_f1"``, ``"alarms"`` or ``"trust"``.

        Returns:
            The path.

        Raises:
            ValueError: If the metric is unknown, or no model has it.
            ImportError: Without matplotlib; `pip install "robustfusion[report]"`.
        """
        if metric not in METRICS:
            raise ValueError(f"metric must be among {tuple(METRICS)}, got {metric!r}")
        if all(math.isnan(getattr(scores, metric)) for scores in self.scores):
            raise ValueError(f"metric={metric!r} is in no model's results")
        majority = dict(zip(("accuracy", "macro_f1"), self.majority, strict=True)).get(metric)
        rows = [scores._asdict() for scores in self.scores]
        draw_damage(rows, metric, majority).savefig(path)
        return Path(path)
