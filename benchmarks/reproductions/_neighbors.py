"""Nearest rows of a queue, by the modalities that a sample and a stored row share."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion._state import snapshot
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import at_least_float32


def join_rows(inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Return one row per sample to store: its features, then flags of the available ones."""
    first = next(iter(inputs.values()))
    return torch.cat([*inputs.values(), mask.to(first.dtype)], dim=1)


def split_rows(queue: FeatureQueue, dims: Mapping[str, int]) -> tuple[dict[str, Tensor], Tensor]:
    """Undo :func:`join_rows`: ``{name: (N, D_m)}`` and flags (N, M); more columns may follow."""
    rows = snapshot(at_least_float32(queue.storage), training=queue.training)
    sizes = [*dims.values(), len(dims)]
    *stored, flags = torch.split(rows[:, : sum(sizes)], sizes, dim=1)
    return dict(zip(dims, stored, strict=True)), (flags > 0.5) & queue.valid.unsqueeze(1)


def shared_cosine(
    inputs: Mapping[str, Tensor], mask: Tensor, stored: Mapping[str, Tensor], flags: Tensor
) -> tuple[Tensor, Tensor]:
    """Average the cosine over the modalities that a sample and a stored row both have.

    Returns:
        The mean (B, N), zero where they share none, and whether they share any (B, N), bool.
    """
    dtype = next(iter(stored.values())).dtype
    similarity = shared = mask.new_zeros(mask.shape[0], flags.shape[0], dtype=dtype)
    for index, (name, rows) in enumerate(stored.items()):
        cosine = F.normalize(inputs[name].to(rows.dtype), dim=1) @ F.normalize(rows, dim=1).T
        # Features of a missing modality are zero, and so is their cosine.
        similarity = similarity + cosine
        shared = shared + (mask[:, index, None] & flags[:, index])
    return similarity / shared.clamp_min(1), shared > 0


def nearest_neighbor_mean(
    similarity: Tensor, candidates: Tensor, allowed: Tensor, neighbors: int
) -> Tensor:
    """Average the most similar allowed candidates, (B, N), (N, D), (B, N) -> (B, D).

    If fewer than ``neighbors`` are allowed, these are averaged; without any the result is zero.
    """
    ranked = similarity.where(allowed, -torch.inf)
    best = ranked.topk(min(neighbors, ranked.shape[1]), dim=1)
    is_allowed = best.values > -torch.inf
    rows = candidates[best.indices].where(is_allowed.unsqueeze(-1), 0.0)
    return rows.sum(dim=1) / is_allowed.sum(dim=1, keepdim=True).clamp_min(1)
