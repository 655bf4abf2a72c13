r"""The three tasks of a head: to predict one class, several labels, or numbers.

Every function takes ``outputs`` (..., C), what a head returns as logits, and the task:

- ``"multiclass"``: the outputs are logits. A target is the index of a class (B,), where −100 is
  ignored, or soft labels (B, C), the probabilities of the classes.
- ``"multilabel"``: the outputs are the logits of C labels. A target (B, C) is 0, 1 or a
  probability, and NaN or −1 where a label is not known.
- ``"regression"``: the outputs are C numbers of zero mean and unit variance over the training
  samples. A target is (B, C), or (B,) if C is 1, in the same units, and NaN where not known.

Fusion averages the outputs, whatever the task. All is computed in float32 or better.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion.functional import at_least_float32

Task = Literal["multiclass", "multilabel", "regression"]

IGNORED = -100  # The index of no class, as in torch.nn.functional.cross_entropy.
_FEW_OF_A_CLASS = 20  # a class with fewer held-out samples keeps its threshold
_MIN_VARIANCE = 1e-3  # Two numbers agree as if the residual variance were at least this.


def check_target(target: Tensor, outputs: Tensor, task: Task) -> None:
    """Raise unless a target fits the outputs (B, ..., C).

    Values are read on the CPU only, because elsewhere the host would have to wait for the device.

    Raises:
        ValueError: If task, shape or values do not fit; the message names a task that would.

    Example:
        >>> import torch
        >>> from robustfusion.tasks import check_target
        >>> check_target(torch.tensor([[1, 1]]), torch.zeros(1, 2), "multiclass")
        Traceback (most recent call last):
        ...
        ValueError: target (1, 2) of torch.int64 does not fit task='multiclass': use 'multilabel'
    """
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {get_args(Task)}, got {task!r}")
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    fitting = _fitting_tasks(target)
    if task not in fitting:
        soft = task == "multiclass" and target.is_floating_point() and target.ndim > 1
        raise ValueError(
            f"target {tuple(target.shape)} of {target.dtype} does not fit task={task!r}"
            f"{' (soft labels of a sample sum to 1)' if soft else ''}: use "
            + " or ".join(map(repr, fitting))
        )
    batch, classes = outputs.shape[0], outputs.shape[-1]
    one_dimensional = target.ndim == 1 and (task == "multiclass" or classes == 1)
    shape = (batch,) if one_dimensional else (batch, classes)
    if tuple(target.shape) != shape:
        raise ValueError(
            f"target must have shape {shape} for task={task!r}, got {tuple(target.shape)}"
        )
    if task == "multiclass" and one_dimensional and batch and _readable(target):
        low, high = (int(value) for value in target.aminmax())
        if 0 <= low <= high < classes:
            return
        wrong = target[(target != IGNORED) & ((target < 0) | (target >= classes))]
        if len(wrong):
            raise ValueError(
                f"target must be in [0, {classes}) or {IGNORED} to ignore a sample, got "
                f"{int(wrong[0])}"
            )


def _readable(target: Tensor) -> bool:
    return target.device.type == "cpu" and not torch.compiler.is_compiling()


def _fitting_tasks(target: Tensor) -> list[Task]:
    """Return the tasks that a target may belong to, by its dtype and values."""
    floating = target.is_floating_point()
    if target.ndim == 1:
        return ["regression"] if floating else ["multiclass"]
    if not _readable(target):
        return ["multiclass", "multilabel", "regression"] if floating else ["multilabel"]
    x = target.double()
    tasks: list[Task] = ["regression"]
    if (x.isnan() | (x == -1) | ((x >= 0) & (x <= 1))).all():
        tasks = ["multilabel", "regression"] if floating else ["multilabel"]
        if floating and (x >= 0).all() and ((x.sum(-1) - 1).abs() < 1e-3).all():
            tasks = ["multiclass", *tasks]
    return tasks


def sample_loss(
    outputs: Tensor,
    target: Tensor,
    task: Task,
    *,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Return the weighted loss of each sample, and what it counts in the mean.

    The loss is the cross-entropy, the binary cross-entropy averaged over the known labels, or the
    squared error averaged over the known numbers. A sample with an unknown target has loss and
    weight 0. The mean loss is ``loss.sum() / weight.sum()``. As in torch, class weights enter that
    weight if the target is the index of a class.

    Args:
        outputs: (B, ..., C). The target of a sample holds for all that is between B and C.
        target: As above.
        task: "multiclass", "multilabel" or "regression".
        class_weight: (C,), the weight of each class, label or number.
        sample_weight: (B,), the weight of each sample.
        label_smoothing: Share of the target that is distributed evenly over the classes, or over
            the two values of a label.

    Returns:
        The loss (B, ...) and the weight (B,).

    Raises:
        ValueError: If something does not fit; see :func:`check_target`.

    Example:
        >>> import torch
        >>> from robustfusion.tasks import sample_loss
        >>> target = torch.tensor([[1.0, 0.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> sample_loss(torch.zeros(3, 2), target, "multilabel")
        (tensor([0.6931, 0.6931, 0.0000]), tensor([1., 1., 0.]))
    """
    check_target(target, outputs, task)
    return checked_loss(outputs, target, task, class_weight, sample_weight, label_smoothing)


def checked_loss(
    outputs: Tensor,
    target: Tensor,
    task: Task,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss as :func:`sample_loss` does, of a target that was checked."""
    if not 0 <= label_smoothing <= 1 or (task == "regression" and label_smoothing):
        raise ValueError(
            f"label_smoothing must be in [0, 1], and 0 for regression, got {label_smoothing}"
        )
    x = at_least_float32(outputs)
    batch, *inner, classes = x.shape
    per_class = _weights(class_weight, "class_weight", (classes,), x)
    per_sample = _weights(sample_weight, "sample_weight", (batch,), x)
    if task == "multiclass":
        y = target.to(x.device).long() if target.ndim == 1 else target.to(x)
        repeated = _along(y, inner, y.shape[1:]).flatten(0, len(inner))
        losses = F.cross_entropy(
            x.flatten(0, -2),
            repeated,
            per_class,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        loss = losses.view(batch, *inner)
        if per_sample is not None:
            loss = loss * _along(per_sample, inner)
        if target.ndim > 1:
            return loss, x.new_ones(batch) if per_sample is None else per_sample
        weight = (y != IGNORED).to(x)
        if per_class is not None:
            weight = weight * per_class[y.clamp_min(0)]
        return loss, weight if per_sample is None else weight * per_sample
    per_class = x.new_ones(classes) if per_class is None else per_class
    weight = x.new_ones(batch) if per_sample is None else per_sample
    y = target.to(x).view(batch, classes)
    known = y >= 0 if task == "multilabel" else ~y.isnan()
    y = _along(y.where(known, 0.0), inner, [classes])
    if task == "multilabel":
        y = y * (1 - label_smoothing) + label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    else:
        losses = F.mse_loss(x, y, reduction="none")
    share = weight[:, None] * per_class * known / known.sum(1, keepdim=True).clamp_min(1)
    return (losses * _along(share, inner, [classes])).sum(-1), weight * known.any(1)


def _weights(
    weights: Tensor | None, name: str, shape: tuple[int, ...], like: Tensor
) -> Tensor | None:
    if weights is None:
        return None
    if weights.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(weights.shape)}")
    return weights.to(like)


def _along(x: Tensor, inner: Sequence[int], rest: Sequence[int] = ()) -> Tensor:
    """Repeat (B, *rest) along the dimensions between, (B, *inner, *rest)."""
    return x.reshape(len(x), *[1] * len(inner), *rest).expand(len(x), *inner, *rest)


def agreement(first: Tensor, second: Tensor, task: Task, variance: Tensor | None = None) -> Tensor:
    r"""Return how much two predictions speak for belonging to the same sample, (..., C) -> (...).

    If two modalities are independent given the target, this is the log-odds that they belong to
    the same sample: :math:`\log C \sum_c p(c) q(c)` for classes, and its mean over the labels with
    two values each. For numbers it compares the difference of two predictions with residual
    variance :math:`v` to that of two random targets,
    :math:`\log \mathcal N(x - y; 0, 2 v) - \log \mathcal N(x - y; 0, 2)`, averaged over them.

    Args:
        first: (..., C), outputs of one modality.
        second: (..., C), outputs of the other modalities.
        task: "multiclass", "multilabel" or "regression".
        variance: (C,), the residual variance of a number; without it numbers agree by 0.

    Example:
        >>> import torch
        >>> from robustfusion.tasks import agreement
        >>> sure = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
        >>> agreement(sure, sure.flip(0), "multiclass")[0] < agreement(sure, sure, "multiclass")[0]
        tensor(True)
    """
    x, y = at_least_float32(first), at_least_float32(second)
    if task == "multiclass":
        return (x.log_softmax(-1) + y.log_softmax(-1)).logsumexp(-1) + math.log(x.shape[-1])
    if task == "multilabel":
        yes, no = F.logsigmoid(x) + F.logsigmoid(y), F.logsigmoid(-x) + F.logsigmoid(-y)
        return (torch.logaddexp(yes, no) + math.log(2)).mean(-1)
    if variance is None:
        return x.new_zeros(x.shape[:-1])
    v = variance.to(x).clamp(_MIN_VARIANCE, 1.0)
    return -0.5 * (v.log() + (1 / v - 1) * (x - y).square() / 2).mean(-1)


def predict(outputs: Tensor, task: Task, thresholds: Tensor | None = None) -> Tensor:
    r"""Return the class (...), the labels (..., C) as bool, or the numbers (..., C).

    Args:
        outputs: (..., C).
        task: "multiclass", "multilabel" or "regression".
        thresholds: (C,), positive. A class is predicted if its probability divided by its
            threshold is the largest, a label if its probability exceeds its threshold; by default
            the most probable class and every label above one half.

    Example:
        >>> import torch
        >>> from robustfusion.tasks import predict
        >>> predict(torch.tensor([[2.0, -1.0]]), "multilabel")
        tensor([[ True, False]])
    """
    if task == "regression":
        return outputs
    if task == "multilabel":
        return outputs.sigmoid() > (0.5 if thresholds is None else thresholds.to(outputs))
    if thresholds is not None:
        outputs = outputs.log_softmax(-1) - thresholds.to(outputs).log()
    return outputs.argmax(-1)


def confidence(outputs: Tensor, task: Task) -> Tensor:
    """Return the probability of the predicted class (...) or of each predicted label (..., C).

    Raises:
        ValueError: For regression, whose uncertainty is an interval; see :func:`fit_interval`.
    """
    if task == "regression":
        raise ValueError("confidence needs task='multiclass' or 'multilabel', got 'regression'")
    if task == "multilabel":
        return at_least_float32(outputs).abs().sigmoid()
    return at_least_float32(outputs).softmax(-1).amax(-1)


def fit_temperature(outputs: Tensor, target: Tensor, task: Task) -> Tensor:
    """Return the T in [1/20, 20] for which ``outputs / T`` have the smallest mean loss, a scalar.

    Raises:
        ValueError: For regression, which has no temperature; see :func:`fit_interval`.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if task == "regression":
        raise ValueError("temperature needs task='multiclass' or 'multilabel', got 'regression'")
    grid = torch.logspace(-1.3, 1.3, 301, device=outputs.device)
    losses = [sample_loss(outputs / t, target, task)[0].sum() for t in grid]
    return grid[torch.stack(losses).argmin()]


def fit_interval(outputs: Tensor, target: Tensor, level: float = 0.9) -> Tensor:
    r"""Return the half-width of the interval that covers a share ``level`` of the numbers, (C,).

    If held-out and new samples are exchangeable, :math:`P(|x - y| \le w) \ge` ``level``. Infinite
    with fewer than ``level / (1 - level)`` known numbers, too few for such a claim.

    Args:
        outputs: (N, C), predictions of held-out samples.
        target: (N, C), or (N,) if C is 1; NaN where not known.
        level: Share of the numbers to cover, between 0 and 1.

    Example:
        >>> import torch
        >>> from robustfusion.tasks import fit_interval
        >>> fit_interval(torch.zeros(9, 1), torch.arange(1.0, 10), level=0.5)
        tensor([5.])

    Reference:
        Split conformal prediction, https://arxiv.org/abs/2107.07511.
    """
    check_target(target, outputs, "regression")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    errors = (at_least_float32(outputs) - target.to(outputs).view_as(outputs)).abs()
    widths = []
    for column in errors.unbind(1):
        ranked = column[~column.isnan()].sort().values
        rank = math.ceil(level * (len(ranked) + 1))
        widths.append(ranked[rank - 1] if rank <= len(ranked) else column.new_tensor(math.inf))
    return torch.stack(widths)


def fit_thresholds(outputs: Tensor, target: Tensor, task: Task) -> Tensor:
    """Return the thresholds with the highest macro-F1 on held-out samples, (C,).

    A class or label with fewer than 20 held-out samples keeps its threshold; of classes, so does
    the most frequent one. All keep theirs (1 for a class, 0.5 for a label) unless, over five
    folds, thresholds fitted to the others have a higher macro-F1. See :func:`predict` for what a
    threshold means.

    Args:
        outputs: (N, C), logits of held-out samples.
        target: As above.
        task: "multiclass" or "multilabel".

    Raises:
        ValueError: For regression, or if the target does not fit.
    """
    if task == "regression":
        raise ValueError("thresholds need task='multiclass' or 'multilabel', got 'regression'")
    check_target(target, outputs, task)
    scores = at_least_float32(outputs)
    if task == "multiclass":
        y = target.argmax(1) if target.ndim > 1 else target
        scores, y = scores.log_softmax(-1)[y != IGNORED], y[y != IGNORED]
        truth = F.one_hot(y, outputs.shape[-1]).bool()
        known = torch.ones_like(truth)
    else:
        truth, known = target > 0.5, target >= 0
    fold = torch.arange(len(scores), device=scores.device) % 5
    left_out = torch.zeros_like(scores)
    for number in range(5):
        train, test = fold != number, fold == number
        left_out[test] = _search_shift(scores[train], truth[train], known[train], task)
    before = _macro_f1(scores, truth, known, task)
    shift = torch.zeros_like(scores[:1].sum(0))
    if _macro_f1(scores - left_out, truth, known, task) > before:
        shift = _search_shift(scores, truth, known, task)
    return shift.exp() if task == "multiclass" else shift.sigmoid()


def _search_shift(scores: Tensor, truth: Tensor, known: Tensor, task: Task) -> Tensor:
    """Return what to subtract from the scores, one class after the other, (C,)."""
    shift = torch.zeros(scores.shape[1], device=scores.device, dtype=scores.dtype)
    count = (truth & known).sum(0)
    enough = count >= _FEW_OF_A_CLASS
    if task == "multiclass":  # only ratios of thresholds count: that of the largest class is fixed
        enough = enough & (torch.arange(len(count), device=count.device) != count.argmax())
    best = _macro_f1(scores, truth, known, task)
    for column in enough.nonzero().flatten().tolist() * 2:
        for value in torch.linspace(-2, 2, 21).tolist():
            trial = shift.clone()
            trial[column] = value
            f1 = _macro_f1(scores - trial, truth, known, task)
            if f1 > best:
                best, shift = f1, trial
    return shift


def _macro_f1(scores: Tensor, truth: Tensor, known: Tensor, task: Task) -> float:
    """Return the F1 of each class or label, averaged."""
    chosen = scores > 0
    if task == "multiclass":
        chosen = F.one_hot(scores.argmax(-1), scores.shape[-1]).bool()
    hits = (chosen & truth & known).sum(0)
    both = ((chosen & known).sum(0) + (truth & known).sum(0)).clamp_min(1)
    return float((2 * hits / both).mean())
