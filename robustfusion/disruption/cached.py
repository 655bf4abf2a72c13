"""Disruption of cached features: pick rows instead of encoding again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustfusion._tree import leaves, map_leaves, map_tensors
from robustfusion.disruption._draws import SampleId, uniforms
from robustfusion.disruption.data import placeholder
from robustfusion.disruption.features import PARTIAL, FeatureCorruption
from robustfusion.disruption.protocol import Disruption, DisruptionPlan


class DisruptedFeatures(NamedTuple):
    """Disrupted features: `inputs[name]` (B, ..., D), `available[name]` (B,), and the plan.

    What :func:`disrupt_features` returns; see the example there.
    """

    inputs: dict[str, Any]
    available: dict[str, Tensor]
    plan: DisruptionPlan


def disrupt_features(
    disruption: Disruption,
    ids: Sequence[SampleId],
    features: Mapping[str, Any],
    corrupted: Mapping[str, Any] | None = None,
    *,
    available: Mapping[str, Tensor] | None = None,
) -> DisruptedFeatures:
    """Disrupt cached features as `disruption` says.

    The rows to corrupt are taken from `corrupted`, the features of corrupted inputs, or corrupted
    as features; discarded rows (and rows that were never observed) become a `placeholder`, zeros.
    The features given are not changed. What an encoder is to be trained on, pixels or token ids
    or a mapping of tensors, is disrupted in the same way.

    Args:
        disruption: The protocol.
        ids: Names of the B samples.
        features: For each modality, the features of the intact inputs.
        corrupted: For each modality that may be corrupted, one of

            - the features of the corrupted inputs, of the same shape;
            - a mapping from disruption seed to such features, as
              :func:`~robustfusion.datasets.encode` makes them;
            - R independent draws, (R, B, ..., D), of which each sample gets one, by (seed, sample
              id, modality);
            - a `FeatureCorruption`, for floating tensors.
        available: For each modality, bool (B,), what was observed in the first place.

    Shape:
        `features[name]` is (B, ..., D), or a mapping of such tensors, on any device; outputs are
        like it.

    Raises:
        ValueError: If keys or shapes do not fit, or what a corruption needs is not there.
        TypeError: If features are no tensors, or `corrupted` holds something else.

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
    for name, values in features.items():
        check_rows(f'features["{name}"]', values, len(ids))
    for name, source in corrupted.items():
        if name not in features:
            raise ValueError(f"corrupted has the key {name!r}, not among {disruption.modalities}")
        check_source(name, source, features[name])
    plan = disruption.plan(ids, available)
    inputs, observed = {}, {}
    for name in disruption.modalities:
        values = features[name]
        device = next(leaves(values)).device
        rows = plan.corrupted[name].nonzero().squeeze(1)
        observed[name] = plan.available[name].to(device)
        result = map_leaves(_choose(observed[name]), values, placeholder(values))
        if len(rows):
            source = PARTIAL if disruption.setting == "P" else corrupted.get(name)
            if disruption.setting == "P":
                check_source(name, PARTIAL, values)
            made = _corrupted_rows(source, values, rows, plan.ids, disruption.seed, name)
            map_leaves(_put(rows.to(device)), result, made)
        inputs[name] = result
    return DisruptedFeatures(inputs, observed, plan)


def take_rows(source: Any, rows: Tensor, clean: Any, seed: int | None = None) -> Any:
    """Return some rows of what `corrupted` may hold for the features `clean`, for one seed."""
    if isinstance(source, FeatureCorruption):
        return source
    if _is_by_seed(source):
        return {key: take_rows(source[key], rows, clean) for key in source if key == seed}
    if isinstance(source, Tensor) and source.ndim > clean.ndim:
        return source[:, rows.to(source.device)]
    return map_tensors(lambda leaf: leaf[rows.to(leaf.device)], source)


def check_rows(where: str, values: Any, count: int) -> None:
    """Raise unless `values` is a tensor, or a mapping of tensors, of `count` rows."""
    found = list(leaves(values))
    for leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{where} must be a tensor, got {type(leaf).__name__}")
        if leaf.ndim < 2 or len(leaf) != count:
            raise ValueError(
                f"{where} must have shape ({count}, ..., D), one row an id, got "
                f"{tuple(leaf.shape)}"
            )
    if not found:
        raise ValueError(f"{where} must not be empty")


def check_source(name: str, source: Any, clean: Any) -> None:
    """Raise unless `source` says how the features `clean` of a modality are corrupted."""
    where = f'corrupted["{name}"]'
    if isinstance(source, FeatureCorruption):
        if not isinstance(clean, Tensor) or not clean.is_floating_point():
            # Others would take a corruption rounded.
            found = clean.dtype if isinstance(clean, Tensor) else type(clean).__name__
            raise TypeError(
                f'features["{name}"] must be a floating tensor, to be corrupted as features, got '
                f"{found}"
            )
        return
    if _is_by_seed(source):
        for values in source.values():
            check_source(name, values, clean)
        return
    if isinstance(clean, Tensor) and isinstance(source, Tensor):
        drawn = source.shape[1:] == clean.shape and len(source) > 0
        if source.shape != clean.shape and not drawn:
            expected = ", ".join(map(str, clean.shape))
            raise ValueError(
                f"{where} must have shape ({expected}) or (R, {expected}), got "
                f"{tuple(source.shape)}"
            )
        _check_kind(where, source, clean)
        return
    shapes = [_shapes(value) for value in (clean, source)]
    if shapes[0] != shapes[1]:
        raise TypeError(
            f"{where} must be a FeatureCorruption or like the features, {shapes[0]}, got "
            f"{shapes[1]}"
        )


def is_fresh(source: Any, clean: Any) -> bool:
    """Whether the corrupted version of a row changes with the seed."""
    if isinstance(source, FeatureCorruption):
        return True
    if _is_by_seed(source):
        return len(source) > 1
    return isinstance(source, Tensor) and source.ndim > clean.ndim and len(source) > 1


def _check_kind(where: str, source: Tensor, clean: Tensor) -> None:
    if source.is_floating_point() != clean.is_floating_point():
        raise TypeError(f"{where} must be {clean.dtype} as the features, got {source.dtype}")


def _shapes(value: Any) -> Any:
    return map_leaves(
        lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__, value
    )


def _is_by_seed(source: Any) -> bool:
    return isinstance(source, Mapping) and all(isinstance(seed, int) for seed in source)


def _choose(keep: Tensor) -> Any:
    return lambda yes, no: torch.where(keep.view(-1, *[1] * (yes.ndim - 1)), yes, no)


def _put(rows: Tensor) -> Any:
    return lambda table, values: table.index_put_((rows,), values)


def _corrupted_rows(
    source: Any, clean: Any, rows: Tensor, ids: tuple[SampleId, ...], seed: int, modality: str
) -> Any:
    where, names = f'corrupted["{modality}"]', [ids[row] for row in rows.tolist()]
    if source is None:
        raise ValueError(f"{where} is needed: {len(rows)} rows are to be corrupted")
    if isinstance(source, FeatureCorruption):
        return source.rows(clean[rows.to(clean.device)], names, seed=seed, modality=modality)
    if _is_by_seed(source):
        if seed not in source:
            raise ValueError(f"{where} has nothing for the disruption seed {seed}: encode it too")
        source = source[seed]
    if not isinstance(source, Tensor) or source.shape == clean.shape:
        return map_leaves(lambda leaf, like: leaf[rows.to(leaf.device)].to(like), source, clean)
    draws = uniforms(seed, names, f"draw:{modality}")[:, 0]
    which = torch.from_numpy(np.floor(draws * len(source)).astype(np.int64)).to(source.device)
    return source[which, rows.to(source.device)].to(clean)
