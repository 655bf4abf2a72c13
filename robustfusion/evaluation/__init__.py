"""How robust is a model? The paper's protocol for any model, with intervals and paired tests."""

from robustfusion.evaluation.compare import Comparison, Difference
from robustfusion.evaluation.data import CachedFeatures, EvaluationData, RawSamples
from robustfusion.evaluation.grid import Condition, robustness_grid
from robustfusion.evaluation.plots import plot_rate_curves
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.run import robustness_report

__all__ = [
    "CachedFeatures",
    "Comparison",
    "Condition",
    "Difference",
    "EvaluationData",
    "RawSamples",
    "RobustnessReport",
    "plot_rate_curves",
    "robustness_grid",
    "robustness_report",
]
