"""The base of every baseline: how it is built, called and trained."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfusion._identity import register_identity
from robustfusion._inputs import make_safe
from robustfusion._validation import check_between, check_dims, check_labels, check_positive
from robustfusion.functional import at_least_float32, masked_mean
from robustfusion.output import HeadOutput


def drop_modalities(available: Tensor, probability: float) -> Tensor:
    """Hide each available modality with the given probability, but leave one; (B, M)."""
    score = torch.rand(available.shape, device=available.device).where(available, -1.0)
    remaining = (score >= probability) & available
    largest = (score == score.amax(dim=1, keepdim=True)) & available
    return torch.where(remaining.any(dim=1, keepdim=True), remaining, largest)


def cross_entropy(logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
    """Average the cross-entropy over the samples to keep; (B, C), (B,), (B,) -> ()."""
    check_labels(labels, *logits.shape)
    losses = F.cross_entropy(at_least_float32(logits), labels, reduction="none")
    return masked_mean(losses, keep)


def zero_loss(logits: Tensor) -> Tensor:
    """Return a scalar zero on the device of ``logits``, for heads without a label-free term."""
    return at_least_float32(logits).new_zeros(())


class BaselineHead(nn.Module, ABC):
    """A method to compare with: it takes one vector per modality and returns class scores.

    ``forward`` checks its inputs, sets missing features to zero and only then calls ``fuse``, the
    one method that a subclass must define, so that no head can see what a mask hides. Features
    with NaN, infinity or a value beyond 1e13 count as missing. The docstring of a head says what
    it keeps of its source, replaces, could not verify, and does with missing modalities. Where a
    head takes them, ``hidden_features`` is the width F of the hidden layers and ``dropout``
    follows each of them. These and ``modality_dropout`` have defaults of ours: tune them on your
    data.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        modality_dropout: Probability of hiding a modality of a training sample; one always stays.
        min_modalities: Smallest number of modalities that ``dims`` may name.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, F); ``aux_loss``: (), zero in most heads
        - ``extras[name]``: what the head adds; M columns are the modalities as in ``dims``

    Raises:
        ValueError: If an argument, a modality's name or a shape does not fit.
        TypeError: If features are not floating or a mask is not bool.

    Example:
        >>> import torch
        >>> from robustfusion import HeadOutput
        >>> from robustfusion.baselines import BaselineHead
        >>> class Sum(BaselineHead):
        ...     def __init__(self, dims, num_classes):
        ...         super().__init__(dims, num_classes)
        ...         self.layer = torch.nn.Linear(4, num_classes)
        ...
        ...     def fuse(self, inputs, mask):  # inputs are zero where mask is False
        ...         fused = sum(inputs.values())
        ...         return HeadOutput(self.layer(fused), fused, fused.new_zeros(()))
        >>> features = {"text": torch.ones(5, 4), "image": torch.full((5, 4), torch.nan)}
        >>> Sum({"text": 4, "image": 4}, num_classes=2)(features).fused[0]
        tensor([1., 1., 1., 1.])

    Reference:
        The head contract is that of :class:`~robustfusion.HeadOutput`.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        modality_dropout: float = 0.0,
        min_modalities: int = 1,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=min_modalities)
        check_positive(num_classes, "num_classes")
        self.num_classes = num_classes
        register_identity(self, modalities=list(self.dims))
        check_between(modality_dropout, 0.0, 1.0, "modality_dropout")
        self.modality_dropout = modality_dropout

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> HeadOutput:
        """Fuse the available features; missing ones may hold anything."""
        return self.fuse(*make_safe(features, available, self.dims))

    @abstractmethod
    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Compute the output from vectors that are zero where ``mask`` (B, M) is False."""

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Return the cross-entropy plus the terms that need no labels."""
        return cross_entropy(output.logits, labels) + output.aux_loss

    def apply_modality_dropout(self, mask: Tensor) -> Tensor:
        """Hide modalities in training mode; the result says which remain, (B, M)."""
        return drop_modalities(mask, self.modality_dropout) if self.training else mask
