"""Robust multimodal fusion: keep predicting when a modality is missing or of low quality."""

from importlib.metadata import PackageNotFoundError, version

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
from robustfusion.losses import DistributionConstraintLoss, DistributionRecoveryLoss
from robustfusion.neighbor_quality import NeighborQualityEstimator
from robustfusion.output import DRFOutput, HeadOutput
from robustfusion.paper import PaperDRFHead
from robustfusion.pooling import AttentionPooling, MaskedMean
from robustfusion.quality import GaussianQualityEstimator, QualityEstimator
from robustfusion.recovery import CrossModalRecovery
from robustfusion.stand_in import LearnedTokens, RecoveredFeatures, StandIn
from robustfusion.standardize import Standardize
from robustfusion.voting import VotingHead

__all__ = [
    "AttentionPooling",
    "CalibrationReport",
    "CrossModalRecovery",
    "DRFClassifier",
    "DRFHead",
    "DRFOutput",
    "DistributionConstraintLoss",
    "DistributionRecoveryLoss",
    "FeatureQueue",
    "GaussianQualityEstimator",
    "HeadOutput",
    "LearnedTokens",
    "MaskedMean",
    "ModalityConverter",
    "NeighborQualityEstimator",
    "PaperDRFHead",
    "QualityEstimator",
    "QualityWeightedFusion",
    "RecoveredFeatures",
    "StandIn",
    "Standardize",
    "VotingHead",
    "admit_above_mean",
    "admit_above_quantile",
    "admit_all",
    "calibrate",
    "functional",
]

try:
    __version__ = version("robustfusion")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
