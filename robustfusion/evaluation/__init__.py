"""How robust is a model? The paper's protocol for any model, with intervals and paired tests."""

from robustfusion.evaluation.compare import Comparison, Difference, compare
from robustfusion.evaluation.data import CachedFeatures, EvaluationData, RawSamples
from robustfusion.evaluation.plots import plot_rate_curves, plot_report
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.run import robustness_report

__all__ = [
    "CachedFeatures",
    "Comparison",
    "Difference",
    "EvaluationData",
    "RawSamples",
    "RobustnessReport",
    "compare",
    "plot_rate_curves",
    "plot_report",
    "robustness_report",
]
