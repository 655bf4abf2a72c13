"""What every head returns at least."""

from typing import NamedTuple

from torch import Tensor


class HeadOutput(NamedTuple):
    """The head contract: class scores, a fused vector for other tasks, a label-free loss.

    Attributes:
        logits: Class scores, shape ``(B, C)``.
        fused: Fused representation, shape ``(B, F)``.
        aux_loss: Sum of the training terms that need no labels, shape ``()``.
    """

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
