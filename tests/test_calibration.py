"""What calibrate sets stand-ins to; temperatures are in test_voting, p-values in test_quality."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustfusion import DRFHead, LearnedTokens, NeighborVoteHead, PaperDRFHead, calibrate
from robustfusion.calibration import CalibrationReport, PatternCalibration

DIMS = {"image": 6, "text": 4}
BORN = math.log(0.1)


def draw(count: int, *, image_tells: bool) -> dict[str, Any]:
    """Samples whose text tells the label, and whose image does so or is noise."""
    labels = torch.randint(3, (count,))
    told = {"text": 2.0, "image": 2.0 if image_tells else 0.0}
    inputs = {
        name: torch.randn(count, dim) + told[name] * F.one_hot(labels, dim)
        for name, dim in DIMS.items()
    }
    return {"inputs": inputs, "label": labels}


def trained(batch: dict[str, Any]) -> DRFHead:
    head = DRFHead(DIMS, 3, stand_in=LearnedTokens)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(batch["inputs"]), batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head


@torch.no_grad()
def costs(head: DRFHead, batch: dict[str, Any], log_quality: Tensor) -> float:
    """What is to be minimized, by the head itself."""
    head.trust.bias.copy_(-log_quality)
    head.temperature.fill_(1)
    logits = head.eval()(batch["inputs"]).logits
    prior = 0.5 * (log_quality - BORN).square().sum()
    return float(F.cross_entropy(logits, batch["label"], reduction="sum") + prior)


def test_a_modality_that_tells_nothing_is_doubted_more_and_the_other_is_not() -> None:
    torch.manual_seed(0)
    head = trained(draw(60, image_tells=False))
    report = calibrate(head, [draw(400, image_tells=False)])
    assert report.trust_thresholds == pytest.approx({"image": 0.2, "text": 0.1})
    assert (-head.trust.bias).exp().tolist() == pytest.approx([0.2, 0.1])
    assert "Below a quality of 0.20 (image), 0.10 (text) the head" in report.to_markdown()


@pytest.mark.parametrize("seed", range(3))
def test_where_both_tell_the_stand_ins_stay_as_they_were(seed: int) -> None:
    torch.manual_seed(seed)
    head = trained(draw(600, image_tells=True))
    report = calibrate(head, [draw(2000, image_tells=True)])  # of few, chance may say otherwise
    assert report.trust_thresholds == pytest.approx({"image": 0.1, "text": 0.1})


def test_what_is_found_is_the_best_on_the_grid_and_found_again() -> None:
    torch.manual_seed(1)
    head, held_out = trained(draw(60, image_tells=False)), draw(90, image_tells=False)
    doubts = calibrate(head, [held_out]).trust_thresholds
    assert calibrate(head, [held_out]).trust_thresholds == doubts
    found = torch.tensor([math.log(doubt) for doubt in doubts.values()])
    steps = BORN + torch.linspace(0, math.log(2), 8)
    least = min(costs(head, held_out, torch.stack([a, b])) for a in steps for b in steps)
    assert costs(head, held_out, found) == pytest.approx(least, rel=1e-4)


def test_it_is_saved_reset_and_of_heads_without_stand_ins_not_told() -> None:
    torch.manual_seed(0)
    head = trained(draw(60, image_tells=False))
    batch = draw(200, image_tells=False)
    voting = NeighborVoteHead(head).fit(batch["inputs"], batch["label"])
    assert calibrate(voting, [batch]).trust_thresholds == pytest.approx(
        {"image": 0.2, "text": 0.1}
    )
    again = DRFHead(DIMS, 3, stand_in=LearnedTokens)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.trust.bias, head.trust.bias)
    report = calibrate(PaperDRFHead(DIMS, 3).eval(), [batch])
    assert report.trust_thresholds == {}
    assert "stand-in" not in report.to_markdown()


def test_samples_with_one_modality_or_none_change_nothing() -> None:
    head = DRFHead(DIMS, 3)
    batch = draw(50, image_tells=False)
    batch["available"] = {
        "image": torch.zeros(50, dtype=torch.bool),
        "text": torch.arange(50) > 3,
    }
    assert calibrate(head, [batch]).trust_thresholds == pytest.approx({"image": 0.1, "text": 0.1})


GOOD = draw(50, image_tells=True)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"inputs": GOOD["inputs"]}, ValueError, r"in all batches or in none.*got \['inputs'\]"),
        ({"label": GOOD["label"]}, ValueError, r"got \['label'\]"),
        ((GOOD["inputs"], GOOD["label"]), ValueError, "got tuple"),
        ({**GOOD, "label": GOOD["label"][:3]}, ValueError, r"shape \(50,\) .* got \(3,\)"),
        ({**GOOD, "label": GOOD["label"] + 1}, ValueError, r"in \[0, 3\) or .* got 3"),
        ({**GOOD, "label": GOOD["label"].float()}, ValueError, "use 'regression'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_changes(
    bad: Any, error: type[Exception], message: str
) -> None:
    head = NeighborVoteHead(DRFHead(DIMS, 3))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(error, match=message):
        calibrate(head, [GOOD, bad])
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_without_labels_there_are_references_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    head = trained(draw(200, image_tells=True))
    learned = {n: v.clone() for n, v in head.state_dict().items() if "estimators" not in n}
    held_out = draw(300, image_tells=True)
    report = calibrate(head, [{"inputs": held_out["inputs"]}])
    assert report.patterns == ()
    assert report.trust_thresholds == {}
    assert report.trust is None
    assert all(torch.equal(head.state_dict()[name], value) for name, value in learned.items())
    assert all(int(estimator.reference_count) == 300 for estimator in head.estimators.values())
    assert report.to_markdown().startswith("\nAlarms at 5 %: image ")
    with torch.no_grad():
        p_value = head.p_values(head.eval()(draw(2000, image_tells=True)["inputs"]))["image"]
    assert float((p_value <= 0.05).float().mean()) < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_without_labels_learned_harm_takes_new_references() -> None:
    torch.manual_seed(0)
    head = trained(draw(200, image_tells=True))
    held_out = draw(300, image_tells=True)
    noise = {**held_out["inputs"], "image": 4 * torch.randn(300, 6)}
    damaged = {"inputs": noise, "label": held_out["label"], "modality": "image", "kind": "noise"}
    calibrate(head, [held_out], [damaged])
    assert head.trust.reference_count.tolist() == [300, 0]
    direction = head.trust.harm_direction.clone()
    new = draw(500, image_tells=True)
    calibrate(head, [{"inputs": new["inputs"]}])
    assert head.trust.reference_count.tolist() == [500, 0]
    assert torch.equal(head.trust.harm_direction, direction)
    with torch.no_grad():
        p_value = head.p_values(head.eval()(new["inputs"]))["image"]
    assert 0.03 < float((p_value <= 0.05).float().mean()) <= 0.05


def test_damaged_copies_need_labels_and_labels_are_in_all_batches() -> None:
    head = DRFHead(DIMS, 3)
    bare = {"inputs": GOOD["inputs"]}
    with pytest.raises(ValueError, match="damaged needs a label in all batches"):
        calibrate(head, [bare], [bare])
    with pytest.raises(ValueError, match="in all batches or in none"):
        calibrate(head, [bare, GOOD])


def test_few_rows_and_a_rising_error_are_said() -> None:
    few = PatternCalibration(("image", "text"), 12, 1.4, (0.137, 0.161), (1.0, 0.9))
    many = PatternCalibration(("text",), 120, 1.4, (0.2, 0.1), (1.0, 0.9))
    told = CalibrationReport((few, many), {"image": 0.05}, {}).to_markdown()
    assert "Fewer than 50 rows, uncertain temperature: image + text (12)." in told
    assert "ECE rises: image + text. A temperature minimizes the NLL." in told
    quiet = CalibrationReport((many,), {"image": 0.05}, {}).to_markdown()
    assert "Fewer" not in quiet
    assert "rises" not in quiet
