"""Losses that several reproductions share."""

from torch import Tensor

from robustfusion.functional import at_least_float32, masked_mean


def squared_error(prediction: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Average the squared error over the samples to keep; (..., D), (..., D), (...) -> ().

    The target is detached, so that no gradient changes it.
    """
    difference = at_least_float32(prediction) - at_least_float32(target.detach())
    return masked_mean(difference.square().mean(dim=-1), keep)
