"""The figure of a damage report: a metric over the severity, a panel for each kind."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from robustfusion._figures import COLORS, legend, panels
from robustfusion.evaluation.metrics import IN_UNITS, TITLES

METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "alarms": "Alarms",
    "trust": "Trust",
}
_MARKERS = "os^DvPX"
_COLUMNS = 5


def draw_damage(rows: Sequence[Mapping[str, Any]], metric: str, majority: float | None) -> Any:
    """Return the figure of rows with model, modality, kind, severity and metrics."""
    curves: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    lines: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for row in rows:
        if row["kind"] in ("intact", "missing"):
            lines[row["model"], row["modality"], row["kind"]] = row
        else:
            panel = curves.setdefault((row["modality"], row["kind"]), {})
            panel.setdefault(row["model"], []).append(row)
    scale, unit = (1, "") if metric in IN_UNITS else (100, " (%)")
    name = METRICS[metric].lower() if metric in METRICS else TITLES[metric]
    constant = "majority class" if "auroc" in rows[0] else "constant prediction"
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = panels(len(curves), 2.5, 2.2, columns=_COLUMNS)
    for axis, ((modality, kind), by_model) in zip(axes, curves.items(), strict=True):
        for index, model in enumerate(models):
            color = COLORS[index % len(COLORS)]
            points = [lines[model, modality, "intact"], *by_model[model]]
            x = [point["severity"] for point in points]
            y = [scale * point[metric] for point in points]
            if all(map(math.isnan, y)):
                continue
            marker = _MARKERS[index % len(_MARKERS)]
            axis.plot(x, y, color=color, marker=marker, markersize=3.5, label=model, lw=1.5)
            if metric == "accuracy":
                se = [100 * point["accuracy_se"] for point in points]
                low = [a - b for a, b in zip(y, se, strict=True)]
                high = [a + b for a, b in zip(y, se, strict=True)]
                axis.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
            missing = lines[model, modality, "missing"][metric]
            if metric not in ("alarms", "trust"):
                label = f"{model}, {'input' if len(models) > 1 else 'the input'} declared missing"
                axis.axhline(scale * missing, color=color, linestyle="--", lw=1, label=label)
        if majority is not None:
            axis.axhline(scale * majority, color="0.4", linestyle=":", lw=1.2, label=constant)
        axis.set_title(f"{modality}: {kind.replace('_', ' ')}", fontsize=9)
        axis.set_xticks([0, 0.5, 1])
        axis.tick_params(labelsize=8)
    lows, highs = zip(*(axis.get_ylim() for axis in axes), strict=True)
    for index, axis in enumerate(axes):
        axis.set_ylim(min(lows), max(highs))
        if index % _COLUMNS == 0:
            axis.set_ylabel(f"{name}{unit}", fontsize=9)
        if index + _COLUMNS >= len(axes):
            axis.set_xlabel("severity", fontsize=9)
    legend(figure, axes[0], 3)
    return figure
