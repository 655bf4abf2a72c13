"""Imputation before concatenation: zeros, means, or the nearest neighbors in a queue."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, mlp
from robustfusion._state import refuse_recompute, snapshot
from robustfusion._validation import check_positive
from robustfusion.baselines._neighbors import (
    join_rows,
    nearest_neighbor_mean,
    shared_cosine,
    split_rows,
)
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.feature_queue import FeatureQueue

Strategy = Literal["zero", "mean", "nearest"]


class RunningMean(nn.Module):
    """Mean of all rows seen so far, (D,); zero before the first."""

    mean: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, features: Tensor, available: Tensor) -> None:
        """Take in the available rows of ``features`` (B, D)."""
        added = available.sum()
        total = (self.count + added).clamp_min(1)
        surplus = (features - self.mean).where(available.unsqueeze(1), 0.0).sum(dim=0)
        self.mean.add_(surplus / total)
        self.count.add_(added)


class ImputationOutput(NamedTuple):
    """Output of :class:`ImputationHead`; ``filled``, (B, D_m) each, is observed or imputed."""

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    filled: dict[str, Tensor]


class ImputationHead(BaselineHead[ImputationOutput]):
    r"""Fill in the missing features, concatenate, classify with a three-layer network.

    .. math:: \tilde f_m = a_m f_m + (1 - a_m)\, \hat f_m, \qquad
              \hat f_m \in \Big\{ 0,\; \bar f_m,\; \tfrac1k \sum_{j \in N_k} f_{m,j} \Big\}

    :math:`\bar f_m` is the mean over all training rows seen; :math:`N_k` are the :math:`k` stored
    rows that hold modality :math:`m` and are nearest to the sample, by cosine, averaged over the
    modalities that both hold.

    - Kept: the three standard imputations.
    - Replaced: the neighbors come from a queue of recent training rows, not the whole set, are
      found by cosine, not Euclidean distance, and count alike, not by their distance; a row with
      missing modalities is stored too and helps where it can.
    - Unverified: nothing.
    - Missing rule: the imputation itself. Without a usable neighbor, or before any row was seen,
      it is zero; with everything missing, "nearest" gives zeros.

    Statistics and queue are written in training mode, after use, and activation checkpointing of
    a head that has them is refused. In a distributed run each rank stores its own rows: wrap with
    ``forward_sync_buffers=False``.

    Other arguments, shapes, errors: :class:`BaselineHead`.

    Args:
        strategy: "zero", "mean" or "nearest".
        neighbors: The :math:`k` above, for "nearest".
        capacity: Number of rows in the queue, for "nearest".

    Raises:
        RuntimeError: If a training forward runs again within a backward pass.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import ImputationHead
        >>> head = ImputationHead({"text": 1, "image": 1}, 2, strategy="mean")
        >>> features = {
        ...     "text": torch.ones(4, 1),
        ...     "image": torch.tensor([[1.0], [3.0], [2.0], [2.0]]),
        ... }
        >>> _ = head(features)
        >>> available = {"text": torch.ones(4).bool(), "image": torch.zeros(4).bool()}
        >>> head(features, available).filled["image"].flatten()
        tensor([2., 2., 2., 2.])

    Reference:
        Troyanskaya et al., "Missing value estimation methods for DNA microarrays",
        Bioinformatics 17, 2001, for the neighbors.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        strategy: Strategy = "mean",
        neighbors: int = 5,
        capacity: int = 2048,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_positive(neighbors, "neighbors")
        if strategy not in ("zero", "mean", "nearest"):
            raise ValueError(f'strategy must be "zero", "mean" or "nearest", got {strategy!r}')
        self.strategy: Strategy = strategy
        self.neighbors = neighbors
        width = sum(dims.values())
        self.network = mlp(
            width, hidden_features, hidden_features, dropout=dropout, activate_last=True
        )
        self.classifier = nn.Linear(hidden_features, num_classes)
        if strategy == "mean":
            self.means = ModuleDict({name: RunningMean(dim) for name, dim in dims.items()})
        elif strategy == "nearest":
            # The last columns of a stored row say which modalities it holds.
            self.queue = FeatureQueue(width + len(self.dims), capacity)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> ImputationOutput:
        """Fill in, classify, then take the observed rows into the statistics."""
        if self.training and self.strategy != "zero":
            refuse_recompute("ImputationHead")
        guesses = self._impute(inputs, mask)
        filled = {
            name: inputs[name].where(mask[:, index, None], guesses[name].to(inputs[name].dtype))
            for index, name in enumerate(self.dims)
        }
        fused: Tensor = self.network(torch.cat(list(filled.values()), dim=1))
        logits: Tensor = self.classifier(fused)
        if self.training:
            self._store(inputs, mask)
        return ImputationOutput(logits, fused, zero_loss(logits), filled)

    def _impute(self, inputs: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        if self.strategy == "zero":
            return {name: torch.zeros_like(inputs[name]) for name in self.dims}
        if self.strategy == "mean":
            return {
                name: snapshot(self.means[name].mean, training=self.training).expand_as(x)
                for name, x in inputs.items()
            }
        with torch.no_grad(), torch.autocast(mask.device.type, enabled=False):
            stored, held = split_rows(self.queue, self.dims)
            similarity, shared = shared_cosine(inputs, mask, stored, held)
            return {
                name: nearest_neighbor_mean(similarity, rows, holds & shared, self.neighbors)
                for (name, rows), holds in zip(stored.items(), held.unbind(1), strict=True)
            }

    @torch.no_grad()
    def _store(self, inputs: Mapping[str, Tensor], mask: Tensor) -> None:
        if self.strategy == "mean":
            for index, name in enumerate(self.dims):
                self.means[name].update(inputs[name], mask[:, index])
        elif self.strategy == "nearest":
            self.queue.enqueue(join_rows(inputs, mask), mask.any(dim=1))
