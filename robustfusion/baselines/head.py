"""What every compared head shares: how it is built, called and trained."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import TypeVar

from robustfusion._inputs import make_safe
from robustfusion._validation import check_between, check_dims, check_labels, check_positive
from robustfusion.functional import at_least_float32, masked_mean
from robustfusion.output import HeadOutput


class _Learnable(Protocol):
    @property
    def logits(self) -> Tensor: ...
    @property
    def aux_loss(self) -> Tensor: ...


Output = TypeVar("Output", bound=_Learnable, default=HeadOutput)


def drop_modalities(available: Tensor, probability: float) -> Tensor:
    """Hide each available modality with the given probability, and leave one; (B, M).

    What is missing stays missing. Where chance hides all that a row has, the luckiest stays.
    """
    luck = torch.rand(available.shape, device=available.device).where(available, -1.0)
    kept = (luck >= probability) & available
    luckiest = (luck == luck.amax(dim=1, keepdim=True)) & available
    return torch.where(kept.any(dim=1, keepdim=True), kept, luckiest)


def cross_entropy(logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
    """Cross-entropy averaged over the rows to keep; (B, C), (B,), (B,) -> ()."""
    check_labels(labels, *logits.shape)
    losses = F.cross_entropy(at_least_float32(logits), labels, reduction="none")
    return masked_mean(losses, keep)


def squared_error(guess: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Mean squared error of the rows to keep; nothing pulls the target. (..., D) twice, (...)."""
    difference = at_least_float32(guess) - at_least_float32(target.detach())
    return masked_mean(difference.square().mean(dim=-1), keep)


def zero_loss(logits: Tensor) -> Tensor:
    """A scalar zero on the device of ``logits``, for heads without a label-free term."""
    return at_least_float32(logits).new_zeros(())


class BaselineHead(nn.Module, ABC, Generic[Output]):
    """A compared method: one vector per modality in, class scores out.

    ``forward`` checks what it is given, zeroes what is missing, and only then calls ``fuse``, all
    that a head of your own must define: no head can look at what a mask hides. As in ``DRFHead``,
    an available row with NaN, infinity or a value beyond 1e9 counts as missing. A head's docstring
    says what it kept of its source, replaced, could not verify, and does with what is missing;
    arguments, shapes and errors it names only where it adds to these. Where a head takes them,
    ``hidden_features`` is the width F of its hidden layers and ``dropout`` comes after each; the
    defaults of these two and of ``modality_dropout`` are ours, for the caller to tune.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        modality_dropout: Probability of hiding a modality of a training row; one always stays.
        fewest: Fewest modalities that ``dims`` may name.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C); ``fused``: (B, F); ``aux_loss``: (), zero in most heads
        - more of an output: M columns are the modalities in the order of ``dims``

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
        fewest: int = 1,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=fewest)
        check_positive(num_classes, "num_classes")
        check_between(modality_dropout, 0.0, 1.0, "modality_dropout")
        self.modality_dropout = modality_dropout

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> Output:
        """Fuse what is there; what is missing may hold anything."""
        return self.fuse(*make_safe(features, available, self.dims))

    @abstractmethod
    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> Output:
        """From vectors that are zero where ``mask`` (B, M) is False to the head's output."""

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Cross-entropy, and what needs no labels."""
        return cross_entropy(output.logits, labels) + output.aux_loss

    def hide_some(self, mask: Tensor) -> Tensor:
        """Modality dropout in training mode: what of the mask is shown, (B, M)."""
        return drop_modalities(mask, self.modality_dropout) if self.training else mask
