"""Make what a head is given safe to compute with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustfusion._modules import keep_rows
from robustfusion._validation import check_available, check_features

LARGEST = 1e9  # of a valid feature; squares and cubes of larger ones overflow float32


def make_safe(
    features: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None,
    dims: Mapping[str, int],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Check shapes, zero unavailable rows, and count rows no statistics survive as unavailable."""
    batch = check_features(features, dims)
    device = next(iter(features.values())).device
    given = check_available(available, dims, batch, device)
    present = {name: given[name] & (features[name].abs().amax(-1) < LARGEST) for name in dims}
    return {name: keep_rows(features[name], present[name]) for name in dims}, present


def all_of(masks: Sequence[Tensor]) -> Tensor:
    """Elementwise ``and`` of at least one mask."""
    return torch.stack(list(masks)).all(0)
