"""Compute what all heads share: the loss, the prediction, and the units of numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast, get_args

import torch
from torch import Tensor, nn

from robustfusion._state import keep_float32, snapshot
from robustfusion._validation import check_positive
from robustfusion.distributed import gather_rows
from robustfusion.functional import at_least_float32
from robustfusion.tasks import Task, check_target, checked_loss, predict

# Standard deviations smaller than this share of the mean are rounding errors of a constant.
_RELATIVE_STD, _MIN_STD = 1e-6, 1e-12
_NO_WEIGHT = 1e-30  # What losses of 0 are divided by if no sample has any weight.


class Supervision(NamedTuple):
    """The target of a batch, and how its samples count."""

    target: Tensor
    task: Task
    class_weight: Tensor | None = None
    sample_weight: Tensor | None = None
    label_smoothing: float = 0.0
    reduction: Literal["mean", "none"] = "mean"

    def losses(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample and its weight, (B, ..., C) -> (B, ...), (B,)."""
        return checked_loss(
            outputs,
            self.target,
            self.task,
            self.class_weight,
            self.sample_weight,
            self.label_smoothing,
        )

    def plain_losses(self, outputs: Tensor) -> Tensor:
        """Return the loss of each sample without weights and smoothing."""
        return checked_loss(outputs, self.target, self.task, None, None, 0.0)[0]

    def reduce(self, losses: Tensor, weight: Tensor, keep: Tensor | None = None) -> Tensor:
        """Average over the samples to keep, and sum over the columns; (B,) or (B, M), (B,).

        Without reduction the losses of a sample are summed, (B,).
        """
        weight = weight.view(-1, *[1] * (losses.ndim - 1)).expand_as(losses)
        if keep is not None:
            losses, weight = losses.where(keep, 0.0), weight * keep
        if self.reduction == "none":
            return losses.flatten(1).sum(1) if losses.ndim > 1 else losses
        mean = losses.sum(0) / weight.sum(0).clamp_min(_NO_WEIGHT)
        return mean.sum() if mean.ndim else mean

    def mean(self, outputs: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the mean loss over the samples to keep; (B, C) or (B, M, C)."""
        return self.reduce(*self.losses(outputs), keep)


def loss_options(
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    label_smoothing: float,
    reduction: Literal["mean", "none"],
) -> dict[str, Any]:
    """Return the options of a loss that are not the defaults: a head may know no others."""
    options: dict[str, Any] = {}
    if class_weight is not None:
        options["class_weight"] = class_weight
    if sample_weight is not None:
        options["sample_weight"] = sample_weight
    if label_smoothing:
        options["label_smoothing"] = label_smoothing
    if reduction != "mean":
        options["reduction"] = reduction
    return options


class TaskModule(nn.Module):
    """A module that predicts one class, several labels or numbers."""

    thresholds: Tensor

    def __init__(self, num_classes: int, task: Task) -> None:
        super().__init__()
        check_positive(num_classes, "num_classes")
        if task not in get_args(Task):
            raise ValueError(f"task must be one of {get_args(Task)}, got {task!r}")
        self.num_classes = num_classes
        self.task: Task = task
        if task != "regression":
            default = 1.0 if task == "multiclass" else 0.5
            self.register_buffer("thresholds", torch.full((num_classes,), default))

    def register_patterns(self, candidates: int) -> None:
        """Add what calibration finds for each pattern of availability, and for all others."""
        self.register_buffer("temperature", torch.ones(candidates + 1))
        if self.task == "regression":
            width = torch.full((candidates + 1, self.num_classes), torch.inf)
            self.register_buffer("interval_width", width)

    def predict(self, output: Any) -> Tensor:
        """Return the class (B,), the labels (B, C) as bool, or the numbers (B, C).

        Classes and labels are those of :func:`robustfusion.tasks.predict`, with the thresholds
        that :func:`~robustfusion.calibrate` found if it was asked for them.
        """
        thresholds = None if self.task == "regression" else self.thresholds
        return predict(output.logits, self.task, thresholds)

    def interval(self, output: Any) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends of the interval of each number, (B, C) each.

        After :func:`~robustfusion.calibrate` it covers 90 % of the numbers of new samples with the
        same modalities, if they are like the held-out ones. Before, and with fewer than 9 held-out
        samples, it is infinite.

        Raises:
            ValueError: Unless the task is regression and the head is one that ``calibrate``
                calibrates for each pattern of availability.
        """
        part = cast("Any", self)
        if not hasattr(part, "interval_width"):
            raise ValueError(
                "interval needs a DRFHead or NeighborVoteHead with task='regression', got "
                f"{type(self).__name__} with task={self.task!r}"
            )
        observed = torch.stack([q > -torch.inf for q in output.log_quality.values()], dim=1)
        width = part.interval_width[part.candidates.pattern(observed)]
        return output.logits - width, output.logits + width

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # States of robustfusion 0.2 have no thresholds.
        if self.task != "regression" and any(key.startswith(prefix) for key in state_dict):
            state_dict.setdefault(f"{prefix}thresholds", self.thresholds.detach().clone())
        super()._load_from_state_dict(state_dict, prefix, *rest)


class TaskHead(TaskModule, ABC):
    """A head with a loss. Regression outputs numbers in the units of the targets.

    Inside, numbers have zero mean and unit variance over the training samples. ``loss`` learns
    their moments in training mode, from the targets on all ranks of a distributed run.
    """

    supported_tasks: ClassVar[tuple[Task, ...]] = get_args(Task)
    target_mean: Tensor
    target_std: Tensor
    target_count: Tensor

    def __init__(self, num_classes: int, task: Task) -> None:
        super().__init__(num_classes, task)
        if task not in self.supported_tasks:
            supported = " or ".join(map(repr, self.supported_tasks))
            raise ValueError(f"task of a {type(self).__name__} must be {supported}, got {task!r}")
        if task == "regression":
            self.register_buffer("target_mean", torch.zeros(num_classes))
            self.register_buffer("target_std", torch.ones(num_classes))
            self.register_buffer("target_count", torch.zeros(num_classes, dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.task == "regression":
            fn = keep_float32(fn, self.target_mean, self.target_std)
        return cast("Self", super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def loss(
        self,
        output: Any,
        target: Tensor,
        *,
        class_weight: Tensor | None = None,
        sample_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the training objective, with ``output.aux_loss`` unless not reduced.

        Args:
            output: What ``forward`` returned.
            target: The index of a class (B,), −100 to ignore a sample, or soft labels (B, C); for
                several labels 0, 1 or a probability (B, C), NaN or −1 where not known; for
                regression numbers (B, C), or (B,) if C is 1, NaN where not known.
            class_weight: (C,), the weight of each class, label or number.
            sample_weight: (B,), the weight of each sample.
            label_smoothing: Share of the target that is distributed evenly over the classes, or
                over the two values of a label.
            reduction: "mean" over the weights, (), or "none", the loss of each sample, (B,).

        Raises:
            ValueError: If something does not fit; a target of another task names that task.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
        check_target(target, output.logits, self.task)
        target = target.to(output.logits.device)
        if self.task == "regression":
            target = self.standardize_target(target)
        supervision = Supervision(
            target, self.task, class_weight, sample_weight, label_smoothing, reduction
        )
        loss = self.supervised_loss(output, supervision)
        return loss if reduction == "none" else loss + output.aux_loss

    @abstractmethod
    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the reduced loss of all that targets supervise."""

    def scores(self, output: Any) -> Tensor:
        """Return what the network computed, before it got the units of the targets, (B, C)."""
        scores: Tensor = output.logits
        return output.extras["scores"] if self.task == "regression" else scores

    def in_target_units(self, outputs: Tensor) -> Tensor:
        """Return what a network computes in the units of the targets, (..., C)."""
        if self.task != "regression":
            return outputs
        mean, std = (
            snapshot(x, training=self.training and torch.is_grad_enabled())
            for x in (self.target_mean, self.target_std)
        )
        return outputs * std.to(outputs.dtype) + mean.to(outputs.dtype)

    @torch.no_grad()
    def standardize_target(self, target: Tensor) -> Tensor:
        """Return numbers in units of their standard deviation; training first learns from them.

        (N, C), or (N,) if C is 1, to (N, C).
        """
        target = at_least_float32(target).view(-1, self.num_classes)
        if self.training:
            self._observe(target)
        return (target - self.target_mean) / self._scale()

    def _scale(self) -> Tensor:
        smallest = (_RELATIVE_STD * self.target_mean.abs()).clamp_min(_MIN_STD)
        return torch.maximum(self.target_std, smallest)

    def _observe(self, target: Tensor) -> None:
        """Merge the moments of a batch into those of all batches before."""
        everyone = torch.ones(len(target), dtype=torch.bool, device=target.device)
        rows, _ = gather_rows(target, everyone)
        known = ~rows.isnan()
        number, count = known.sum(0), self.target_count
        mean = rows.where(known, 0.0).sum(0) / number.clamp_min(1)
        square = (rows - mean).where(known, 0.0).square().sum(0)
        total = count + number
        share = number / total.clamp_min(1)
        gap = mean - self.target_mean
        square = square + count * (self.target_std.square() + share * gap.square())
        std = (square / total.clamp_min(1)).sqrt()
        self.target_mean.add_((share * gap).to(self.target_mean.dtype))
        self.target_std.copy_(torch.where(total > 0, std.to(self.target_std), self.target_std))
        self.target_count.copy_(total)
