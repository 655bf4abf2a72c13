"""Heads between the paper's and the default: each row is made of parts passed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from _data import Split
from _train import scaled
from torch import nn

from robustfusion import (
    DRFHead,
    GaussianQualityEstimator,
    LearnedTokens,
    PaperDRFHead,
    RecoveredFeatures,
)


class Row(NamedTuple):
    """A row of the ablation; `make` takes the training samples and the width of the default."""

    title: str
    make: Callable[[Split, int], nn.Module]
    of_paper: bool = False


def _paper(split: Split, hidden_features: int, **scale: Any) -> nn.Module:
    head = PaperDRFHead(split.dims, split.num_classes)
    return scaled(head, split.features, **scale) if scale else head


def _ours(split: Split, hidden_features: int, **parts: Any) -> nn.Module:
    return DRFHead(split.dims, split.num_classes, hidden_features=hidden_features, **parts)


_DIAG = partial(GaussianQualityEstimator, covariance_type="diag")
_FULL = partial(GaussianQualityEstimator, covariance_type="full", shrinkage=0.1)
_DISTRIBUTION = partial(RecoveredFeatures, distribution_weight=1.0)

ROWS = {
    "paper": Row("the paper's head, features as they are", _paper, True),
    "paper, diag": Row(
        "the paper's head, deviation 1 of each coordinate",
        partial(_paper, covariance_type="diag"),
        True,
    ),
    "paper, spherical": Row(
        "the paper's head, scaled to σ = 0.4",
        partial(_paper, covariance_type="spherical", spread=0.4),
        True,
    ),
    "spherical, tokens": Row(
        "DRFHead with a spherical Gaussian and tokens",
        partial(_ours, quality=GaussianQualityEstimator, stand_in=LearnedTokens),
    ),
    "neighbors, tokens": Row(
        "+ neighbors instead of the Gaussian", partial(_ours, stand_in=LearnedTokens)
    ),
    "default": Row("+ recovered features = the default", _ours),
    "default, distribution": Row(
        "default, term (7) at weight 1", partial(_ours, stand_in=_DISTRIBUTION)
    ),
    "default, spherical": Row(
        "default, a spherical Gaussian instead of neighbors",
        partial(_ours, quality=GaussianQualityEstimator),
    ),
    "default, diag": Row("default, a diagonal Gaussian", partial(_ours, quality=_DIAG)),
    "default, full": Row("default, a full Gaussian", partial(_ours, quality=_FULL)),
}
