"""Disruption of cached features: pick rows instead of encoding again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustfusion._tree import leaves, map_leaves, map_tensors
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
    check_keys(corrupted, disruption.modalities, "corrupted")
    for name, source in corrupted.items():
        check_source(name, source, features[name])
    plan = disruption.plan(ids, available)
    inputs: dict[str, Any] = {}
    observed: dict[str, Tensor] = {}
    for name in disruption.modalities:
        device = next(leaves(features[name])).device
        observed[name] = plan.available[name].to(device)
        inputs[name] = _where(observed[name], features[name], placeholder(features[name]))
        rows = plan.corrupted[name].nonzero().squeeze(1)
        if len(rows):
            source = PARTIAL if disruption.setting == "P" else corrupted.get(name)
            made = _corrupted_rows(source, features[name], rows, plan.ids, disruption.seed, name)
            _put(inputs[name], rows.to(device), made)
    return DisruptedFeatures(inputs, observed, plan)


def take_rows(source: Any, rows: Tensor, clean: Any, seed: int | None = None) -> Any:
    """Return some rows of what `corrupted` may hold for the features `clean`, for one seed."""
    if isinstance(source, FeatureCorruption):
        return source
    if _is_by_seed(source):
        return {key: take_rows(source[key], rows, clean) for key in source if key == seed}
    if _has_draws(source, clean):
        return source[:, rows.to(source.device)]
    return map_tensors(lambda leaf: leaf[rows.to(leaf.device)], source)


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
    elif (got := map_leaves(_shape, source)) != (expected := map_leaves(_shape, clean)):
        raise TypeError(
            f"{where} must be a FeatureCorruption or like the features, {expected}, got {got}"
        )


def is_fresh(source: Any, clean: Any) -> bool:
    """Whether the corrupted version of a row changes with the seed."""
    if isinstance(source, FeatureCorruption):
        return True
    return (_is_by_seed(source) or _has_draws(source, clean)) and len(source) > 1


def _shape(leaf: Any) -> Any:
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
    source: Any, clean: Any, rows: Tensor, ids: tuple[SampleId, ...], seed: int, modality: str
) -> Any:
    where, names = f'corrupted["{modality}"]', [ids[row] for row in rows.tolist()]
    if source is None:
        raise ValueError(f"{where} is needed: {len(rows)} rows are to be corrupted")
    if isinstance(source, FeatureCorruption):
        check_source(modality, source, clean)
        return source.rows(clean[rows.to(clean.device)], names, seed=seed, modality=modality)
    if _is_by_seed(source):
        if seed not in source:
            raise ValueError(f"{where} has nothing for the disruption seed {seed}: encode it too")
        return _corrupted_rows(source[seed], clean, rows, ids, seed, modality)
    if _has_draws(source, clean):
        draws = uniforms(seed, names, f"draw:{modality}")[:, 0]
        which = torch.from_numpy(np.floor(draws * len(source)).astype(np.int64))
        return source[which.to(source.device), rows.to(source.device)].to(clean)
    return map_leaves(lambda leaf, like: leaf[rows.to(leaf.device)].to(like), source, clean)
