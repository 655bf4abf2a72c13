"""The robustness protocol: corrupt, discard, or both, at random or one modality throughout."""

from robustfusion.disruption._draws import SampleId, Severity, canonical_id, sample_generator
from robustfusion.disruption.cached import DisruptedFeatures, disrupt_features
from robustfusion.disruption.data import DisruptedDataset, collate, placeholder
from robustfusion.disruption.features import FeatureCorruption
from robustfusion.disruption.grid import Condition, robustness_grid
from robustfusion.disruption.images import ImageCorruption
from robustfusion.disruption.protocol import Disruption, DisruptionPlan
from robustfusion.disruption.texts import TextCorruption

__all__ = [
    "Condition",
    "DisruptedDataset",
    "DisruptedFeatures",
    "Disruption",
    "DisruptionPlan",
    "FeatureCorruption",
    "ImageCorruption",
    "SampleId",
    "Severity",
    "TextCorruption",
    "canonical_id",
    "collate",
    "disrupt_features",
    "placeholder",
    "robustness_grid",
    "sample_generator",
]
