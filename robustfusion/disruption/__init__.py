"""Corrupted and missing inputs: the robustness protocol, for data sets and cached features."""

from robustfusion.disruption._draws import SampleId, Severity, canonical_id, sample_generator
from robustfusion.disruption.cached import DisruptedFeatures, disrupt_features
from robustfusion.disruption.cached_features import CachedFeatures
from robustfusion.disruption.damage import (
    FEATURE_DAMAGE,
    IMAGE_DAMAGE,
    TEXT_DAMAGE,
    DamagedBatches,
    damage,
)
from robustfusion.disruption.data import DisruptedDataset, collate, placeholder
from robustfusion.disruption.features import FeatureCorruption
from robustfusion.disruption.grid import robustness_grid
from robustfusion.disruption.images import ImageCorruption
from robustfusion.disruption.plan import DisruptionPlan
from robustfusion.disruption.protocol import Disruption
from robustfusion.disruption.random_damage import RandomDamage
from robustfusion.disruption.raw_samples import RawSamples
from robustfusion.disruption.texts import TextCorruption

__all__ = [
    "FEATURE_DAMAGE",
    "IMAGE_DAMAGE",
    "TEXT_DAMAGE",
    "CachedFeatures",
    "DamagedBatches",
    "DisruptedDataset",
    "DisruptedFeatures",
    "Disruption",
    "DisruptionPlan",
    "FeatureCorruption",
    "ImageCorruption",
    "RandomDamage",
    "RawSamples",
    "SampleId",
    "Severity",
    "TextCorruption",
    "canonical_id",
    "collate",
    "damage",
    "disrupt_features",
    "placeholder",
    "robustness_grid",
    "sample_generator",
]
