"""What a report is measured on: cached features, or raw samples for a model with encoders."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from robustfusion._validation import check_keys, check_mask
from robustfusion.disruption import DisruptedDataset, Disruption, SampleId, canonical_id, collate
from robustfusion.disruption.cached import check_source, disrupt_rows, is_fresh, take_rows
from robustfusion.disruption.data import ids_of
from robustfusion.disruption.features import check_rows

Rows = NDArray[np.int64]
Batch = Mapping[str, Any]


@runtime_checkable
class EvaluationData(Protocol):
    """What `robustness_report` needs of its data; write your own for another source.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> from robustfusion.disruption import disrupt_features
        >>> from robustfusion.evaluation import robustness_report
        >>> class Stored:  # rows that are read from wherever they lie
        ...     modalities, class_names = ("image", "text"), ("no", "yes")
        ...     ids, fresh_corruption = tuple(range(6)), False
        ...
        ...     def batches(self, disruption, rows, batch_size):
        ...         for part in np.split(rows, range(batch_size, len(rows), batch_size)):
        ...             clean = {m: torch.ones(len(part), 3) for m in self.modalities}
        ...             corrupted = {m: torch.zeros(len(part), 3) for m in self.modalities}
        ...             made = disrupt_features(disruption, part.tolist(), clean, corrupted)
        ...             labels = torch.from_numpy(part % 2)
        ...             yield {"inputs": made.inputs, "available": made.available, "label": labels}
        >>> head = ConcatenationHead({"image": 3, "text": 3}, num_classes=2)
        >>> report = robustness_report(head, Stored(), seeds=(0,), batch_size=4)
        >>> report["clean"].predictions.shape
        (1, 6)
    """

    modalities: tuple[str, ...]  #: names, M of them
    ids: tuple[SampleId, ...]  #: names of the N samples, unique
    class_names: tuple[str, ...] | None  #: of the C classes
    fresh_corruption: bool  #: whether the corrupted version of a row changes with the seed

    def batches(self, disruption: Disruption, rows: Rows, batch_size: int) -> Iterator[Batch]:
        """The `rows` under `disruption`, in their order.

        Each batch maps `inputs` and `available` to mappings by modality, and `label` to long
        `(B,)`. What is given for a modality of a row may depend on the disruption's seed, the
        row's id and what is done to that modality, and on nothing else.
        """
        ...


class CachedFeatures:
    """Features computed once, with those of corrupted inputs beside them.

    For a model whose encoders are trained, what stands for features is what the encoders take:
    pixels, token ids, a mapping of tensors. :func:`~robustfusion.datasets.encode` makes both.

    Args:
        features: clean features by modality, each `(N, ..., D)` or a mapping of such tensors, two
            modalities or more.
        labels: classes, integer `(N,)`.
        ids: names of the samples, unique; without it 0 .. N-1. Disruption draws depend on them.
        corrupted: for each modality that may be corrupted, the features of the corrupted inputs,
            `(N, ..., D)`, a mapping from disruption seed to such features, R independent draws
            `(R, N, ..., D)`, or a `FeatureCorruption`.
        available: bool `(N,)` by modality, what was observed in the first place; None means all.
        class_names: of the C classes.

    Raises:
        ValueError: if shapes or names do not fit.
        TypeError: if a tensor is none, or of another dtype.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import FeatureCorruption
        >>> from robustfusion.evaluation import CachedFeatures
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
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"labels must be integers of shape (N,), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        self.labels = labels.long()
        self.ids = _unique(range(len(labels)) if ids is None else ids, len(labels))
        self.corrupted, self.available = dict(corrupted or {}), dict(available or {})
        for argument, given in (("corrupted", self.corrupted), ("available", self.available)):
            check_keys(given, self.modalities, argument)
        for name, values in self.features.items():
            check_rows(f'features["{name}"]', values, len(labels))
        for name, source in self.corrupted.items():
            check_source(name, source, self.features[name])
        for name, mask in self.available.items():
            check_mask(mask, (len(labels),), f'available["{name}"]')
            self.available[name] = mask.cpu()
        self.class_names = None if class_names is None else tuple(class_names)
        self.fresh_corruption = any(
            is_fresh(source, self.features[name]) for name, source in self.corrupted.items()
        )

    def batches(self, disruption: Disruption, rows: Rows, batch_size: int) -> Iterator[Batch]:
        """The `rows` under `disruption`; see `EvaluationData`."""
        for start in range(0, len(rows), batch_size):
            at = torch.from_numpy(rows[start : start + batch_size])
            available = {name: mask[at] for name, mask in self.available.items()}
            plan = disruption.plan([self.ids[row] for row in at.tolist()], available)
            made = disrupt_rows(disruption, plan, self.features, self.corrupted, at)
            labels = take_rows(self.labels, at)
            yield {"inputs": made.inputs, "available": made.available, "label": labels}


class RawSamples:
    """A dataset of raw inputs, for a model that has its encoders inside.

    Args:
        dataset: map-style; gives mappings with `inputs` (a mapping from modality to input), an
            integer `label` and, optionally, `id` and `available`.
        corruptions: for each modality, a function of (input, numpy generator), such as
            `ImageCorruption()` and `TextCorruption()`.
        transforms: for each modality, a function of the disrupted input, say from a PIL image to a
            normalised tensor.
        collate_fn: makes a batch of samples; by default `robustfusion.disruption.collate`. Give
            your own, say to tokenise the texts.
        ids: names of the samples, unique; without it `dataset.ids`, or else 0 .. N-1.
        num_workers: processes that read the data.
        class_names: of the C classes.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import ImageCorruption
        >>> from robustfusion.evaluation import RawSamples
        >>> posts = [
        ...     {"inputs": {"image": torch.ones(3, 8, 8), "text": torch.ones(4)}, "label": i % 2}
        ...     for i in range(4)
        ... ]
        >>> RawSamples(posts, {"image": ImageCorruption()}).modalities
        ('image', 'text')
    """

    fresh_corruption = True

    def __init__(
        self,
        dataset: Any,
        corruptions: Mapping[str, Callable[[Any, np.random.Generator], Any]] | None = None,
        *,
        transforms: Mapping[str, Callable[[Any], Any]] | None = None,
        collate_fn: Callable[[Sequence[Mapping[str, Any]]], Batch] = collate,
        ids: Sequence[SampleId] | None = None,
        num_workers: int = 0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("dataset must not be empty")
        self.dataset = dataset
        self.corruptions = dict(corruptions or {})
        self.transforms = dict(transforms or {})
        self.collate_fn = collate_fn
        self.num_workers = num_workers
        self.ids = _unique(ids_of(dataset, ids), len(dataset))
        self.modalities = tuple(dataset[0]["inputs"])
        self.class_names = None if class_names is None else tuple(class_names)

    def batches(self, disruption: Disruption, rows: Rows, batch_size: int) -> Iterator[Batch]:
        """The `rows` under `disruption`; see `EvaluationData`."""
        disrupted = DisruptedDataset(
            self.dataset, disruption, self.corruptions, ids=self.ids, transforms=self.transforms
        )
        yield from DataLoader(
            Subset(disrupted, rows.tolist()),
            batch_size=batch_size,
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            # Without one of its own a loader draws its workers' seed from the global generator.
            generator=torch.Generator().manual_seed(disruption.seed),
        )


def _unique(ids: Iterable[object], count: int) -> tuple[SampleId, ...]:
    """The ids as `str` and `int`: 7 of numpy or torch is 7, and draws and digests depend on it."""
    names = tuple(canonical_id(sample_id) for sample_id in ids)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"ids must be {count} unique names, got {len(names)}, {len(set(names))} of them unique"
        )
    return names
