"""Disruption of cached features: pick rows instead of encoding again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustfusion._tree import leaves, map_leaves
from robustfusion._validation import check_keys
from robustfusion.disruption._draws import SampleId, uniforms
from robustfusion.disruption.data import placeholder
from robustfusion.disruption.features import PARTIAL, FeatureCorruption, check_rows
from robustfusion.disruption.plan import DisruptionPlan
from robustfusion.disruption.protocol import Disruption


class DisruptedFeatures(NamedTuple):
    """The result of :func:`disrupt_features`: ``inputs``, ``available`` (B,) and the plan."""

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

    Corrupted samples take their features from `corrupted`. Missing ones, whether the disruption
    removed them or they were never observed, become a `placeholder`: zeros. The features that you
    pass are not changed. Pixels, token ids or mappings of tensors, for an encoder that still
    trains, are disrupted in the same way.

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
        available: For each modality, a bool mask (B,) of what was observed in the first place; a
            modality without a mask was always observed.

    Shape:
        `features[name]` is (B, ..., D), or a mapping of such tensors, on any device; outputs are
        like it.

    Raises:
        ValueError: If keys or shapes do not fit, or a corruption is needed and was not given.
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
    """
    corrupted = corrupted or {}
    for name, values in features.items():
        check_rows(f'features["{name}"]', values, len(ids))
    check_keys(corrupted, features, "corrupted")
    for name, source in corrupted.items():
        check_source(name, source, features[name])
    return disrupt_rows(disruption, disruption.plan(ids, available), features, corrupted)


def disrupt_rows(
    disruption: Disruption,
    plan: DisruptionPlan,
    features: Mapping[str, Any],
    corrupted: Mapping[str, Any],
    rows: Tensor | None = None,
) -> DisruptedFeatures:
    """Do the same with checked features: to the `rows` that the plan is of, or to all."""
    if set(features) != set(disruption.modalities):
        raise ValueError(
            f"features must have the keys {disruption.modalities}, got {tuple(features)}"
        )
    inputs: dict[str, Any] = {}
    available: dict[str, Tensor] = {}
    for name in disruption.modalities:
        whole = features[name]
        clean = whole if rows is None else take_rows(whole, rows)
        device = next(leaves(clean)).device
        available[name] = plan.available[name].to(device)
        inputs[name] = _where(available[name], clean, placeholder(clean))
        hit = plan.corrupted[name].nonzero().squeeze(1)
        if len(hit):
            source = PARTIAL if disruption.setting == "P" else corrupted.get(name)
            ids, own_rows = [plan.ids[i] for i in hit.tolist()], hit if rows is None else rows[hit]
            values = _corrupted_rows(source, whole, own_rows, ids, disruption.seed, name)
            put_rows(inputs[name], hit.to(device), values)
    return DisruptedFeatures(inputs, available, plan)


def take_rows(value: Any, rows: Tensor) -> Any:
    """Return some rows of a nested batch of tensors and lists."""

    def taken(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[rows.to(leaf.device)]
        return [leaf[row] for row in rows.tolist()]

    return map_leaves(taken, value)


def put_rows(table: Any, rows: Tensor, values: Any) -> None:
    """Write values into some rows of a nested batch of tensors."""
    map_leaves(lambda leaf, new: leaf.index_put_((rows,), new), table, values)


def check_source(name: str, source: Any, clean: Any) -> None:
    """Raise unless `source` can give corrupted versions of the features `clean` of a modality."""
    where = f'corrupted["{name}"]'
    if isinstance(source, FeatureCorruption):
        if not isinstance(clean, Tensor) or not clean.is_floating_point():
            # The corrupted values would be rounded to integers.
            got = clean.dtype if isinstance(clean, Tensor) else type(clean).__name__
            raise TypeError(
                f'features["{name}"] must be a floating tensor, to be corrupted as features, got '
                f"{got}"
            )
    elif _is_by_seed(source):
        for values in source.values():
            check_source(name, values, clean)
    elif isinstance(clean, Tensor) and isinstance(source, Tensor):
        is_drawn = source.shape[1:] == clean.shape and len(source) > 0
        if source.shape != clean.shape and not is_drawn:
            expected = ", ".join(map(str, clean.shape))
            raise ValueError(
                f"{where} must have shape ({expected}) or (R, {expected}), got "
                f"{tuple(source.shape)}"
            )
        if source.is_floating_point() != clean.is_floating_point():
            raise TypeError(f"{where} must be {clean.dtype} as the features, got {source.dtype}")
    elif (got := map_leaves(shape_of, source)) != (expected := map_leaves(shape_of, clean)):
        raise TypeError(
            f"{where} must be a FeatureCorruption or like the features, {expected}, got {got}"
        )


def is_fresh(source: Any, clean: Any) -> bool:
    """Return whether the corrupted version of a sample changes with the seed."""
    if isinstance(source, FeatureCorruption):
        return True
    return (_is_by_seed(source) or _has_draws(source, clean)) and len(source) > 1


def shape_of(leaf: Any) -> Any:
    """Return the shape of a tensor or the type of anything else, for error messages."""
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__


def _is_by_seed(source: Any) -> bool:
    return isinstance(source, Mapping) and all(isinstance(seed, int) for seed in source)


def _has_draws(source: Any, clean: Any) -> bool:
    return isinstance(source, Tensor) and source.ndim > clean.ndim


def _where(keep: Tensor, values: Any, others: Any) -> Any:
    def choose(yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(keep.view(-1, *[1] * (yes.ndim - 1)), yes, no)

    return map_leaves(choose, values, others)


def _corrupted_rows(
    source: Any, clean: Any, rows: Tensor, ids: list[SampleId], seed: int, modality: str
) -> Any:
    where = f'corrupted["{modality}"]'
    if source is None:
        raise ValueError(
            f"{where} is needed: {len(rows)} rows are to be corrupted. Without it only "
            '"D" can be measured'
        )
    if isinstance(source, FeatureCorruption):
        check_source(modality, source, clean)
        return source.rows(take_rows(clean, rows), ids, seed=seed, modality=modality)
    if _is_by_seed(source):
        if seed not in source:
            raise ValueError(f"{where} has nothing for the disruption seed {seed}: encode it too")
        return _corrupted_rows(source[seed], clean, rows, ids, seed, modality)
    if _has_draws(source, clean):
        draws = uniforms(seed, ids, f"draw:{modality}")[:, 0]
        index = torch.from_numpy(np.floor(draws * len(source)).astype(np.int64))
        return source[index.to(source.device), rows.to(source.device)].to(clean)
    return map_leaves(lambda leaf, like: leaf.to(like), take_rows(source, rows), clean)
