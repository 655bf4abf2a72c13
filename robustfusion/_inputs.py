"""Make the features that a head receives safe to compute with."""

from collections.abc import Mapping

from torch import Tensor

from robustfusion._modules import keep_rows
from robustfusion._validation import check_available, check_features

MAX_ABS_FEATURE = 1e9  # squares and cubes of larger values overflow float32


def make_safe(
    features: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None,
    dims: Mapping[str, int],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return features with unavailable rows set to zero, and the final masks.

    A row with NaN, inf or a value beyond ``MAX_ABS_FEATURE`` counts as unavailable.
    """
    batch = check_features(features, dims)
    device = next(iter(features.values())).device
    masks = check_available(available, dims, batch, device)
    finite = {m: masks[m] & (features[m].abs().amax(-1) < MAX_ABS_FEATURE) for m in dims}
    return {m: keep_rows(features[m], finite[m]) for m in dims}, finite
