"""Accuracy, alarms and trust over kinds and severities of damage."""

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reports import FakeHead, make_data
from torch import Tensor, nn

from robustfusion import DRFClassifier, DRFHead, calibrate
from robustfusion.disruption import FEATURE_DAMAGE, CachedFeatures, RawSamples, damage
from robustfusion.evaluation import DamageReport, damage_report

BOTH = ("image", "text")
SEVERITIES = (0.3, 1.0)


class Judging(FakeHead):
    """Offers trust and p-values."""

    def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
        out = super().forward(features, available)
        out.trust = dict(zip(self.names, out.weights.unbind(1), strict=True))
        return out

    def p_values(self, output: Any) -> dict[str, Tensor]:
        return {m: q.exp().where(q > -torch.inf, torch.nan) for m, q in output.log_quality.items()}


def partly_missing() -> CachedFeatures:
    return make_data(names=BOTH, available={"image": torch.arange(90) % 5 > 0})


@pytest.fixture(scope="module")
def report() -> DamageReport:
    models = {"judging": Judging(BOTH), "plain": FakeHead(BOTH, seed=3)}
    kinds = {"image": FEATURE_DAMAGE, "text": ("noise",)}
    return damage_report(
        models, partly_missing(), kinds, severities=SEVERITIES, seeds=(0, 1), batch_size=32
    )


def test_every_cell_equals_a_slow_run(report: DamageReport) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data, labels = partly_missing(), make_data(names=BOTH).labels.numpy()
    model = Judging(BOTH)
    available = {"image": torch.arange(90) % 5 > 0, "text": torch.ones(90, dtype=torch.bool)}
    with torch.no_grad():
        intact = model(data.features, available)
    for kind in FEATURE_DAMAGE:
        for severity in SEVERITIES:
            guesses, alarms, trusts = [], [], []
            for seed in (0, 1):
                guess = intact.logits.argmax(1).clone()
                for batch in damage(data, {"image": [kind]}, severity=severity, seed=seed):
                    with torch.no_grad():
                        out = model(batch["inputs"], batch["available"])
                    guess[[int(name[5:]) for name in batch["id"]]] = out.logits.argmax(1)
                    alarms += (model.p_values(out)["image"] <= 0.05).tolist()
                    trusts += out.trust["image"].tolist()
                guesses.append(guess.numpy())
            cell = report["judging", "image", kind, severity]
            key = ("judging", "image", kind, severity)
            np.testing.assert_array_equal(report.predictions[key], np.stack(guesses))
            right = np.stack(guesses) == labels
            assert cell.accuracy == pytest.approx(right.mean())
            f1 = [metrics.f1_score(labels, g, average="macro") for g in guesses]
            assert cell.macro_f1 == pytest.approx(np.mean(f1))
            assert len(alarms) == 2 * 72  # the eighteen samples without an image raise none
            assert cell.alarms == pytest.approx(np.mean(alarms))
            assert cell.trust == pytest.approx(np.mean(trusts), rel=1e-5)
            error = right.mean(0).std() / len(labels) ** 0.5
            assert cell.accuracy_se == pytest.approx(error, rel=0.1)


def test_lines_to_compare_with(report: DamageReport) -> None:
    data, labels = partly_missing(), make_data(names=BOTH).labels
    here, none = torch.ones(90, dtype=torch.bool), torch.zeros(90, dtype=torch.bool)
    seen = {"image": torch.arange(90) % 5 > 0, "text": here}
    cases = {
        ("image", "intact", 0.0): seen,
        ("text", "intact", 0.0): seen,
        ("image", "missing", 1.0): {"image": none, "text": here},
        # Samples without an image keep their text: nothing else is left of them.
        ("text", "missing", 1.0): {**seen, "text": ~seen["image"]},
    }
    for name, model in (("judging", Judging(BOTH)), ("plain", FakeHead(BOTH, seed=3))):
        for where, available in cases.items():
            with torch.no_grad():
                guess = model(data.features, available).logits.argmax(1)
            accuracy = (guess == labels).float().mean().item()
            assert report[name, *where].accuracy == pytest.approx(accuracy), where
    assert report.majority[0] == pytest.approx((labels == 0).float().mean().item())
    assert math.isnan(report["judging", "image", "missing", 1.0].alarms)
    assert math.isnan(report["plain", "image", "noise", 1.0].trust)
    assert report["judging", "image", "intact", 0.0].alarms >= 0


def test_files_hold_every_score(report: DamageReport, tmp_path: Path) -> None:
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    cells = 2 * (2 * 2 + (len(FEATURE_DAMAGE) + 1) * len(SEVERITIES))
    assert len(document["scores"]) == len(report.scores) == cells
    text = report.to_csv(tmp_path / "damage.csv")
    assert (tmp_path / "damage.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    for row, scores in zip(rows, report.scores, strict=True):
        assert (row["model"], row["kind"]) == (scores.model, scores.kind)
        assert float(row["accuracy"]) == scores.accuracy
        assert (row["alarms"] == "") == math.isnan(scores.alarms)
    assert "nan" not in text
    page = report.to_markdown(tmp_path / "damage.md")
    for part in ("## Accuracy, image damaged", "## Trust, text damaged", "| kind | model | 0.3 |"):
        assert part in page
    accuracy = report["plain", "image", "scale", 0.3].accuracy
    line = next(x for x in page.splitlines() if x.startswith("| scale | plain |"))
    assert line.split("|")[3].strip() == f"{100 * accuracy:.1f}"
    missing = next(x for x in page.splitlines() if x.startswith("| missing | plain |"))
    assert len({cell.strip() for cell in missing.split("|")[3:-1]}) == 1


def test_the_figure_is_drawn(report: DamageReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for metric in ("accuracy", "macro_f1", "alarms", "trust"):
        path = report.plot(tmp_path / f"{metric}.png", metric=metric)
        assert path.stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"metric must be among .*, got 'f1'"):
        report.plot(tmp_path / "never.png", metric="f1")
    plain = damage_report(
        FakeHead(BOTH), make_data(names=BOTH), {"text": ["mask"]}, severities=(1.0,)
    )
    with pytest.raises(ValueError, match="metric='trust' is in no model's results"):
        plain.plot(tmp_path / "never.png", metric="trust")
    assert "## Trust" not in plain.to_markdown()


def test_severity_harms_and_nothing_else_changes() -> None:
    head = DRFHead({"image": 6, "text": 6}, num_classes=3).train()
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    data = make_data(names=BOTH, samples=60)
    report = damage_report(head, data, {"image": ["scale"]}, severities=(0.5,))
    assert torch.equal(state, torch.random.get_rng_state())
    assert head.training
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert 0 <= report["DRFHead", "image", "scale", 0.5].trust <= 1


def test_raw_samples_work_for_a_model_with_encoders() -> None:
    posts = [
        {"inputs": {"image": torch.rand(3, 8, 8), "text": "good " * (1 + i % 3)}, "label": i % 2}
        for i in range(12)
    ]

    class Counting(nn.Module):
        def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
            bright = inputs["image"].mean((1, 2, 3))
            words = torch.tensor([float(len(text.split())) for text in inputs["text"]])
            return SimpleNamespace(logits=torch.stack([bright, words], 1))

    kinds = {"image": ["black", "white"], "text": ["truncate"]}
    report = damage_report(Counting(), RawSamples(posts), kinds, severities=(1.0,))
    assert {s.kind for s in report.scores} == {"intact", "missing", "black", "white", "truncate"}
    # A text of one letter has one word, and a white image a brightness of one: a tie, class 0.
    assert (report.predictions["Counting", "image", "black", 1.0] == 1).all()


def test_calibrate_reads_every_damaged_sample() -> None:
    torch.manual_seed(0)
    head = DRFHead({"image": 6, "text": 6}, num_classes=3)
    data = make_data(names=BOTH, samples=60)
    kinds = {"image": ("noise", "scale", "mask"), "text": ("noise",)}
    intact = [{"inputs": data.features, "label": data.labels, "id": list(data.ids)}]
    report = calibrate(head, intact, damaged=damage(data, kinds, batch_size=16))
    assert report.trust is not None
    assert report.trust.samples == 60 * (1 + 3 + 1)


def test_only_the_damaged_modality_is_encoded_again() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 30, 6, generator=generator)
    seen = {"image": torch.arange(30) % 5 > 0}
    data = CachedFeatures(
        dict(zip(BOTH, features, strict=True)), torch.arange(30) % 3, available=seen
    )
    rows = dict.fromkeys(BOTH, 0)

    class Encoder(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            rows[self.name] += len(x)
            return x - 0.5

    model = DRFClassifier({name: Encoder(name) for name in BOTH}, Judging(BOTH))

    class Hidden(nn.Module):
        def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
            return model(inputs, available)

        def p_values(self, output: Any) -> dict[str, Tensor]:
            return model.head.p_values(output)  # type: ignore[operator, no-any-return]

    kinds = {"image": ["noise", "mask"]}
    options: dict[str, Any] = {"severities": (0.5, 1.0), "batch_size": 7}
    fast = damage_report(model, data, kinds, **options)
    assert rows == {"image": 30 + 4 * 24, "text": 30}
    slow = damage_report(Hidden(), data, kinds, **options)
    for one, other in zip(fast.scores, slow.scores, strict=True):
        assert one[1:-1] == pytest.approx(other[1:-1], nan_ok=True)
        assert one.metrics == pytest.approx(other.metrics)


def test_wrong_arguments_are_named() -> None:
    data, head = make_data(names=BOTH), FakeHead(BOTH)
    kinds = {"image": ["noise"]}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (kinds, {"severities": (0.0,)}, "severities must lie in"),
        (kinds, {"severities": ()}, "severities must lie in"),
        (kinds, {"seeds": ()}, "seeds must be integers"),
        (kinds, {"alarm_rate": 2.0}, "alarm_rate must be"),
        ({"sound": ["noise"]}, {}, "kinds has the key 'sound'"),
        ({"image": ["black"]}, {}, r'kinds\["image"\] must be among'),
    ]
    for wrong, options, message in cases:
        with pytest.raises(ValueError, match=message):
            damage_report(head, data, wrong, **options)
    assert head.calls == 0
    model: Any = {}
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, or a mapping"):
        damage_report(model, data, kinds)
    data.labels = data.labels + 1
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 2"):
        damage_report(head, data, kinds)
    with pytest.raises(KeyError, match="no scores of"):
        damage_report(head, make_data(names=BOTH), kinds)["FakeHead", "image", "fog", 1.0]
