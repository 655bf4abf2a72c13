"""Corruption of feature vectors, for modalities without a corruption of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from robustfusion._tree import leaves
from robustfusion.disruption._draws import (
    SampleId,
    Severity,
    check_options,
    choose,
    count_of,
    draw_severity,
    sample_generator,
)

FeatureKind: TypeAlias = Literal["mask", "noise", "shuffle", "gap", "scale", "mean", "swapped"]

MAX_GAIN = 10.0  # factor at severity 1


@dataclass(frozen=True, kw_only=True)
class FeatureCorruption:
    """Corrupt one feature vector (or a sequence of them), by a named kind and a severity `s`.

    - `mask`: a share `s` of the dimensions is set to 0;
    - `noise`: Gaussian noise of standard deviation 2 s times that of the vector's own entries;
    - `shuffle`: a share of the dimensions is permuted at random;
    - `gap`: a share of the tokens of a sequence (..., D), or of a vector's entries, is set to 0;
    - `scale`: the features are multiplied or divided, at random, by 10 to the power of s;
    - `mean`: x becomes (1 - s) x + s m, with the mean m of other samples' features;
    - `swapped`: a share of the dimensions comes from another sample.

    It works for any modality. If you have the inputs, corrupt these and encode again instead:
    real damage changes features in other ways than noise does.

    Args:
        kind: The damage.
        severity: A number, or a pair (low, high) from which each sample draws uniformly.

    Shape:
        A floating tensor (..., D) of one sample; leading axes (say time) share the chosen
        dimensions. Shape, dtype and device are kept.

    Raises:
        ValueError: If `kind` is unknown, `severity` is not in [0, 1], or the tensor has no axis.
        TypeError: If the input is not a floating tensor.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import FeatureCorruption, sample_generator
        >>> corrupt = FeatureCorruption(kind="mask", severity=0.25)
        >>> corrupt(torch.ones(8), sample_generator(0, "post-17", "audio")).sum()
        tensor(6.)

    Reference:
        Gaussian noise on feature vectors: Han et al., "Trusted Multi-View Classification", ICLR
        2021.
    """

    kind: FeatureKind = "shuffle"
    severity: Severity = (0.4, 0.8)

    def __post_init__(self) -> None:
        check_options(self.kind, FeatureKind, self.severity)

    def __call__(
        self, features: Tensor, generator: np.random.Generator, other: Tensor | None = None
    ) -> Tensor:
        """Return a corrupted copy of one sample's features; randomness comes from `generator`.

        The kinds `mean` and `swapped` need `other`, of the same shape: the mean of the features of
        several samples, or the features of another sample.
        """
        if not isinstance(features, Tensor) or not features.is_floating_point():
            got = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"features must be a floating tensor, got {got}")
        if features.ndim == 0:
            raise ValueError("features must have shape (..., D), got ()")
        severity = draw_severity(self.severity, generator)
        if self.kind in ("mean", "swapped"):
            if not isinstance(other, Tensor) or other.shape != features.shape:
                shape = tuple(other.shape) if isinstance(other, Tensor) else type(other).__name__
                raise ValueError(
                    f'kind="{self.kind}" needs other, a tensor of shape {tuple(features.shape)}, '
                    f"got {shape}"
                )
            if self.kind == "mean":
                return features.lerp(other.to(features), severity)
        if self.kind == "scale":
            gain = MAX_GAIN**severity
            return features.mul(gain if generator.random() < 0.5 else 1.0 / gain)
        if self.kind == "noise":
            noise = torch.from_numpy(generator.standard_normal(tuple(features.shape))).to(features)
            std = features.detach().double().std(correction=0).to(features)
            return features + 2.0 * severity * std * noise
        width = len(features) if self.kind == "gap" else features.shape[-1]
        chosen = np.flatnonzero(choose(width, count_of(severity, width), generator))
        target = torch.from_numpy(chosen).to(features.device)
        if self.kind == "gap":
            return features.index_fill(0, target, 0.0)
        if self.kind == "mask":
            return features.index_fill(-1, target, 0.0)
        if self.kind == "swapped" and other is not None:
            values = other.to(features).index_select(-1, target)
            return features.index_copy(-1, target, values)
        source = torch.from_numpy(generator.permutation(chosen)).to(features.device)
        return features.index_copy(-1, target, features.index_select(-1, source))

    def rows(
        self, features: Tensor, ids: Sequence[SampleId], *, seed: int, modality: str
    ) -> Tensor:
        """Return `features` (B, ..., D) with every sample corrupted by its own draw.

        Sample b depends on (seed, ids[b], modality) alone, so a whole cache can be corrupted once
        and rows picked from it.
        """
        check_rows(f'features["{modality}"]', features, len(ids))
        each = zip(features, ids, strict=True)
        rows = [self(row, sample_generator(seed, name, modality)) for row, name in each]
        return torch.stack(rows) if rows else features.clone()


# The corruption of features under the setting "P".
PARTIAL = FeatureCorruption(kind="gap")


def check_rows(where: str, values: Any, count: int) -> None:
    """Raise unless `values` is a tensor, or a mapping of tensors, of `count` rows."""
    every = list(leaves(values))
    for leaf in every:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{where} must be a tensor, got {type(leaf).__name__}")
        if leaf.ndim < 2 or len(leaf) != count:
            raise ValueError(
                f"{where} must have shape ({count}, ..., D), one row an id, got "
                f"{tuple(leaf.shape)}"
            )
    if not every:
        raise ValueError(f"{where} must not be empty")
