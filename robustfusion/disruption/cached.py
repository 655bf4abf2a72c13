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
from robustfusion.disruption.protocol import Disruption, DisruptionPlan


class DisruptedFeatures(NamedTuple):
    """What :func:`disrupt_features` returns: ``inputs``, ``available`` (B,) and the plan."""

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

    Rows to corrupt are taken from `corrupted`; discarded rows (and rows that were never observed)
    become a `placeholder`, zeros. The features given are not changed. What an encoder is to be
    trained on, pixels or token ids or a mapping of tensors, is disrupted in the same way.

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
        >>> disruption = Disruption(("image", "text"), "C", strategy="fixed", modality="image")
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
    at: Tensor | None = None,
) -> DisruptedFeatures:
    """The same for features that were checked: of the rows `at`, whose plan this is, or of all."""
    if set(features) != set(disruption.modalities):
        raise ValueError(
            f"features must have the keys {disruption.modalities}, got {tuple(features)}"
        )
    inputs: dict[str, Any] = {}
    observed: dict[str, Tensor] = {}
    for name in disruption.modalities:
        whole = features[name]
        clean = whole if at is None else take_rows(whole, at)
        device = next(leaves(clean)).device
        observed[name] = plan.available[name].to(device)
        inputs[name] = _where(observed[name], clean, placeholder(clean))
        hit = plan.corrupted[name].nonzero().squeeze(1)
        if len(hit):
            source = PARTIAL if disruption.setting == "P" else corrupted.get(name)
            names, rows = [plan.ids[row] for row in hit.tolist()], hit if at is None else at[hit]
            made = _corrupted_rows(source, whole, rows, names, disruption.seed, name)
            _put(inputs[name], hit.to(device), made)
    return DisruptedFeatures(inputs, observed, plan)


def take_rows(value: Any, rows: Tensor) -> Any:
    """Some rows of a nested batch of tensors, and of lists."""

    def taken(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[rows.to(leaf.device)]
        return [leaf[row] for row in rows.tolist()]

    return map_leaves(taken, value)


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
    elif _is_by_seed(source):
        for values in source.values():
            check_source(name, values, clean)
    elif isinstance(clean, Tensor) and isinstance(source, Tensor):
        drawn = source.shape[1:] == clean.shape and len(source) > 0
        if source.shape != clean.shape and not drawn:
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
    """Whether the corrupted version of a row changes with the seed."""
    if isinstance(source, FeatureCorruption):
        return True
    return (_is_by_seed(source) or _has_draws(source, clean)) and len(source) > 1


def shape_of(leaf: Any) -> Any:
    """The shape of a tensor, the type of anything else: for error messages."""
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__


def _is_by_seed(source: Any) -> bool:
    return isinstance(source, Mapping) and all(isinstance(seed, int) for seed in source)


def _has_draws(source: Any, clean: Any) -> bool:
    return isinstance(source, Tensor) and source.ndim > clean.ndim


def _where(keep: Tensor, values: Any, others: Any) -> Any:
    def choose(yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(keep.view(-1, *[1] * (yes.ndim - 1)), yes, no)

    return map_leaves(choose, values, others)


def _put(table: Any, rows: Tensor, values: Any) -> None:
    map_leaves(lambda leaf, made: leaf.index_put_((rows,), made), table, values)


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
        which = torch.from_numpy(np.floor(draws * len(source)).astype(np.int64))
        return source[which.to(source.device), rows.to(source.device)].to(clean)
    return map_leaves(lambda leaf, like: leaf.to(like), take_rows(source, rows), clean)
