"""The data of a report: what it must offer, and raw samples for a model with encoders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from robustfusion.disruption import DisruptedDataset, Disruption, SampleId, collate
from robustfusion.disruption.cached_features import unique_ids
from robustfusion.disruption.data import ids_of

Rows: TypeAlias = NDArray[np.int64]
Batch: TypeAlias = Mapping[str, Any]


@runtime_checkable
class EvaluationData(Protocol):
    """The interface that `robustness_report` needs; write your own for another source.

    :class:`~robustfusion.disruption.CachedFeatures` and :class:`RawSamples` offer it.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> from robustfusion.disruption import disrupt_features
        >>> from robustfusion.evaluation import robustness_report
        >>> class Stored:  # rows that are read from a database, say
        ...     modalities, class_names = ("image", "text"), ("no", "yes")
        ...     ids, fresh_corruption = tuple(range(6)), False
        ...
        ...     def batches(self, disruption, rows, batch_size):
        ...         for part in np.split(rows, range(batch_size, len(rows), batch_size)):
        ...             clean = {m: torch.ones(len(part), 3) for m in self.modalities}
        ...             corrupted = {m: torch.zeros(len(part), 3) for m in self.modalities}
        ...             out = disrupt_features(disruption, part.tolist(), clean, corrupted)
        ...             labels = torch.from_numpy(part % 2)
        ...             yield {"inputs": out.inputs, "available": out.available, "label": labels}
        >>> head = ConcatenationHead({"image": 3, "text": 3}, num_classes=2)
        >>> report = robustness_report(head, Stored(), seeds=(0,), batch_size=4)
        >>> report.answers["clean"].predictions.shape
        (1, 6)
    """

    modalities: tuple[str, ...]  #: names, M of them
    ids: tuple[SampleId, ...]  #: names of the N samples, unique
    class_names: tuple[str, ...] | None  #: names of the C classes
    fresh_corruption: bool  #: whether the corrupted version of a sample changes with the seed

    def batches(self, disruption: Disruption, rows: Rows, batch_size: int) -> Iterator[Batch]:
        """Yield the `rows` under `disruption`, in their order.

        Each batch maps `inputs` and `available` to mappings by modality, and `label` to long
        `(B,)`. The input of a modality may depend on the disruption's seed, on the sample's id and
        on whether this modality is corrupted or missing, and on nothing else.
        """
        ...


class RawSamples:
    """A dataset of raw inputs, for a model that has its encoders inside.

    Args:
        dataset: Map-style; gives mappings with `inputs` (a mapping from modality to input), an
            integer `label` and, optionally, `id` and `available`.
        corruptions: For each modality, a function of (input, numpy generator), such as
            `ImageCorruption()` and `TextCorruption()`.
        transforms: For each modality, a function of the disrupted input, say from a PIL image to a
            normalized tensor.
        collate_fn: Makes a batch of samples; by default `robustfusion.disruption.collate`. Give
            your own to tokenize the texts, say.
        ids: Names of the samples, unique; if None `dataset.ids`, or else 0 .. N-1.
        num_workers: Processes that read the data.
        class_names: Names of the C classes.

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
        self.ids = unique_ids(ids_of(dataset, ids), len(dataset))
        self.modalities = tuple(dataset[0]["inputs"])
        self.class_names = None if class_names is None else tuple(class_names)

    def batches(self, disruption: Disruption, rows: Rows, batch_size: int) -> Iterator[Batch]:
        """Yield the `rows` under `disruption`; see `EvaluationData`."""
        disrupted = DisruptedDataset(
            self.dataset, disruption, self.corruptions, ids=self.ids, transforms=self.transforms
        )
        yield from DataLoader(
            Subset(disrupted, rows.tolist()),
            batch_size=batch_size,
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            # Otherwise the loader draws its workers' seed from the global generator.
            generator=torch.Generator().manual_seed(disruption.seed),
        )
