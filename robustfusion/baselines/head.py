"""The base of every baseline: how it is built, called and trained."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion._identity import register_identity
from robustfusion._inputs import make_safe
from robustfusion._task_head import Supervision, TaskHead
from robustfusion._validation import check_between, check_dims, check_labels
from robustfusion.functional import at_least_float32, masked_mean
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task


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


class BaselineHead(TaskHead, ABC):
    """A method to compare with: it takes one vector per modality and predicts what ``task`` says.

    ``forward`` checks its inputs, sets missing features to zero and only then calls ``fuse``, the
    one method that a subclass must define, so that no head can see what a mask hides. Features
    with NaN, infinity or a value beyond 1e13 count as missing. The docstring of a head says what
    it keeps of its source, replaces, could not verify, and does with missing modalities. Where a
    head takes them, ``hidden_features`` is the width F of the hidden layers and ``dropout``
    follows each of them. These and ``modality_dropout`` have defaults of ours: tune them on your
    data.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number C of classes, labels or numbers.
        task: "multiclass", "multilabel" or "regression". Methods that make no sense for a task
            refuse it.
        modality_dropout: Probability of hiding a modality of a training sample; one always stays.
        min_modalities: Smallest number of modalities that ``dims`` may name.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - ``logits``: (B, C), for regression in the units of the targets; ``fused``: (B, F)
        - ``aux_loss``: (), zero in most heads
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
        task: Task = "multiclass",
        modality_dropout: float = 0.0,
        min_modalities: int = 1,
    ) -> None:
        super().__init__(num_classes, task)
        self.dims = check_dims(dims, at_least=min_modalities)
        register_identity(self, modalities=list(self.dims), task=task)
        check_between(modality_dropout, 0.0, 1.0, "modality_dropout")
        self.modality_dropout = modality_dropout

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> HeadOutput:
        """Fuse the available features; missing ones may hold anything."""
        output = self.fuse(*make_safe(features, available, self.dims))
        if self.task != "regression":
            return output
        return output._replace(
            logits=self.in_target_units(output.logits),
            extras={**output.extras, "scores": output.logits},
        )

    @abstractmethod
    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Compute the output from vectors that are zero where ``mask`` (B, M) is False."""

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the mean loss of the prediction."""
        return supervision.mean(self.scores(output))

    def apply_modality_dropout(self, mask: Tensor) -> Tensor:
        """Hide modalities in training mode; the result says which remain, (B, M)."""
        return drop_modalities(mask, self.modality_dropout) if self.training else mask
