"""Make the features that a head receives safe to compute with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from robustfusion._validation import check_available, check_features

MAX_ABS_FEATURE = 1e13  # sums of squares of larger values overflow float32


def make_safe(
    features: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None,
    dims: Mapping[str, int],
    *,
    largest: float = MAX_ABS_FEATURE,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return features with unavailable rows set to zero, and the final mask, (B, M).

    A row with NaN, inf or a value beyond ``largest`` counts as unavailable.
    """
    batch = check_features(features, dims)
    device = next(iter(features.values())).device
    masks = check_available(available, dims, batch, device)
    norms = [torch.linalg.vector_norm(features[m].detach(), torch.inf, dim=-1) for m in dims]
    finite = torch.stack([x.float() for x in norms], dim=1) < largest
    observed = torch.stack([masks[m] for m in dims], dim=1) & finite
    hidden = (~observed)[..., None].unbind(1)
    x = {m: features[m].masked_fill(mask, 0) for m, mask in zip(dims, hidden, strict=True)}
    return x, observed
