"""Raw samples for a model that has its encoders inside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from robustfusion.disruption._draws import SampleId
from robustfusion.disruption.cached_features import unique_ids
from robustfusion.disruption.data import DisruptedDataset, collate, ids_of
from robustfusion.disruption.protocol import Disruption


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
        >>> from robustfusion.disruption import ImageCorruption, RawSamples
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
        collate_fn: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] = collate,
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

    def batches(
        self, disruption: Disruption, rows: NDArray[np.int64], batch_size: int
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the `rows` under `disruption`; see `CachedFeatures`."""
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
