"""The interface of the data that a report is measured on."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robustfusion.disruption import Disruption, SampleId

Rows: TypeAlias = NDArray[np.int64]
Batch: TypeAlias = Mapping[str, Any]


@runtime_checkable
class EvaluationData(Protocol):
    """The interface that `robustness_report` needs; write your own for another source.

    :class:`~robustfusion.disruption.CachedFeatures` and
    :class:`~robustfusion.disruption.RawSamples` offer it.

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
