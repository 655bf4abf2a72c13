"""Measure how robust a model is: the paper's protocol, with intervals and paired tests."""

# The data of a report, which are documented in robustfusion.disruption.
from robustfusion.disruption import CachedFeatures as CachedFeatures
from robustfusion.disruption import RawSamples as RawSamples
from robustfusion.evaluation.compare import Comparison, Difference, compare
from robustfusion.evaluation.damage_report import damage_report
from robustfusion.evaluation.damage_results import DamageReport, DamageScores
from robustfusion.evaluation.data import EvaluationData
from robustfusion.evaluation.plots import plot_rate_curves, plot_report
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.run import robustness_report

__all__ = [
    "Comparison",
    "DamageReport",
    "DamageScores",
    "Difference",
    "EvaluationData",
    "RobustnessReport",
    "compare",
    "damage_report",
    "plot_rate_curves",
    "plot_report",
    "robustness_report",
]
