"""From the caller's mappings to clean tensors: nothing that a mask hides goes further."""

from collections.abc import Mapping

import torch
from torch import Tensor

from robustfusion._inputs import make_safe


def masked_inputs(
    features: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None,
    dims: Mapping[str, int],
) -> tuple[dict[str, Tensor], Tensor]:
    """Zero the unavailable rows and stack the masks into (B, M), in the order of ``dims``."""
    inputs, present = make_safe(features, available, dims)
    return inputs, torch.stack([present[name] for name in dims], dim=1)


def drop_modalities(available: Tensor, probability: float) -> Tensor:
    """Hide each available modality with the given probability, and leave one; (B, M).

    What is missing stays missing. Where chance hides all that a row has, the luckiest stays.
    """
    luck = torch.rand(available.shape, device=available.device).where(available, -1.0)
    kept = (luck >= probability) & available
    luckiest = (luck == luck.amax(dim=1, keepdim=True)) & available
    return torch.where(kept.any(dim=1, keepdim=True), kept, luckiest)
