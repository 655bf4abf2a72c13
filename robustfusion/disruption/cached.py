"""Disruption of cached features: pick rows instead of encoding again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustfusion.disruption._draws import SampleId, uniforms
from robustfusion.disruption.features import FeatureCorruption
from robustfusion.disruption.protocol import Disruption, DisruptionPlan

# What setting "P" does to features.
PARTIAL = FeatureCorruption(kind="gap")


class DisruptedFeatures(NamedTuple):
    """Disrupted features: `inputs[name]` (B, ..., D), `available[name]` (B,), and the plan.

    What :func:`disrupt_features` returns; see the example there.
    """

    inputs: dict[str, Tensor]
    available: dict[str, Tensor]
    plan: DisruptionPlan


def disrupt_features(
    disruption: Disruption,
    ids: Sequence[SampleId],
    features: Mapping[str, Tensor],
    corrupted: Mapping[str, Tensor | FeatureCorruption] | None = None,
    *,
    available: Mapping[str, Tensor] | None = None,
) -> DisruptedFeatures:
    """Disrupt cached features as `disruption` says.

    The rows to corrupt are taken from `corrupted`, the features of corrupted inputs, or corrupted
    as features; discarded rows (and rows that were never observed) are zeros. The features given
    are not changed.

    Args:
        disruption: The protocol.
        ids: Names of the B samples.
        features: For each modality, the features of the intact inputs.
        corrupted: For each modality that may be corrupted, the features of the corrupted inputs,
            of the same shape or, with R independent draws of the corruption, (R, B, ..., D), of
            which each sample gets one, by (seed, sample id, modality); or a `FeatureCorruption`.
        available: For each modality, bool (B,), what was observed in the first place.

    Shape:
        `features[name]` is (B, ..., D), floating, on any device; outputs are like it.

    Raises:
        ValueError: If keys or shapes do not fit, or what a corruption needs is not there.
        TypeError: If features are no floating tensors, or `corrupted` holds something else.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import Disruption, disrupt_features
        >>> disruption = Disruption(
        ...     ("image", "text"), setting="C", strategy="fixed", modality="image"
        ... )
        >>> clean = {"image": torch.ones(2, 3), "text": torch.ones(2, 4)}
        >>> out = disrupt_features(disruption, ["a", "b"], clean, {"image": torch.zeros(2, 3)})
        >>> out.inputs["image"].sum(), out.inputs["text"].sum(), out.available["image"]
        (tensor(0.), tensor(8.), tensor([True, True]))

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """
    corrupted = corrupted or {}
    if set(features) != set(disruption.modalities):
        raise ValueError(
            f"features must have the keys {disruption.modalities}, got {tuple(features)}"
        )
    for name, given in corrupted.items():
        if name not in features:
            raise ValueError(f"corrupted has the key {name!r}, not among {disruption.modalities}")
        check_source(name, given)
    for name, values in features.items():
        check_floating(f'features["{name}"]', values)
        if values.ndim < 2 or len(values) != len(ids):
            raise ValueError(
                f'features["{name}"] must have shape ({len(ids)}, ..., D), one row an id, '
                f"got {tuple(values.shape)}"
            )
    plan = disruption.plan(ids, available)
    inputs, observed = {}, {}
    for name in disruption.modalities:
        values = features[name]
        rows = plan.corrupted[name].nonzero().squeeze(1)
        observed[name] = plan.available[name].to(values.device)
        keep = observed[name].view(-1, *[1] * (values.ndim - 1))
        result = torch.where(keep, values, torch.zeros_like(values))
        if len(rows):
            source = corrupted.get(name)
            if disruption.setting == "P":
                source = PARTIAL
            result[rows.to(values.device)] = _corrupted_rows(
                source, values, rows, plan.ids, disruption.seed, name
            )
        inputs[name] = result
    return DisruptedFeatures(inputs, observed, plan)


def check_floating(where: str, values: object) -> None:
    """Raise unless `values` is a floating tensor: others would take a corruption rounded."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{where} must be a floating tensor, got {found}")


def check_source(name: str, source: object) -> None:
    """Raise unless `source` says how features of a modality are corrupted."""
    if not isinstance(source, FeatureCorruption):
        check_floating(f'corrupted["{name}"], if no FeatureCorruption,', source)


def _corrupted_rows(
    source: Tensor | FeatureCorruption | None,
    clean: Tensor,
    rows: Tensor,
    ids: tuple[SampleId, ...],
    seed: int,
    modality: str,
) -> Tensor:
    names = [ids[row] for row in rows.tolist()]
    if source is None:
        raise ValueError(
            f'corrupted["{modality}"] is needed: {len(rows)} rows are to be corrupted'
        )
    if isinstance(source, FeatureCorruption):
        return source.rows(clean[rows.to(clean.device)], names, seed=seed, modality=modality)
    at = rows.to(source.device)
    if source.shape == clean.shape:
        return source[at].to(clean)
    if source.shape[1:] != clean.shape or not len(source):
        raise ValueError(
            f'corrupted["{modality}"] must have shape {tuple(clean.shape)} or '
            f"(R, {', '.join(map(str, clean.shape))}), got {tuple(source.shape)}"
        )
    draws = uniforms(seed, names, f"draw:{modality}")[:, 0]
    which = torch.from_numpy(np.floor(draws * len(source)).astype(np.int64)).to(source.device)
    return source[which, at].to(clean)
