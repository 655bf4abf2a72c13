"""Robust multimodal fusion: keep predicting when a modality is missing or of low quality."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from robustfusion import functional
from robustfusion.calibration import CalibrationReport, calibrate
from robustfusion.classifier import DRFClassifier
from robustfusion.conversion import ModalityConverter
from robustfusion.drf import DRFHead
from robustfusion.feature_queue import (
    FeatureQueue,
    admit_above_mean,
    admit_above_quantile,
    admit_all,
)
from robustfusion.fusion import QualityWeightedFusion
from robustfusion.gaussian_quality import GaussianQualityEstimator
from robustfusion.losses import DistributionConstraintLoss, DistributionRecoveryLoss
from robustfusion.neighbor_quality import NeighborQualityEstimator
from robustfusion.neighbor_vote import NeighborVoteHead
from robustfusion.output import DRFOutput, HeadOutput
from robustfusion.paper import PaperDRFHead
from robustfusion.pooling import AttentionPooling, MaskedMean
from robustfusion.quality import QualityEstimator
from robustfusion.stand_in import LearnedTokens, RecoveredFeatures, StandIn
from robustfusion.standardize import Standardize
from robustfusion.trust import LearnedTrust

__all__ = [
    "AttentionPooling",
    "CalibrationReport",
    "DRFClassifier",
    "DRFHead",
    "DRFOutput",
    "DistributionConstraintLoss",
    "DistributionRecoveryLoss",
    "FeatureQueue",
    "GaussianQualityEstimator",
    "HeadOutput",
    "LearnedTokens",
    "LearnedTrust",
    "MaskedMean",
    "ModalityConverter",
    "NeighborQualityEstimator",
    "NeighborVoteHead",
    "PaperDRFHead",
    "QualityEstimator",
    "QualityWeightedFusion",
    "RecoveredFeatures",
    "StandIn",
    "Standardize",
    "admit_above_mean",
    "admit_above_quantile",
    "admit_all",
    "calibrate",
    "functional",
]

try:
    __version__ = version("robustfusion")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

# Imported when they are first used, so that the package itself stays light.
_LAZY = (
    "baselines",
    "checkpoint",
    "datasets",
    "diagnostics",
    "disruption",
    "distributed",
    "evaluation",
    "explanation",
    "integrations",
    "monitor",
    "testing",
)


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY, "__version__"])


if not TYPE_CHECKING:  # with it, a type checker could no longer tell which names exist

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
