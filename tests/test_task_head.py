"""The loss, the units and the prediction that all heads share, for each task."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion import DRFHead, NeighborVoteHead, PaperDRFHead, baselines
from robustfusion.tasks import Task, sample_loss

DIMS = {2: {"image": 3, "text": 4}, 3: {"image": 3, "text": 4, "audio": 5}}
TASKS: tuple[Task, ...] = get_args(Task)
ALL_TASKS: dict[str, Callable[..., Any]] = {
    "drf": DRFHead,
    "paper": PaperDRFHead,
    "majority": baselines.MajorityHead,
    "unimodal": lambda dims, count, task: baselines.UnimodalHead(
        dims, count, modality="image", task=task
    ),
    "concatenation": baselines.ConcatenationHead,
    "late mean": baselines.LateMeanHead,
    "embracenet": baselines.EmbraceNetHead,
    "imputation": baselines.ImputationHead,
}
ONE_TASK: dict[str, Callable[..., Any]] = {
    "qmf": baselines.QMFHead,
    "pdf": baselines.PDFHead,
    "tmc": baselines.TMCHead,
    "ecml": baselines.ECMLHead,
}
each_task = pytest.mark.parametrize("task", TASKS)
each_head = pytest.mark.parametrize("name", ALL_TASKS)


def batch(task: Task, count: int = 120, size: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    features = {name: torch.randn(count, dim) for name, dim in DIMS[size].items()}
    image, text = features["image"], features["text"]
    scores = torch.stack([image[:, 0] + text[:, 0], text[:, 1], image[:, 1]], dim=1)
    if task == "multiclass":
        return features, scores.argmax(1)
    return features, (scores > 0).float() if task == "multilabel" else 100 + 20 * scores


def train(head: Any, features: dict[str, Tensor], target: Tensor, steps: int = 60) -> list[float]:
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = head.loss(head(features), target)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


@each_task
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", [n for n in ALL_TASKS if n not in ("majority", "paper")])
def test_every_head_learns_every_task(name: str, task: Task, size: int) -> None:
    torch.manual_seed(0)
    features, target = batch(task, size=size)
    head = ALL_TASKS[name](DIMS[size], 3, task=task)
    losses = train(head, features, target)
    assert losses[-1] < 0.8 * losses[0]
    output = head.eval()(features)
    got = head.predict(output)
    assert got.shape == target.shape
    wrong = (got != target).float().mean() if task != "regression" else (got - target).abs().mean()
    constant = {"multiclass": 0.6, "multilabel": 0.5, "regression": 16 + 4 * (name == "unimodal")}
    assert wrong < 0.8 * constant[task]
    if task == "regression":
        assert torch.equal(got, output.logits)
        torch.testing.assert_close(head.target_mean, target.mean(0))
        torch.testing.assert_close(head.target_std, target.std(0, correction=0))


@pytest.mark.parametrize("name", ONE_TASK)
def test_a_method_for_classes_refuses_other_tasks_and_names_its_own(name: str) -> None:
    for task in ("multilabel", "regression"):
        with pytest.raises(ValueError, match=f"Head must be 'multiclass', got '{task}'"):
            ONE_TASK[name](DIMS[2], 3, task=task)
    with pytest.raises(ValueError, match="task must be one of"):
        DRFHead(DIMS[2], 3, task="ordinal")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("count", [3, 1])
def test_the_loss_of_the_drf_head_is_the_mean_over_halves_and_usable_candidates(
    count: int,
) -> None:
    head = DRFHead(DIMS[2], count, task="multilabel").eval()
    features, target = batch("multilabel")
    output = head(features, {"image": torch.arange(120) > 30})
    target, weight = target[:, :count].clone(), torch.rand(120)
    target[5] = torch.nan
    per_class = torch.rand(count)
    total = torch.zeros(())
    for i in range(120):
        parts = [
            F.binary_cross_entropy_with_logits(z, target[i], per_class)
            for k in range(3)
            if output.extras["usable"][i, k]
            for z in output.extras["half_logits"][i, k]
        ]
        total += 0 if i == 5 else weight[i] * torch.stack(parts).mean()
    kept = torch.arange(120) != 5
    got = head.loss(output, target, sample_weight=weight, class_weight=per_class)
    torch.testing.assert_close(got, total / weight[kept].sum() + output.aux_loss)
    each = head.loss(
        output, target, sample_weight=weight, class_weight=per_class, reduction="none"
    )
    torch.testing.assert_close(each.sum(), total)
    assert each[5] == 0


@each_head
@each_task
def test_a_weight_is_a_number_of_copies_and_nothing_is_learned_from_what_is_ignored(
    name: str, task: Task
) -> None:
    torch.manual_seed(0)
    head = ALL_TASKS[name](DIMS[2], 3, task=task).eval()
    features, target = batch(task, 12)
    copies = torch.arange(12) % 3
    some = head({m: x.repeat_interleave(copies, 0) for m, x in features.items()})
    again = head.loss(some, target.repeat_interleave(copies, 0))
    output = head(features)
    extra = output.aux_loss
    got = head.loss(output, target, sample_weight=copies.float())
    torch.testing.assert_close(got - extra, again - some.aux_loss)
    ignored = target.clone()
    ignored[copies == 0] = -100 if task == "multiclass" else torch.nan
    twos = torch.where(copies == 0, torch.full((12,), 7.0), copies.float())
    torch.testing.assert_close(head.loss(output, ignored, sample_weight=twos), got)
    none = head.loss(output, target, reduction="none")
    assert none.shape == (12,)
    if name != "unimodal":
        torch.testing.assert_close(none.mean(), head.loss(output, target) - extra)


@pytest.mark.parametrize("name", [*ALL_TASKS, *ONE_TASK])
def test_weights_of_classes_and_ignored_samples_reach_every_head(name: str) -> None:
    head = {**ALL_TASKS, **ONE_TASK}[name](DIMS[2], 3, task="multiclass").eval()
    features, target = batch("multiclass", 9)
    output = head(features)
    keep = torch.tensor([1.0, 0.0, 1.0])
    weighted = head.loss(output, target, class_weight=keep)
    ignored = target.where(target != 1, -100)
    torch.testing.assert_close(head.loss(output, ignored), weighted)
    none = head.loss(output, ignored, reduction="none")
    assert (none[target == 1] == 0).all()
    assert (none[target != 1] > 0).all()
    everything = head.loss(output, torch.full((9,), -100))
    torch.testing.assert_close(everything, output.aux_loss)


def test_evidence_needs_one_class() -> None:
    head = baselines.TMCHead(DIMS[2], 3)
    output = head(batch("multiclass", 9)[0])
    for target, smoothing in ((torch.full((9, 3), 1 / 3), 0.0), (torch.zeros(9).long(), 0.1)):
        with pytest.raises(ValueError, match="target of a TMCHead must be the index of a class"):
            head.loss(output, target, label_smoothing=smoothing)
    assert head.steps == 0


@each_task
def test_options_are_checked_and_a_wrong_target_changes_nothing(task: Task) -> None:
    head = DRFHead(DIMS[2], 3, task=task)
    features, _ = batch(task, 9)
    output = head(features)
    other: Task = "multiclass" if task != "multiclass" else "regression"
    state = copy.deepcopy(head.state_dict())
    with pytest.raises(ValueError, match=f"does not fit task='{task}'.*{other}"):
        head.loss(output, batch(other, 9)[1])
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        head.loss(output, batch(task, 9)[1], reduction="sum")  # type: ignore[arg-type]
    assert all(torch.equal(x, state[key]) for key, x in head.state_dict().items())


# ---------------------------------------------------------------------------------------- numbers


def test_the_units_of_the_targets_do_not_matter() -> None:
    features, target = batch("regression")
    outcome = []
    for scale, shift in ((1.0, 0.0), (1e-4, 7.0), (1e5, -1e6)):
        torch.manual_seed(0)
        head = DRFHead(DIMS[2], 3, task="regression")
        moved = target.double() * scale + shift
        train(head, features, moved.float(), steps=20)
        outcome.append((head.eval()(features).logits.double() - shift) / scale)
    torch.testing.assert_close(outcome[0], outcome[2], rtol=2e-3, atol=2e-2)
    torch.testing.assert_close(outcome[0], outcome[1], rtol=2e-2, atol=2e-1)


def test_moments_are_those_of_all_known_targets_in_any_batches() -> None:
    head = baselines.ConcatenationHead(DIMS[2], 3, task="regression")
    features, target = batch("regression")
    target[::3, 0] = torch.nan
    for rows in (slice(0, 1), slice(1, 50), slice(50, 50), slice(50, 120)):
        output = head({m: x[rows] for m, x in features.items()})
        head.loss(output, target[rows])
    known = target[:, 0][~target[:, 0].isnan()]
    torch.testing.assert_close(head.target_mean[0], known.mean())
    torch.testing.assert_close(head.target_std[0], known.std(correction=0))
    torch.testing.assert_close(head.target_mean[1:], target[:, 1:].mean(0))
    assert head.target_count.tolist() == [80, 120, 120]
    state = copy.deepcopy(head.state_dict())
    head.eval()
    head.loss(head(features), target)
    assert all(torch.equal(x, state[key]) for key, x in head.state_dict().items())
    assert head.half().target_mean.dtype == torch.float32


def test_a_constant_target_is_predicted() -> None:
    head = baselines.ConcatenationHead(DIMS[2], 1, task="regression")
    features, _ = batch("regression")
    losses = train(head, features, torch.full((120,), 123.4), steps=3)
    assert torch.tensor(losses).isfinite().all()
    torch.testing.assert_close(head.eval()(features).logits, torch.full((120, 1), 123.4))


def test_the_majority_head_fits_each_task() -> None:
    features, target = batch("regression")
    head = baselines.MajorityHead(DIMS[2], 3, task="regression").fit(target)
    torch.testing.assert_close(head(features).logits[0], target.mean(0))
    labels = batch("multilabel")[1]
    labels[:10] = -1
    head = baselines.MajorityHead(DIMS[2], 3, task="multilabel").fit(labels)
    share = (labels[10:].sum(0) + 1) / 112
    torch.testing.assert_close(head(features).logits[0].sigmoid(), share)
    soft = torch.rand(120, 3).softmax(-1)
    head = baselines.MajorityHead(DIMS[2], 3).fit(soft)
    torch.testing.assert_close(head(features).logits[0].softmax(-1), (soft.sum(0) + 1) / 123)


# -------------------------------------------------------------------------- state and prediction


@pytest.mark.parametrize("name", ["drf", "paper", "concatenation"])
def test_the_state_of_another_task_is_refused(name: str) -> None:
    multilabel = ALL_TASKS[name](DIMS[2], 3, task="multilabel")
    with pytest.raises(ValueError, match='its task is "multilabel", that of this one is "multic'):
        ALL_TASKS[name](DIMS[2], 3, task="multiclass").load_state_dict(multilabel.state_dict())


def test_a_state_without_thresholds_loads() -> None:
    head = DRFHead(DIMS[2], 3)
    state = {k: x for k, x in head.state_dict().items() if k != "thresholds"}
    fresh = DRFHead(DIMS[2], 3)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.thresholds, torch.ones(3))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_predictions_use_the_thresholds(task: Task) -> None:
    head = DRFHead(DIMS[2], 3, task=task).eval()
    output = head(batch(task)[0])
    usual = output.logits.argmax(1) if task == "multiclass" else output.logits > 0
    assert torch.equal(head.predict(output), usual)
    head.thresholds.copy_(torch.tensor([1e-6, 1.0, 1.0]))
    got = head.predict(output)
    assert (got == 0).all() if task == "multiclass" else got[:, 0].all()


def test_predictions_of_two_modalities_do_not_agree_and_those_of_three_do() -> None:
    for task in TASKS:
        torch.manual_seed(0)
        head = DRFHead(DIMS[3], 3, task=task)
        features, target = batch(task, size=3)
        train(head, features, target, steps=30)
        output = head.eval()(features)
        assert output.extras["agreement"].any() == (task != "regression")
        if task == "regression":  # its variance is not known before calibration
            head.residual_variance.fill_(0.3)
            assert head(features).extras["agreement"].any()


@each_task
def test_votes_move_the_prediction_towards_the_targets_of_neighbors(task: Task) -> None:
    torch.manual_seed(0)
    features, target = batch(task, 600)
    inner = DRFHead(DIMS[2], 3, task=task)
    inner.loss(inner(features), target)  # untrained, but it knows the moments of the targets
    head = NeighborVoteHead(inner, capacity=1000, weight=2.0).fit(features, target).eval()
    assert head.task == task
    new, wanted = batch(task, 600)
    losses = []
    for logits in (inner(new).logits, head(new).logits):
        if task == "regression":
            losses.append(((logits - wanted) / 20).square().mean())
        else:
            losses.append(sample_loss(logits, wanted, task)[0].mean())
    assert losses[1] < losses[0]
    again = NeighborVoteHead(DRFHead(DIMS[2], 3, task=task), capacity=1000, weight=2.0)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(new).logits, head(new).logits)


def test_votes_for_labels_are_those_for_two_classes() -> None:
    features, target = batch("multilabel")
    target = target[:, :1]
    label = NeighborVoteHead(DRFHead(DIMS[2], 1, task="multilabel"), capacity=200).eval()
    classes = NeighborVoteHead(DRFHead(DIMS[2], 2), capacity=200).eval()
    label.fit(features, target)
    classes.fit(features, target[:, 0].long())
    for m, rows in features.items():
        a, b = label._vote(m, rows, label.targets[0]), classes._vote(m, rows, classes.labels[0])
        torch.testing.assert_close(a[:, 0], b[:, 1])


def test_ignored_and_unknown_targets_do_not_vote() -> None:
    features, target = batch("multiclass")
    target[:60] = -100
    head = NeighborVoteHead(DRFHead(DIMS[2], 3)).fit(features, target)
    assert len(head.rows["image"]) == 60
    features, numbers = batch("regression")
    numbers[:60], numbers[70, 1] = torch.nan, torch.nan
    votes = NeighborVoteHead(DRFHead(DIMS[2], 3, task="regression")).fit(features, numbers)
    assert len(votes.rows["image"]) == 60
    assert votes.targets.isfinite().all()


def test_an_interval_needs_numbers() -> None:
    head = DRFHead(DIMS[2], 3).eval()
    with pytest.raises(ValueError, match=r"interval needs a DRFHead or .* with task='multiclass'"):
        head.interval(head(batch("multiclass")[0]))
    head = DRFHead(DIMS[2], 3, task="regression").eval()
    low, high = head.interval(head(batch("regression")[0]))
    assert low.isneginf().all()
    assert high.isposinf().all()
