"""Diagnostics: numbers by hand, and each failure is found."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfusion import DRFClassifier, DRFHead, FeatureQueue, PaperDRFHead
from robustfusion.diagnostics import Diagnosis, diagnose

NAMES = ("image", "text")
WIDTH = 512


class Head(nn.Module):
    """A head whose every score is given from outside."""

    candidates = (("image",), ("text",))

    def __init__(
        self,
        quality: dict[str, Tensor] | None = None,
        weights: Tensor | None = None,
        recovered: dict[str, dict[str, Tensor]] | None = None,
        logits: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.quality, self.weights, self.recovered = quality, weights, recovered
        self.logits = logits

    def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
        rows = len(features["image"])
        logits = torch.eye(3).repeat(rows, 1)[:rows] if self.logits is None else self.logits
        return SimpleNamespace(
            logits=logits,
            log_quality=self.quality,
            weights=self.weights,
            recovered=self.recovered,
        )


def rows(count: int = 300, width: int = WIDTH, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, width, generator=generator) for name in NAMES}


def told(diagnosis: Diagnosis, *parts: str) -> bool:
    return any(all(part in warning for part in parts) for warning in diagnosis.warnings)


def test_the_published_degenerate_score_is_caught() -> None:
    # q = exp(-|z| / 2) of whitened z with 512 dimensions: |z| is 22.6, q about 1e-5 for good
    # data, and a floor of 0.3 makes the weights 0.5 / 0.5 for every sample.
    class Floored(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            quality = {m: 0.7 * (-x.norm(dim=-1) / 2).exp() + 0.3 for m, x in features.items()}
            stacked = torch.stack([quality["image"], quality["text"]], 1)
            return SimpleNamespace(
                logits=features["image"][:, :3],
                log_quality={m: q.log() for m, q in quality.items()},
                weights=stacked / stacked.sum(1, keepdim=True),
            )

    found = diagnose(Floored(), rows())
    assert found.numbers["quality/image/std"] < 1e-4
    assert told(found, "quality of image is constant")
    assert told(found, "quality of text is constant")
    assert told(found, "weights are the same for every row")
    assert found.numbers["weights/effective"] == pytest.approx(2.0, abs=1e-6)
    assert not found.healthy


def test_a_raw_score_that_drowns_before_the_weights_is_caught_too() -> None:
    class Drowned(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            quality = {m: -x.norm(dim=-1) / 2 for m, x in features.items()}
            weights = torch.stack([0.7 * quality[m].exp() + 0.3 for m in NAMES], 1)
            return SimpleNamespace(
                logits=features["image"][:, :3], log_quality=quality, weights=weights
            )

    found = diagnose(Drowned(), rows())
    assert not told(found, "constant")
    assert told(found, "weights are the same for every row")


def test_a_gaussian_score_in_distribution_is_not_called_constant() -> None:
    features = rows(width=768)
    quality = {m: -x.square().mean(-1) / 2 for m, x in features.items()}
    weights = torch.stack([quality[m] for m in NAMES], 1).softmax(1)
    assert diagnose(Head(quality, weights), features, batch_size=300).healthy


def test_fusion_numbers_by_hand() -> None:
    weights = torch.tensor([[0.2, 0.6], [0.4, 0.4], [0.03, 0.01], [1.0, 0.0]])
    available = {"image": torch.tensor([True] * 4), "text": torch.tensor([True] * 3 + [False])}
    found = diagnose(Head(weights=weights), rows(4), available, batch_size=4).numbers
    shares = [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]  # the last row lacks its text
    for name in NAMES:
        assert found[f"weight/{name}/mean"] == pytest.approx(0.5)
        assert found[f"weight/{name}/std"] == pytest.approx(0.25)
        assert found[f"weight/{name}/largest"] in (pytest.approx(1 / 3), pytest.approx(2 / 3))
    expected = sum(math.exp(-sum(p * math.log(p) for p in row)) for row in shares) / 3
    assert found["weights/effective"] == pytest.approx(expected)
    assert found["weights/sum"] == pytest.approx(0.8)


def test_one_candidate_that_always_wins_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    image = 0.95 + 0.04 * torch.rand(60, generator=generator)
    found = diagnose(Head(weights=torch.stack([image, 1 - image], 1)), rows(60))
    assert told(found, "candidate image always wins")
    assert not told(found, "candidate text")
    lively = torch.rand(60, 2, generator=generator)
    assert diagnose(Head(weights=lively / lively.sum(1, keepdim=True)), rows(60)).healthy


def test_vanishing_weights_are_told() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = 1e-5 * torch.rand(60, 2, generator=generator)
    assert told(diagnose(Head(weights=weights), rows(60)), "weights vanish")


def test_collapsed_predictions_and_broken_logits_are_told() -> None:
    one_class = torch.tensor([[0.0, 1.0, 0.0]]).repeat(60, 1)
    assert told(diagnose(Head(logits=one_class), rows(60)), "100% of the samples", "one class")
    assert told(diagnose(Head(logits=one_class * torch.nan), rows(60)), "not finite")


def test_quality_ignores_rows_that_were_not_observed() -> None:
    quality = {m: torch.tensor([-1.0, -3.0, -torch.inf, 100.0]) for m in NAMES}
    mask = torch.tensor([True, True, False, False])
    found = diagnose(Head(quality), rows(4), {"image": mask, "text": mask}).numbers
    assert found["quality/image/mean"] == pytest.approx(-2.0)
    assert found["quality/image/std"] == pytest.approx(math.sqrt(2.0))
    assert found["quality/image/low"] == pytest.approx(-2.9)
    assert found["quality/image/high"] == pytest.approx(-1.1)


def test_recovery_against_the_mean() -> None:
    features = rows(60)
    text = features["text"]
    half = 0.5 * (text + text.mean(0))
    recovered = {"text": {"image": half}, "image": {"text": features["image"].flip(0)}}
    found = diagnose(Head(recovered=recovered), features)
    assert found.numbers["recovery/text/image/error"] == pytest.approx(0.25, rel=1e-4)
    assert found.numbers["recovery/text/image/std_ratio"] == pytest.approx(0.5, rel=1e-4)
    assert found.numbers["recovery/image/text/error"] > 1.5
    assert told(found, "image recovered from text is no better than the mean")
    assert not told(found, "text recovered from image")


class Queued(nn.Module):
    """Stores what an admission threshold on the first dimension lets in."""

    def __init__(self, threshold: float, capacity: int = 64) -> None:
        super().__init__()
        self.threshold = threshold
        self.queues = nn.ModuleDict({name: FeatureQueue(WIDTH, capacity) for name in NAMES})
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
        for name, queue in self.queues.items():
            rows = self.dropout(features[name])
            queue(rows, available[name] & (rows[:, 0] > self.threshold))
        return SimpleNamespace(logits=features["image"][:, :3])


def filled(model: Queued, features: Mapping[str, Tensor]) -> Queued:
    everything = {m: torch.ones(len(x), dtype=torch.bool) for m, x in features.items()}
    model.train().dropout.eval()
    model(features, everything)
    return model.eval()


def test_queue_numbers_by_hand_and_no_trace() -> None:
    features = rows(300, seed=1)
    model = filled(Queued(threshold=-9.0), features)
    mask = torch.ones(300, dtype=torch.bool)
    mask[::3] = False
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    model.train().dropout.eval()
    found = diagnose(model, rows(), {"image": mask, "text": mask})
    assert found.numbers["queue/text/fill"] == 1.0
    assert found.numbers["queue/text/copies"] == 0.0
    assert found.numbers["queue/text/std_ratio"] == pytest.approx(1.0, abs=0.05)
    assert not told(found, "queue")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert not model.dropout.training


def test_copies_in_a_queue_are_counted_and_told() -> None:
    features = rows(48, seed=1)
    # Sixteen of 64 places hold a second copy, a little off as an encoder in training makes it.
    again = {
        m: torch.cat([x, x[:16] + 1e-3 * torch.randn(16, WIDTH)]) for m, x in features.items()
    }
    found = diagnose(filled(Queued(-9.0), again), rows())
    assert found.numbers["queue/image/copies"] == pytest.approx(32 / 64)
    assert told(found, "queue of image holds copies: 50%")
    assert not told(diagnose(filled(Queued(-9.0), rows(64, seed=1)), rows()), "copies")
    # Rows of one class that lie close together are none.
    close = {m: x * 0.1 + 1 for m, x in rows(64, seed=1).items()}
    assert diagnose(filled(Queued(-9.0), close), rows()).numbers["queue/text/copies"] == 0.0


def test_a_training_set_smaller_than_the_queue_fills_it_with_copies() -> None:
    head = DRFHead({"image": 16, "text": 16}, 3)
    features = {m: torch.randn(50, 16) for m in NAMES}
    for _ in range(3):
        head(features)
    assert told(diagnose(head, {m: torch.randn(60, 16) for m in NAMES}), "text holds copies: 100%")


class Calibrated(Head):
    """Offers p-values of its own."""

    def __init__(self, p: Tensor) -> None:
        super().__init__({m: p.log() for m in NAMES})

    def p_values(self, output: Any) -> dict[str, Tensor]:
        return {m: q.exp() for m, q in output.log_quality.items()}


def test_p_values_that_do_not_spread_or_alarm_too_often_are_told() -> None:
    even = torch.arange(1, 301) / 300
    found = diagnose(Calibrated(even), rows(), batch_size=300)
    assert found.healthy
    assert found.numbers["p_value/image/alarms"] == pytest.approx(0.05)
    assert found.numbers["p_value/image/low"] == pytest.approx(0.053, abs=0.002)
    assert "p_value/image/alarms" in str(found)
    narrow = diagnose(Calibrated(0.46 + 0.05 * even), rows(), batch_size=300)
    assert told(narrow, "quality of text is nearly constant: 90 % of the p-values lie in 0.46")
    low = diagnose(Calibrated(even**4), rows(), batch_size=300)
    assert told(low, "of the samples of image raise an alarm at 0.05")
    without = diagnose(Head({m: even.log() for m in NAMES}), rows(), batch_size=300)
    assert not any(name.startswith("p_value") for name in without.numbers)


def test_a_class_that_is_never_predicted_is_told() -> None:
    two = torch.eye(3)[torch.arange(60) % 2]
    found = diagnose(Head(logits=two), rows(60))
    assert told(found, "class 2 is predicted for no sample")
    assert not told(diagnose(Head(logits=two[:30]), rows(30)), "predicted for no sample")


@pytest.mark.parametrize("form", ["tensor", "mapping"])
def test_logits_come_in_other_forms(form: str) -> None:
    class Formed(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            logits = torch.eye(3).repeat(20, 1)
            return {"logits": logits} if form == "mapping" else logits

    found = diagnose(Formed(), rows(60))
    assert found.healthy
    assert found.numbers["prediction/largest_share"] == pytest.approx(1 / 3)


def test_empty_collapsed_and_shifted_queues_are_told() -> None:
    data = rows()
    empty = diagnose(Queued(0.0), data)
    assert told(empty, "queue of image is empty")
    narrow = filled(Queued(-9.0), {m: 0.5 * x for m, x in rows(seed=1).items()})
    found = diagnose(narrow, data)
    assert found.numbers["queue/image/std_ratio"] == pytest.approx(0.5, abs=0.05)
    assert told(found, "0.5", "collapsed")
    shifted = filled(Queued(-9.0), {m: x + 1 for m, x in rows(seed=1).items()})
    found = diagnose(shifted, data)
    assert found.numbers["queue/image/mean_shift"] == pytest.approx(1.0, abs=0.1)
    assert told(found, "is off by")


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_a_drf_head_can_be_diagnosed(variant: str) -> None:
    torch.manual_seed(0)
    dims = {"image": 16, "text": 8}
    head: nn.Module = PaperDRFHead(dims, 3) if variant == "paper" else DRFHead(dims, 3)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    features = {m: torch.randn(100, d) for m, d in dims.items()}
    found = diagnose(head, features)
    for name in dims:
        assert {f"queue/{name}/fill", f"quality/{name}/std"} <= set(found.numbers)
    recoveries = {name for name in found.numbers if name.startswith("recovery")}
    assert recoveries == {
        f"recovery/{pair}/{kind}"
        for pair in ("image/text", "text/image")
        for kind in ("error", "std_ratio")
    }
    assert told(found, "queue of image is empty")
    assert head.training
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    text = str(found)
    for part in ("quality/image", "image+text", "queue/text", "recovery/text/image", "WARNING"):
        assert part in text


def test_diagnose_refuses() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        diagnose(Head(), {"image": torch.zeros(3, 2), "text": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="at least 2 rows"):
        diagnose(Head(), rows(1))

    with pytest.raises(ValueError, match=r"available.*audio"):
        diagnose(Head(), rows(), {"audio": torch.ones(300, dtype=torch.bool)})
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        diagnose(Head(), rows(), batch_size=0)


@pytest.mark.parametrize("build", [DRFHead, PaperDRFHead])
def test_constant_features_are_told(build: Any) -> None:
    head = build({"image": 4, "text": 4}, 3)
    features = rows(width=4)
    head(features)
    features["text"] = torch.ones(300, 4)
    assert told(diagnose(head, features), "features of text are the same in every row")


class Embedding(nn.Module):
    """A text encoder of token ids with their mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        mask = tokens["attention_mask"][..., None].float()
        embedded: Tensor = self.table(tokens["input_ids"])
        return (embedded * mask).sum(1) / mask.sum(1).clamp_min(1)


def test_a_model_with_encoders_is_judged_by_what_its_head_sees() -> None:
    torch.manual_seed(0)
    encoders = {"image": nn.Linear(5, 6), "text": Embedding()}
    model = DRFClassifier(encoders, DRFHead({"image": 6, "text": 8}, 3))
    tokens = {
        "input_ids": torch.randint(20, (300, 4)),
        "attention_mask": torch.ones(300, 4, dtype=torch.long),
    }
    inputs = {"image": torch.randn(300, 5), "text": tokens}
    everything = {m: torch.ones(300, dtype=torch.bool) for m in NAMES}
    with torch.no_grad():
        model.train()(inputs, everything)
    found = diagnose(model, inputs)
    # The queue holds exactly these rows, so that it agrees with them in spread and mean.
    for name in NAMES:
        assert found.numbers[f"queue/{name}/std_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert found.numbers[f"queue/{name}/mean_shift"] == pytest.approx(0.0, abs=1e-4)
    assert not model.head._forward_pre_hooks
