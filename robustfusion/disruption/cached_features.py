"""Features computed once, together with the features of the same inputs corrupted."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._validation import check_keys, check_mask
from robustfusion.disruption._draws import SampleId, canonical_id
from robustfusion.disruption.cached import check_source, disrupt_rows, is_fresh, take_rows
from robustfusion.disruption.features import check_rows
from robustfusion.disruption.protocol import Disruption


class CachedFeatures:
    """Features computed once, together with the features of the same inputs corrupted.

    For a model whose encoders still train, the "features" are what the encoders take: pixels,
    token ids, a mapping of tensors. :func:`~robustfusion.datasets.encode` makes both.

    Args:
        features: Clean features by modality, each `(N, ..., D)` or a mapping of such tensors; two
            modalities or more.
        labels: Classes, integer `(N,)`; or several labels, or numbers, floating `(N, C)`.
        ids: Names of the samples, unique; 0 .. N-1 if None. Disruption draws depend on them.
        corrupted: For each modality that may be corrupted, the features of the corrupted inputs,
            `(N, ..., D)`, a mapping from disruption seed to such features, R independent draws
            `(R, N, ..., D)`, or a `FeatureCorruption`.
        available: Bool `(N,)` by modality, which inputs were observed in the first place; a
            modality without a mask was always observed.
        class_names: Names of the C classes.

    Raises:
        ValueError: If shapes or names do not fit.
        TypeError: If an argument is not a tensor, or a tensor of another dtype.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import CachedFeatures, FeatureCorruption
        >>> data = CachedFeatures(
        ...     {"image": torch.randn(6, 8), "text": torch.randn(6, 4)},
        ...     torch.tensor([0, 1, 2, 0, 1, 2]),
        ...     corrupted={"image": torch.randn(2, 6, 8), "text": FeatureCorruption()},
        ... )
        >>> data.modalities, len(data.ids), data.fresh_corruption
        (('image', 'text'), 6, True)
    """

    def __init__(
        self,
        features: Mapping[str, Any],
        labels: Tensor,
        *,
        ids: Sequence[SampleId] | None = None,
        corrupted: Mapping[str, Any] | None = None,
        available: Mapping[str, Tensor] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.features = dict(features)
        self.modalities = tuple(features)
        if len(self.modalities) < 2:
            raise ValueError(f"features must hold two modalities or more, got {self.modalities}")
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
        if labels.ndim != 1 + labels.is_floating_point():
            raise ValueError(
                f"labels must be integers of shape (N,) or floats of shape (N, C), got "
                f"{labels.dtype} of shape {tuple(labels.shape)}"
            )
        self.labels = labels if labels.is_floating_point() else labels.long()
        self.ids = unique_ids(range(len(labels)) if ids is None else ids, len(labels))
        self.corrupted, self.available = dict(corrupted or {}), dict(available or {})
        for argument, values in (("corrupted", self.corrupted), ("available", self.available)):
            check_keys(values, self.modalities, argument)
        for name, rows in self.features.items():
            check_rows(f'features["{name}"]', rows, len(labels))
        for name, source in self.corrupted.items():
            check_source(name, source, self.features[name])
        for name, mask in self.available.items():
            check_mask(mask, (len(labels),), f'available["{name}"]')
            self.available[name] = mask.cpu()
        self.class_names = None if class_names is None else tuple(class_names)
        self.fresh_corruption = any(
            is_fresh(source, self.features[name]) for name, source in self.corrupted.items()
        )

    def batches(
        self, disruption: Disruption, rows: NDArray[np.int64], batch_size: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the `rows` under `disruption` in batches of `inputs`, `available` and `label`."""
        for start in range(0, len(rows), batch_size):
            part = torch.from_numpy(rows[start : start + batch_size])
            available = {name: mask[part] for name, mask in self.available.items()}
            plan = disruption.plan([self.ids[row] for row in part.tolist()], available)
            batch = disrupt_rows(disruption, plan, self.features, self.corrupted, part)
            labels = take_rows(self.labels, part)
            yield {"inputs": batch.inputs, "available": batch.available, "label": labels}


def unique_ids(ids: Iterable[object], count: int) -> tuple[SampleId, ...]:
    """Return the ids as `str` and `int`, after checking that they are unique.

    An integer of numpy or torch becomes the same Python integer, because the draws depend on it.
    """
    names = tuple(canonical_id(sample_id) for sample_id in ids)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"ids must be {count} unique names, got {len(names)}, {len(set(names))} of them unique"
        )
    return names
