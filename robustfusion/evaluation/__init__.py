"""Measure how robust a model is: the paper's protocol, with intervals and paired tests."""

from robustfusion.disruption.cached_features import CachedFeatures
from robustfusion.evaluation.compare import Comparison, Difference, compare
from robustfusion.evaluation.data import EvaluationData, RawSamples
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
