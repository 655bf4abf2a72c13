"""What every head returns at least."""

from typing import NamedTuple

from torch import Tensor


class HeadOutput(NamedTuple):
    """The head contract: class scores, a fused vector for other tasks, a label-free loss.

    Attributes:
        logits: Class scores, shape ``(B, C)``.
        fused: Fused representation, shape ``(B, F)``.
        aux_loss: Sum of the training terms that need no labels, shape ``()``.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import HeadOutput
        >>> class TextHead(torch.nn.Module):  # a head of your own
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 3)
        ...
        ...     def forward(self, features, available):
        ...         fused = torch.where(available["text"][:, None], features["text"], 0)
        ...         return HeadOutput(self.layer(fused), fused, fused.new_zeros(()))
        ...
        ...     def loss(self, output, labels):
        ...         return torch.nn.functional.cross_entropy(output.logits, labels)
        >>> head = TextHead()
        >>> out = head({"text": torch.randn(5, 4)}, {"text": torch.arange(5) > 1})
        >>> out.logits.shape, out.aux_loss.item()
        (torch.Size([5, 3]), 0.0)
    """

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
