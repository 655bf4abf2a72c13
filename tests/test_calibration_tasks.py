"""Calibration of several labels and of numbers: temperatures, intervals, learned trust."""

import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion import DRFHead, LearnedTokens, LearnedTrust, NeighborVoteHead, calibrate
from robustfusion.tasks import fit_thresholds, predict, sample_loss

DIMS = {"image": 6, "text": 4}
Kind = Literal["multilabel", "regression"]
each_task = pytest.mark.parametrize("task", ["multilabel", "regression"])


def draw(task: Kind, count: int, noise: float = 1.0) -> dict[str, Any]:
    """Samples whose target is a noisy sum of one coordinate of the image and one of the text."""
    inputs = {name: torch.randn(count, dim) for name, dim in DIMS.items()}
    scores = inputs["image"][:, :2] + inputs["text"][:, :2] + noise * torch.randn(count, 2)
    target = (scores > 0).float() if task == "multilabel" else 50 + 10 * scores
    return {"inputs": inputs, "label": target, "id": [f"{i}" for i in range(count)]}


def trained(task: Kind, steps: int = 80) -> DRFHead:
    torch.manual_seed(0)
    head = DRFHead(DIMS, 2, task=task, stand_in=LearnedTokens, hidden_features=32, dropout=0.0)
    batch = draw(task, 400)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(head(batch["inputs"]), batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.eval()


def far(batch: dict[str, Any], modality: str) -> dict[str, Any]:
    """Copies whose features of one modality lie in one corner and mean nothing."""
    rows = batch["inputs"][modality]
    inputs = {**batch["inputs"], modality: torch.randn_like(rows) * 0.3 + 2.5}
    return {**batch, "inputs": inputs, "modality": modality, "kind": "corner"}


@torch.no_grad()
def error(head: DRFHead, batch: dict[str, Any]) -> float:
    logits, target = head(batch["inputs"]).logits, batch["label"]
    if head.task == "regression":
        return float(F.mse_loss(logits, target)) / 100
    return float(sample_loss(logits, target, head.task)[0].mean())


def test_labels_get_a_temperature_for_each_pattern() -> None:
    head, held_out = trained("multilabel", 200), draw("multilabel", 500)
    held_out["label"][::5, 0] = math.nan
    report = calibrate(head, [held_out])
    assert [p.modalities for p in report.patterns] == list(head.candidates)
    both = report.patterns[0]
    assert both.temperature > 1.1  # it was trained until it was too sure
    assert both.nll[1] < both.nll[0]
    assert both.ece[1] < both.ece[0]
    new = draw("multilabel", 2000)
    after = error(head, new)
    head.temperature.fill_(1)
    assert after < error(head, new)


@pytest.mark.parametrize("votes", [False, True])
def test_intervals_cover_new_numbers_with_and_without_a_modality(votes: bool) -> None:
    inner = trained("regression")
    head: Any = inner
    if votes:
        batch = draw("regression", 400)
        head = NeighborVoteHead(inner).fit(batch["inputs"], batch["label"])
    report = calibrate(head, [draw("regression", 1000)])
    assert report.patterns == ()
    assert [row.modalities for row in report.intervals] == list(head.candidates)
    assert report.intervals[0].rows == 1000
    assert "half-width at 90 %" in report.to_markdown()
    new = draw("regression", 2000)
    widths = []
    for hidden in (None, "image", "text"):
        available = {m: torch.full((2000,), m != hidden) for m in DIMS}
        output = head.eval()(new["inputs"], available)
        low, high = head.interval(output)
        covered = ((low <= new["label"]) & (new["label"] <= high)).float().mean(0)
        torch.testing.assert_close(covered, torch.full((2,), 0.9), atol=0.035, rtol=0)
        widths.append(float((high - low).detach().mean()))
    assert widths[0] < min(widths[1:])


@each_task
def test_trust_learns_from_damage_whatever_the_target(task: Kind) -> None:
    head, held_out, new = trained(task), draw(task, 400), draw(task, 1000)
    calibrate(head, [held_out])
    damaged = far(new, "text")
    before, intact = error(head, damaged), error(head, new)
    report = calibrate(head, [held_out], damaged=[far(held_out, m) for m in DIMS])
    assert report.trust is not None
    assert math.isfinite(report.trust.penalty)
    assert report.trust.nll[1] < report.trust.nll[0]
    assert error(head, damaged) < 0.9 * before
    assert error(head, new) < intact + 0.05
    alarm = head.p_values(head(damaged["inputs"]))["text"] <= 0.05
    usual = head.p_values(head(new["inputs"]))["text"] <= 0.05
    assert alarm.float().mean() > 0.8
    assert usual.float().mean() < 0.1


def test_the_units_of_numbers_do_not_matter_to_calibration() -> None:
    outcome: list[tuple[Tensor, Tensor]] = []
    for scale in (1.0, 1e3):
        torch.manual_seed(1)
        head = trained("regression")
        for buffer in (head.target_mean, head.target_std):
            buffer.mul_(scale)
        held_out = draw("regression", 300)
        held_out["label"] *= scale
        calibrate(head, [held_out])
        width: Any = head.interval_width
        outcome.append((head.trust.bias.clone(), width / scale))
    torch.testing.assert_close(outcome[0][0], outcome[1][0])
    torch.testing.assert_close(outcome[0][1], outcome[1][1], rtol=1e-3, atol=1e-3)


def test_three_views_of_numbers_agree_after_calibration() -> None:
    torch.manual_seed(0)
    dims = {"a": 3, "b": 3, "c": 3}
    head = DRFHead(dims, 1, task="regression", stand_in=LearnedTokens, hidden_features=16)
    value = torch.randn(300, 1)
    batch: dict[str, Any] = {
        "inputs": {m: torch.cat([value, torch.randn(300, 2)], dim=1) for m in dims},
        "label": value[:, 0],
    }
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(batch["inputs"]), batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    calibrate(head, [batch])
    assert 0 < float(head.residual_variance) < 0.7
    inputs = {**batch["inputs"], "a": batch["inputs"]["a"].flip(0)}  # a of another sample
    trust: Tensor = head(inputs).trust["a"]
    assert trust.mean() < head(batch["inputs"]).trust["a"].mean()


def test_a_target_of_another_task_is_named() -> None:
    batch = draw("multilabel", 50)
    with pytest.raises(ValueError, match=r"does not fit task='multiclass'.*'multilabel'"):
        calibrate(DRFHead(DIMS, 2), [batch])
    trust = LearnedTrust(DIMS, subsets=[("image",), ("text",)])
    logits = torch.randn(50, 2, 2)
    fit = trust.fit(batch["inputs"], logits, batch["label"], task="multilabel")
    assert fit.samples == 50


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_thresholds_find_a_rare_class_and_leave_a_tiny_one_alone(task: Any) -> None:
    torch.manual_seed(0)
    prior = torch.tensor([0.9, 0.09, 0.01])

    def sample(count: int) -> tuple[Tensor, Tensor]:
        labels = prior.multinomial(count, replacement=True)
        hot = F.one_hot(labels, 3).float()
        logits = 1.5 * (hot + 0.8 * torch.randn(count, 3)) + prior.log()
        return logits, labels if task == "multiclass" else hot

    logits, target = sample(1200)
    thresholds = fit_thresholds(logits, target, task)
    default = 1.0 if task == "multiclass" else 0.5
    assert thresholds[1] < default  # a class of 9 % is found more often
    assert thresholds[2] == default  # of a class of 12 samples nothing is learned
    new, truth = sample(5000)
    hot = F.one_hot(truth, 3).bool() if task == "multiclass" else truth.bool()
    recalls = []
    for value in (None, thresholds):
        chosen = predict(new, task, value)
        chosen = F.one_hot(chosen, 3).bool() if task == "multiclass" else chosen
        recalls.append(float((chosen & hot).sum(0)[1] / hot.sum(0)[1]))
    assert recalls[1] > recalls[0] + 0.1


def test_calibrate_fits_thresholds_on_request_and_resets_them() -> None:
    head, held_out = trained("multilabel", 20), draw("multilabel", 300)
    rare = (held_out["label"].bool() & (held_out["inputs"]["image"][:, :2] > 1)).float()
    held_out["label"] = rare
    calibrate(head, [held_out], thresholds=True)
    assert (head.thresholds != 0.5).all()
    calibrate(head, [held_out])
    assert (head.thresholds == 0.5).all()
    with pytest.raises(ValueError, match="thresholds needs a head with temperatures"):
        calibrate(trained("regression", 1), [draw("regression", 50)], thresholds=True)
