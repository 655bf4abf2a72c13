"""Nearest rows of a queue by whatever modalities a sample and a stored row share."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion._state import snapshot
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import at_least_float32


def join_rows(inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """One row per sample to store: its features, then which of them it holds."""
    first = next(iter(inputs.values()))
    return torch.cat([*inputs.values(), mask.to(first.dtype)], dim=1)


def split_rows(queue: FeatureQueue, dims: Mapping[str, int]) -> tuple[dict[str, Tensor], Tensor]:
    """What :func:`join_rows` joined: ``{name: (N, D_m)}`` and (N, M) bool; columns may follow."""
    rows = snapshot(at_least_float32(queue.storage), training=queue.training)
    sizes = [*dims.values(), len(dims)]
    *stored, holds = torch.split(rows[:, : sum(sizes)], sizes, dim=1)
    return dict(zip(dims, stored, strict=True)), (holds > 0.5) & queue.valid.unsqueeze(1)


def shared_cosine(
    inputs: Mapping[str, Tensor], mask: Tensor, stored: Mapping[str, Tensor], held: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cosine over the modalities that a sample and a stored row both have.

    Returns:
        (B, N), zero where they share none, and (B, N) bool, whether they share any.
    """
    dtype = next(iter(stored.values())).dtype
    similarity = shared = mask.new_zeros(mask.shape[0], held.shape[0], dtype=dtype)
    for index, (name, rows) in enumerate(stored.items()):
        cosine = F.normalize(inputs[name].to(rows.dtype), dim=1) @ F.normalize(rows, dim=1).T
        similarity = similarity + cosine  # zero where either lacks it, as its features are
        shared = shared + (mask[:, index, None] & held[:, index])
    return similarity / shared.clamp_min(1), shared > 0


def nearest_neighbor_mean(
    similarity: Tensor, candidates: Tensor, allowed: Tensor, neighbors: int
) -> Tensor:
    """Mean of the most similar allowed candidates, zero without any.

    (B, N), (N, D), (B, N) -> (B, D); fewer than ``neighbors`` are averaged if no more are
    allowed.
    """
    ranked = similarity.where(allowed, -torch.inf)
    best = ranked.topk(min(neighbors, ranked.shape[1]), dim=1)
    found = best.values > -torch.inf
    rows = candidates[best.indices].where(found.unsqueeze(-1), 0.0)
    return rows.sum(dim=1) / found.sum(dim=1, keepdim=True).clamp_min(1)
