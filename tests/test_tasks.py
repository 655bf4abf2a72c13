"""Losses, agreement, prediction and calibration of each task, against torch and loops."""

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from robustfusion.tasks import (
    IGNORED,
    Task,
    agreement,
    check_target,
    confidence,
    fit_interval,
    fit_temperature,
    predict,
    sample_loss,
)

TASKS: tuple[Task, ...] = get_args(Task)
BATCH, CLASSES = 7, 4
SOFT = torch.rand(BATCH, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(-1)


def mean(outputs: Tensor, target: Tensor, task: Task, **options: Any) -> Tensor:
    loss, weight = sample_loss(outputs, target, task, **options)
    return loss.sum() / weight.sum()


def targets(task: Task) -> Tensor:
    if task == "multiclass":
        return torch.arange(BATCH) % CLASSES
    return torch.rand(BATCH, CLASSES).round() if task == "multilabel" else torch.randn(7, CLASSES)


# ------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_indices_are_torchs_cross_entropy(weighted: bool, smoothing: float) -> None:
    outputs, target = torch.randn(BATCH, CLASSES), targets("multiclass")
    target[3] = IGNORED
    weight = torch.rand(CLASSES) if weighted else None
    oracle = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    got = mean(outputs, target, "multiclass", class_weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(got, oracle(outputs, target))
    none = nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction="none")
    loss, _ = sample_loss(
        outputs, target, "multiclass", class_weight=weight, label_smoothing=smoothing
    )
    assert torch.equal(loss, none(outputs, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_labels_are_torchs_cross_entropy(weighted: bool, smoothing: float) -> None:
    outputs, weight = torch.randn(BATCH, CLASSES), torch.rand(CLASSES) if weighted else None
    oracle = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    got = mean(outputs, SOFT, "multiclass", class_weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(got, oracle(outputs, SOFT))


def test_one_hot_soft_labels_are_indices() -> None:
    outputs, target = torch.randn(BATCH, CLASSES), targets("multiclass")
    soft = F.one_hot(target, CLASSES).float()
    torch.testing.assert_close(
        mean(outputs, soft, "multiclass"), mean(outputs, target, "multiclass")
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_labels_are_torchs_binary_cross_entropy(weighted: bool) -> None:
    outputs, target = torch.randn(BATCH, CLASSES), targets("multilabel")
    weight = torch.rand(CLASSES) if weighted else None
    expected = nn.BCEWithLogitsLoss(weight)(outputs, target)
    for kind in (target, target.bool(), target.long()):
        torch.testing.assert_close(
            mean(outputs, kind, "multilabel", class_weight=weight), expected
        )
    smoothed = nn.BCEWithLogitsLoss()(outputs, 0.9 * target + 0.05)
    torch.testing.assert_close(mean(outputs, target, "multilabel", label_smoothing=0.1), smoothed)


def test_numbers_are_torchs_squared_error() -> None:
    outputs, target = torch.randn(BATCH, CLASSES), targets("regression")
    torch.testing.assert_close(mean(outputs, target, "regression"), F.mse_loss(outputs, target))
    one = mean(outputs[:, :1], target[:, 0], "regression")
    torch.testing.assert_close(one, F.mse_loss(outputs[:, 0], target[:, 0]))


@pytest.mark.parametrize("task", ["multilabel", "regression"])
@pytest.mark.parametrize("unknown", [math.nan, -1.0])
def test_unknown_targets_count_for_nothing(task: Task, unknown: float) -> None:
    if task == "regression":
        unknown = math.nan  # -1 is a number like any other
    outputs, target = torch.randn(BATCH, CLASSES, requires_grad=True), targets(task)
    target[0], target[1, 2:] = unknown, unknown
    loss, weight = sample_loss(outputs, target, task)
    oracle = F.mse_loss if task == "regression" else F.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss[1], oracle(outputs[1, :2], target[1, :2]))
    assert loss[0] == weight[0] == 0
    assert (weight[1:] == 1).all()
    (gradient,) = torch.autograd.grad(loss.sum(), outputs)
    assert (gradient[0] == 0).all()
    assert (gradient[1, 2:] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_weight_is_the_number_of_copies(task: Task) -> None:
    outputs, target = torch.randn(BATCH, CLASSES), targets(task)
    copies = torch.tensor([1, 2, 0, 3, 1, 1, 2])
    per_class = torch.rand(CLASSES)
    more, again = (x.repeat_interleave(copies, 0) for x in (outputs, target))
    got = mean(outputs, target, task, sample_weight=copies.float(), class_weight=per_class)
    expected = mean(more, again, task, class_weight=per_class)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("soft", [False, True])
def test_dimensions_between_share_the_target(task: Task, soft: bool) -> None:
    outputs = torch.randn(BATCH, 3, 2, CLASSES)
    target = SOFT if soft and task != "regression" else targets(task)
    weights: Any = {"class_weight": torch.rand(CLASSES), "sample_weight": torch.rand(BATCH)}
    loss, weight = sample_loss(outputs, target, task, **weights)
    assert loss.shape == (BATCH, 3, 2)
    for k in range(3):
        for half in range(2):
            expected, same = sample_loss(outputs[:, k, half], target, task, **weights)
            torch.testing.assert_close(loss[:, k, half], expected)
            torch.testing.assert_close(weight, same)


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_and_empty_batches(task: Task) -> None:
    outputs, target = torch.randn(BATCH, CLASSES).bfloat16(), targets(task)
    assert sample_loss(outputs, target, task)[0].dtype == torch.float32
    loss, weight = sample_loss(outputs[:0], target[:0], task)
    assert loss.shape == weight.shape == (0,)


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_compiles_without_a_graph_break(task: Task) -> None:
    outputs, target = torch.randn(BATCH, 3, CLASSES), targets(task)
    compiled = torch.compile(sample_loss, fullgraph=True, backend="eager")
    for got, expected in zip(
        compiled(outputs, target, task), sample_loss(outputs, target, task), strict=True
    ):
        torch.testing.assert_close(got, expected)


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("task", "target", "fitting"),
    [
        ("multiclass", torch.tensor([[1, 0, 1, 1]] * BATCH), "'multilabel'"),
        ("multiclass", torch.tensor([[1.0, 0, 1, 1]] * BATCH), "'multilabel' or 'regression'"),
        ("multiclass", torch.full((BATCH,), 0.5), "'regression'"),
        ("multiclass", torch.full((BATCH, CLASSES), 12.5), "'regression'"),
        ("multilabel", torch.arange(BATCH) % CLASSES, "'multiclass'"),
        ("multilabel", torch.full((BATCH, CLASSES), 2.5), "'regression'"),
        ("multilabel", torch.full((BATCH, CLASSES), 2), "'regression'"),
        ("regression", torch.arange(BATCH), "'multiclass'"),
        ("regression", torch.ones(BATCH, CLASSES, dtype=torch.bool), "'multilabel'"),
    ],
)
def test_a_target_of_another_kind_names_its_task(task: Task, target: Tensor, fitting: str) -> None:
    with pytest.raises(ValueError, match=f"does not fit task='{task}'.*: use {fitting}$"):
        check_target(target, torch.zeros(BATCH, CLASSES), task)


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("multiclass", torch.tensor([0, 1, 4]), r"in \[0, 4\) or -100 to ignore .*got 4"),
        ("multiclass", torch.tensor([0, -1, 2]), "got -1"),
        ("multiclass", torch.tensor([0, 1]), r"shape \(3,\) for task='multiclass', got \(2,\)"),
        ("multilabel", torch.zeros(3, 2), r"shape \(3, 4\) .*got \(3, 2\)"),
        ("regression", torch.zeros(3), r"shape \(3, 4\) .*got \(3,\)"),
        ("ordinal", torch.zeros(3, 4), "task must be one of"),
    ],
)
def test_shapes_and_values_are_checked(task: Any, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_target(target, torch.zeros(3, CLASSES), task)


def test_arguments_are_checked() -> None:
    outputs, target = torch.zeros(BATCH, CLASSES), targets("multiclass")
    with pytest.raises(TypeError, match=r"target must be a torch\.Tensor, got list"):
        check_target([0], outputs, "multiclass")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"class_weight must have shape \(4,\), got \(7,\)"):
        sample_loss(outputs, target, "multiclass", class_weight=torch.ones(BATCH))
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(7,\), got \(4,\)"):
        sample_loss(outputs, target, "multiclass", sample_weight=torch.ones(CLASSES))
    with pytest.raises(ValueError, match="label_smoothing"):
        sample_loss(outputs, outputs, "regression", label_smoothing=0.1)
    for function in (confidence, lambda x, task: fit_temperature(x, x, task)):
        with pytest.raises(ValueError, match="got 'regression'"):
            function(outputs, "regression")


# ---------------------------------------------------------------------------------- agreement


def test_agreement_of_classes_and_labels_against_sums() -> None:
    x, y = torch.randn(5, CLASSES), torch.randn(5, CLASSES)
    p, q = x.softmax(-1), y.softmax(-1)
    torch.testing.assert_close(agreement(x, y, "multiclass"), (CLASSES * (p * q).sum(-1)).log())
    p, q = x.sigmoid(), y.sigmoid()
    expected = (2 * (p * q + (1 - p) * (1 - q))).log().mean(-1)
    torch.testing.assert_close(agreement(x, y, "multilabel"), expected)
    # One label is a choice between two classes.
    two = [torch.stack([v[:, 0], torch.zeros(5)], dim=-1) for v in (x, y)]
    torch.testing.assert_close(
        agreement(x[:, :1], y[:, :1], "multilabel"), agreement(two[0], two[1], "multiclass")
    )


def test_agreement_of_numbers_is_a_ratio_of_densities() -> None:
    x, y, variance = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0.2, 0.5, 1.0])
    close = Normal(torch.zeros(3), (2 * variance).sqrt()).log_prob(x - y)  # type: ignore[no-untyped-call]
    random = Normal(0.0, math.sqrt(2)).log_prob(x - y)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(agreement(x, y, "regression", variance), (close - random).mean(-1))
    assert (agreement(x, y, "regression") == 0).all()
    assert (agreement(x, y, "regression", torch.ones(3)) == 0).all()
    assert (agreement(x, y, "regression", torch.zeros(3))).isfinite().all()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_predictions_without_information_agree_by_zero(task: Task) -> None:
    uniform, sharp = torch.zeros(2, CLASSES), 50 * torch.randn(2, CLASSES)
    torch.testing.assert_close(agreement(uniform, sharp, task), torch.zeros(2))
    assert agreement(1e4 * sharp, -1e4 * sharp, task).isfinite().all()


# ------------------------------------------------------------------- prediction and calibration


def test_predictions() -> None:
    outputs = torch.tensor([[2.0, 1.0, -3.0], [-1.0, -2.0, -0.5]])
    assert predict(outputs, "multiclass").tolist() == [0, 2]
    assert predict(outputs, "multilabel").tolist() == [[True, True, False], [False] * 3]
    assert torch.equal(predict(outputs, "regression"), outputs)
    thresholds = torch.tensor([0.9, 0.2, 0.3])
    expected = (outputs.softmax(-1) / thresholds).argmax(-1)
    assert torch.equal(predict(outputs, "multiclass", thresholds), expected)
    assert expected.tolist() != predict(outputs, "multiclass").tolist()
    expected = outputs.sigmoid() > thresholds
    assert torch.equal(predict(outputs, "multilabel", thresholds), expected)


def test_confidence_is_the_probability_of_the_prediction() -> None:
    outputs = torch.randn(5, CLASSES)
    assert torch.equal(confidence(outputs, "multiclass"), outputs.softmax(-1).amax(-1))
    p = outputs.sigmoid()
    torch.testing.assert_close(confidence(outputs, "multilabel"), torch.maximum(p, 1 - p))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_temperature_undoes_a_scale(task: Task) -> None:
    torch.manual_seed(0)
    outputs = 2 * torch.randn(4000, CLASSES)
    if task == "multiclass":
        target = outputs.softmax(-1).multinomial(1).squeeze(1)
        target[::9] = IGNORED
    else:
        target = torch.bernoulli(outputs.sigmoid())
        target[::9, 0] = math.nan
    got = float(fit_temperature(3 * outputs, target, task))
    assert got == pytest.approx(3.0, rel=0.1)


def test_intervals_cover_new_samples_at_their_level() -> None:
    torch.manual_seed(0)
    errors = torch.randn(20_000, 2) * torch.tensor([1.0, 3.0])
    target = errors.clone()
    target[:10_000:3, 1] = math.nan
    width = fit_interval(torch.zeros(10_000, 2), target[:10_000], level=0.8)
    covered = (target[10_000:].abs() <= width).float().mean(0)
    torch.testing.assert_close(covered, torch.full((2,), 0.8), atol=0.015, rtol=0)
    assert width[1] > 2 * width[0]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_intervals_of_few_samples_keep_their_promise(level: float) -> None:
    torch.manual_seed(0)
    covered = []
    for _ in range(600):
        target = torch.randn(31)
        width = fit_interval(torch.zeros(30, 1), target[:30], level)
        covered.append(float(target[30].abs() <= width))
    assert sum(covered) / len(covered) > level - 0.04


def test_too_few_samples_give_an_infinite_interval() -> None:
    assert fit_interval(torch.zeros(8, 1), torch.zeros(8), level=0.9).isinf().all()
    assert fit_interval(torch.zeros(9, 1), torch.zeros(9), level=0.9) == 0
    assert fit_interval(torch.zeros(9, 1), torch.full((9,), math.nan)).isinf().all()
    with pytest.raises(ValueError, match="level"):
        fit_interval(torch.zeros(9, 1), torch.zeros(9), level=1.0)
