"""Imputation by the mean of the nearest neighbors in a queue of training samples."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reproductions._neighbors import (
    join_rows,
    nearest_neighbor_mean,
    shared_cosine,
    split_rows,
)
from robustfusion._state import refuse_recompute
from robustfusion._validation import check_positive
from robustfusion.baselines import ImputationHead
from robustfusion.baselines.head import BaselineHead
from robustfusion.feature_queue import FeatureQueue
from robustfusion.output import HeadOutput


class NearestImputationHead(BaselineHead):
    r"""Fill in the mean of the nearest neighbors, concatenate, classify.

    .. math:: \tilde f_m = a_m f_m + (1 - a_m)\, \tfrac1k \textstyle\sum_{j \in N_k} f_{m,j}

    :math:`N_k` are the :math:`k` stored samples that have modality :math:`m` and are nearest to
    the sample, by cosine, averaged over the modalities that both have.

    - Kept: imputation by the nearest neighbors.
    - Replaced: the neighbors come from a queue of recent training samples, not from the whole set,
      are found by cosine, not Euclidean distance, and all count the same, not by their distance;
      a sample with missing modalities is stored, too, and serves for those that it has.
    - Unverified: nothing.
    - Missing rule: the imputation itself. Without a usable neighbor, and with everything missing,
      it is zero.

    The queue is written in training mode, after use, and activation checkpointing is refused. In a
    distributed run each rank stores its own samples, so wrap the model with
    ``forward_sync_buffers=False``.

    Other arguments, shapes and errors are those of
    :class:`~robustfusion.baselines.BaselineHead`.

    Args:
        neighbors: The :math:`k` above.
        capacity: Number of samples in the queue.

    Shape:
        - ``extras[name]``: (B, dims[name]), the features of a modality, observed or imputed

    Raises:
        RuntimeError: If a training forward runs again within a backward pass.

    Example:
        >>> import torch
        >>> from reproductions import NearestImputationHead
        >>> head = NearestImputationHead({"text": 1, "image": 1}, 2, neighbors=1)
        >>> features = {
        ...     "text": torch.tensor([[1.0], [-1.0]]),
        ...     "image": torch.tensor([[5.0], [7.0]]),
        ... }
        >>> _ = head(features)
        >>> available = {"text": torch.ones(2).bool(), "image": torch.zeros(2).bool()}
        >>> head(features, available).extras["image"].flatten()
        tensor([5., 7.])

    Reference:
        Troyanskaya et al., "Missing value estimation methods for DNA microarrays",
        Bioinformatics 17, 2001.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        neighbors: int = 5,
        capacity: int = 2048,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_positive(neighbors, "neighbors")
        self.neighbors = neighbors
        self.classifier = ImputationHead(
            self.dims,
            num_classes,
            strategy="zero",
            hidden_features=hidden_features,
            dropout=dropout,
        )
        self.queue = FeatureQueue(sum(self.dims.values()) + len(self.dims), capacity)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Fill in, classify, then store the observed features."""
        if self.training:
            refuse_recompute("NearestImputationHead")
        imputed = self._impute(inputs, mask)
        filled = {
            name: inputs[name].where(mask[:, index, None], imputed[name].to(inputs[name].dtype))
            for index, name in enumerate(self.dims)
        }
        if self.training:
            self.queue.enqueue(join_rows(inputs, mask).detach(), mask.any(dim=1))
        return self.classifier.fuse(filled, torch.ones_like(mask))

    @torch.no_grad()
    def _impute(self, inputs: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        with torch.autocast(mask.device.type, enabled=False):
            stored, flags = split_rows(self.queue, self.dims)
            similarity, shared = shared_cosine(inputs, mask, stored, flags)
            return {
                name: nearest_neighbor_mean(similarity, rows, has & shared, self.neighbors)
                for (name, rows), has in zip(stored.items(), flags.unbind(1), strict=True)
            }
