"""The report against a slow run, and what it must refuse."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reports import (
    NAMES,
    FakeHead,
    drawn,
    make_data,
    measure,
)
from torch import Tensor, nn

from robustfusion import DRFHead, PaperDRFHead
from robustfusion.baselines import MajorityHead
from robustfusion.disruption import (
    Disruption,
    FeatureCorruption,
    disrupt_features,
)
from robustfusion.evaluation import (
    CachedFeatures,
    RobustnessReport,
    plot_report,
    robustness_report,
)


def slow_predictions(
    model: nn.Module, data: CachedFeatures, disruption: Disruption
) -> tuple[Tensor, Any]:
    """The whole condition in one batch, straight from the disruption module."""
    made = disrupt_features(disruption, data.ids, data.features, data.corrupted)
    out = model(made.inputs, made.available)
    return out.logits.argmax(-1), out


@pytest.mark.parametrize("names", [("image", "text"), NAMES])
@pytest.mark.parametrize("source", ["draws", "single", "function"])
def test_every_cell_equals_a_slow_run(names: tuple[str, ...], source: str) -> None:
    data = make_data(names=names)
    if source == "single":
        data = make_data(names=names, corrupted={m: drawn(data, m)[0] for m in names})
    if source == "function":
        data = make_data(names=names, corrupted=dict.fromkeys(names, FeatureCorruption()))
    model = FakeHead(names)
    seeds = (3, 4)
    found = measure(model, data, seeds=seeds, batch_size=32, replicates=0, rates=(0.3, 1.0))
    assert len(found.answers) == 1 + 3 * len(names) + 3 * 2
    for key, cell in found.answers.items():
        for s, seed in enumerate(cell.seeds):
            disruption = dataclasses.replace(cell.condition, seed=seed)
            expected, out = slow_predictions(model, data, disruption)
            np.testing.assert_array_equal(cell.predictions[s], expected.numpy(), key)
            sure = out.logits.softmax(-1).amax(-1).detach().numpy()
            np.testing.assert_allclose(cell.confidence[s], sure, atol=1e-3)
            counts = disruption.plan(data.ids).counts()
            for column, name in enumerate(names):
                both = (counts["corrupted"][name], counts["missing"][name])
                assert tuple(cell.counts[s, column]) == both
        right = cell.predictions == data.labels.numpy()
        assert found[key].accuracy.value == pytest.approx(right.mean())
        drop = found["clean"].accuracy.value - right.mean()
        assert found[key].drop.value == pytest.approx(drop)


def test_weights_and_quality_equal_a_slow_run(report: RobustnessReport) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data, model = make_data(), FakeHead()
    clean = model(data.features, {m: torch.ones(90, dtype=torch.bool) for m in NAMES})
    found = report.answers["clean"].weights
    assert found is not None
    np.testing.assert_allclose(found, clean.weights.mean(0).detach(), rtol=1e-5)
    assert report.candidates == NAMES
    aurocs, means = [], []
    for seed in (0, 1, 2):
        disruption = Disruption(NAMES, setting="C", strategy="fixed", modality="image", seed=seed)
        _, out = slow_predictions(model, data, disruption)
        scores = torch.cat([clean.log_quality["image"], out.log_quality["image"]])
        aurocs.append(metrics.roc_auc_score(np.repeat([1, 0], 90), scores.detach().numpy()))
        means.append(out.log_quality["image"][data.labels == 1].mean().item())
    quality = report.quality["image"]
    assert quality.auroc.value == pytest.approx(np.mean(aurocs))
    assert quality.auroc.low < quality.auroc.value < quality.auroc.high
    assert quality.class_means["1"][1] == pytest.approx(np.mean(means), rel=1e-5)


def test_area_premium_and_majority_by_hand(report: RobustnessReport) -> None:
    rates = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    keys = ["clean", *[f"random/{rate:g}/C" for rate in rates[1:]]]
    values = [report[key].accuracy.value for key in keys]
    area = sum((a + b) / 2 * 0.2 for a, b in pairwise(values))
    assert report.area["C"].value == pytest.approx(area)
    for place, key in (("text", "fixed/text"), ("random 0.6", "random/0.6")):
        expected = report[f"{key}/D"].accuracy.value - report[f"{key}/C"].accuracy.value
        assert report.corruption_premium[place].value == pytest.approx(expected)
    labels = make_data().labels.numpy()
    assert report.majority.name == "0"
    assert report.majority.accuracy == pytest.approx((labels == 0).mean())


def test_clean_drop_is_zero_with_a_zero_interval(report: RobustnessReport) -> None:
    assert report["clean"].drop == (0.0, 0.0, 0.0)
    assert report["fixed/image/C"].drop.low < report["fixed/image/C"].drop.high


def test_reuse_evaluates_each_distinct_input_once() -> None:
    model, data = FakeHead(("image", "text")), make_data(names=("image", "text"))
    measure(model, data, seeds=(0, 1, 2), replicates=0, batch_size=45)
    # Clean, 2 discarded, 2 x 3 corrupted, and the check that rows do not depend on each other.
    assert model.rows == 90 * (1 + 2 + 6) + 4


def test_a_model_that_mixes_rows_is_refused_and_can_be_run_row_by_row() -> None:
    class Mixing(FakeHead):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            out.logits = out.logits - out.logits.mean(0)
            return out

    with pytest.raises(ValueError, match=r"other samples .* None was found.* pass batch_size=1"):
        measure(Mixing(), make_data(), seeds=(0,))
    found = measure(Mixing(), make_data(), seeds=(0,), replicates=0, batch_size=1)
    assert len(found.answers) == 25
    # A sample by itself is its own mean: all logits are zero, and so is the predicted class.
    assert all((a.predictions == 0).all() for a in found.answers.values())


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda part: {"parts": [part]}, r"parts\[0\]"),
        (lambda part: {"parts": {"drop": part}}, r"parts\['drop'\]"),
        (lambda part: {"registered": part}, "registered"),
    ],
)
def test_the_part_that_is_still_in_training_mode_is_named(build: Any, name: str) -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> "Stubborn":
            return super().train(True)

    class Training(FakeHead):
        def __init__(self) -> None:
            super().__init__()
            for attribute, value in build(Stubborn(0.5)).items():
                setattr(self, attribute, value)

        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            part: Any = self.registered if hasattr(self, "registered") else self.parts
            part = part[0] if isinstance(part, list) else part
            out.logits = (part["drop"] if isinstance(part, dict) else part)(out.logits)
            return out

    with torch.random.fork_rng():
        torch.manual_seed(0)
        with pytest.raises(ValueError, match=f"still in training mode. put {name} into eval"):
            measure(Training(), make_data(), seeds=(0,))


def test_report_is_the_same_in_any_batch_size_and_leaves_no_trace(tmp_path: Path) -> None:
    model = FakeHead().train()
    frozen = nn.Linear(1, 1).eval()
    model.add_module("frozen", frozen)
    state = torch.random.get_rng_state()
    numpy_state = str(np.random.get_state())  # noqa: NPY002
    written = []
    for b in (7, 90):
        made = measure(model, make_data(), seeds=(0, 1), batch_size=b, replicates=20)
        written.append([path.read_bytes() for path in made.save(tmp_path / "report")])
    assert written[0] == written[1]
    assert torch.equal(state, torch.random.get_rng_state())
    assert numpy_state == str(np.random.get_state())  # noqa: NPY002
    assert model.training
    assert not frozen.training


def test_rows_never_observed_are_spared_and_left_out_of_the_quality() -> None:
    seen = torch.ones(90, dtype=torch.bool)
    seen[:30] = False
    data = make_data(names=("image", "text"), available={"image": seen})
    data.features["image"][:30] = torch.nan
    found = measure(FakeHead(("image", "text")), data, seeds=(0,), replicates=20)
    # Only the text is left of the first thirty: discarding it would leave nothing.
    assert tuple(found.answers["fixed/text/D"].counts[0, 1]) == (0, 60)
    assert np.isnan(found.quality["image"].clean).sum() == 30
    assert math.isfinite(found.quality["image"].auroc.value)
    assert not (found.answers["clean"].predictions < 0).any()


def test_logits_that_are_not_finite_count_as_wrong_and_are_told() -> None:
    class Broken(FakeHead):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            out.logits = torch.where(available["text"][:, None], out.logits, torch.nan)
            return out

    found = measure(Broken(), make_data(), seeds=(0,), replicates=10)
    assert found["fixed/text/D"].accuracy.value == 0
    assert "not finite" in found.to_markdown()
    assert "not finite" not in measure(FakeHead(), make_data(), seeds=(0,)).to_markdown()


def test_a_model_with_logits_only_is_enough(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            return SimpleNamespace(logits=features["image"][:, :3] + features["text"][:, :3])

    found = measure(Plain(), make_data(), seeds=(0,), replicates=10)
    assert not found.quality
    assert found.answers["clean"].weights is None
    assert "Quality" not in found.to_markdown()
    assert [path.name for path in plot_report(found, tmp_path)] == [
        "rate_curves.png",
        "coverage.png",
    ]


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_report_of_a_drf_head(variant: str) -> None:
    torch.manual_seed(0)
    dims = {"image": 6, "text": 6}
    head: nn.Module = PaperDRFHead(dims, 3) if variant == "paper" else DRFHead(dims, 3)
    data = make_data(names=("image", "text"))
    before = {k: v.clone() for k, v in head.state_dict().items()}
    found = measure(head, data, seeds=(0,), replicates=10)
    assert found.candidates == ("image+text", "image", "text")
    assert set(found.quality) == {"image", "text"}
    assert set(found.recovered) == {("image", "text"), ("text", "image")}
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds must be"),
        ({"seeds": (1, 1)}, "seeds must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"settings": ("C", "D", "C")}, "'fixed/image/C' comes twice"),
        ({"rates": (0.5, 1.0, 0.5)}, "'random/0.5/C' comes twice"),
        ({"rates": (1 / 3, 0.3333333)}, "'random/0.333333/C' comes twice"),
    ],
)
def test_report_refuses(options: dict[str, Any], message: str) -> None:
    head = FakeHead()
    with pytest.raises(ValueError, match=message):
        measure(head, make_data(), **options)
    assert head.calls == 0  # told before the work, not after


def test_report_refuses_what_is_of_another_kind() -> None:
    wrong: Any
    for wrong, message in (
        (
            (lambda inputs, available: None, make_data()),
            "model must be an nn.Module, got function",
        ),
        ((FakeHead(), [{"inputs": {}, "label": 0}]), "data must be CachedFeatures.*got list"),
    ):
        with pytest.raises(TypeError, match=message):
            robustness_report(*wrong)
    seeds: Any = 3
    with pytest.raises(TypeError, match="seeds must be integers, one or more, got 3"):
        robustness_report(FakeHead(), make_data(), seeds=seeds)


def test_seeds_may_come_from_numpy() -> None:
    options: dict[str, Any] = {"rates": (), "settings": ("C",), "replicates": 0}
    seeds: Any = np.arange(2)
    found = measure(FakeHead(), make_data(), seeds=seeds, **options)
    assert found.seeds == (0, 1)
    with pytest.raises(TypeError):
        measure(FakeHead(), make_data(), seeds=(0.5,), **options)


def test_report_refuses_labels_and_logits_that_do_not_fit() -> None:
    data = make_data()
    data.labels = data.labels + 1
    with pytest.raises(ValueError, match=r"labels must lie in 0 .. 2"):
        measure(FakeHead(), data)

    class Flat(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            return SimpleNamespace(logits=features["image"][:, 0])

    with pytest.raises(ValueError, match=r"logits of shape \(90, C\), got \(90,\)"):
        measure(Flat(), make_data())
    with pytest.raises(ValueError, match="class_names must name 3"):
        measure(FakeHead(), make_data(class_names=("a", "b")), seeds=(0,))
    missing = make_data(corrupted={})
    with pytest.raises(ValueError, match="corrupted"):
        measure(FakeHead(), missing, seeds=(0,))
    assert measure(FakeHead(), missing, seeds=(0,), settings=("D",), replicates=0)


def test_unknown_condition_lists_the_known_ones(report: RobustnessReport) -> None:
    with pytest.raises(KeyError, match="fixed/image/C"):
        report["fixed/sound/C"]


def test_logits_that_are_a_view_of_a_parameter_are_read() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    head = MajorityHead({"image": 2, "text": 2}, 3)
    head.fit(labels)
    data = CachedFeatures({"image": torch.randn(4, 2), "text": torch.randn(4, 2)}, labels)
    report = measure(head, data, seeds=(0,), settings=("D",), rates=(), replicates=0)
    assert report["clean"].accuracy.value == 0.5


def test_progress_bar_runs_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    options: dict[str, Any] = {"seeds": (0,), "rates": (0.5,), "progress": True}
    measure(FakeHead(), make_data(), **options)
    assert not capsys.readouterr().err  # a log is no terminal
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    measure(FakeHead(), make_data(), **options)
    assert "robustness: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, "level must be"),
        ({"replicates": -1}, "replicates must not be negative"),
        ({"alarm_rate": 1.1}, "alarm_rate must be"),
    ],
)
def test_intervals_refuse(report: RobustnessReport, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report.with_intervals(**options)


@pytest.mark.parametrize("record", [{"lr": math.nan}, {"path": Path("runs")}])
def test_a_record_is_what_json_holds(report: RobustnessReport, record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="record must be what JSON can hold"):
        report.named("model", **record)


@pytest.mark.parametrize("form", ["tensor", "mapping", "object"])
def test_logits_come_in_three_forms(form: str) -> None:
    class Formed(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            logits = features["image"][:, :3] + features["text"][:, :3]
            made = {"mapping": {"logits": logits}, "object": SimpleNamespace(logits=logits)}
            return made.get(form, logits)

    data = make_data()
    found = measure(Formed(), data, seeds=(0,), settings=("D",), rates=())
    expected = (data.features["image"][:, :3] + data.features["text"][:, :3]).argmax(1)
    np.testing.assert_array_equal(found.answers["clean"].predictions[0], expected.numpy())


class Alarmed(FakeHead):
    """Offers p-values: the share of a sample's squares that is below those of a clean one."""

    def p_values(self, output: Any) -> dict[str, Tensor]:
        return {m: q.exp().where(q > -torch.inf, torch.nan) for m, q in output.log_quality.items()}


def test_alarms_are_the_share_of_low_p_values_among_what_is_available() -> None:
    data, model = make_data(), Alarmed()
    found = measure(model, data, seeds=(0, 1), replicates=50, rates=(0.5,))
    for key in ("clean", "fixed/image/C", "random/0.5/C+D"):
        cell = found[key]
        alarms = []
        for seed in found.answers[key].seeds:
            disruption = dataclasses.replace(cell.condition, seed=seed)
            made = disrupt_features(disruption, data.ids, data.features, data.corrupted)
            p = model.p_values(model(made.inputs, made.available))["image"]
            kept = p[made.available["image"]]
            alarms.append((kept <= 0.05).float().mean().item())
        assert cell.alarms["image"].value == pytest.approx(np.mean(alarms), abs=1e-6)
    assert "image" not in found["fixed/image/D"].alarms  # nothing is there to alarm
    clean, corrupted = found["clean"].alarms["image"], found["fixed/image/C"].alarms["image"]
    assert clean.value < corrupted.value
    assert corrupted.low < corrupted.value < corrupted.high
    often = found.with_intervals(alarm_rate=0.5, replicates=0)
    assert often["clean"].alarms["image"].value > clean.value
    assert "| image alarms |" in found.to_markdown()
    assert {row["metric"] for row in found.to_rows()} >= {"alarms_image", "nll", "aurc", "ece"}
    assert not measure(FakeHead(), data, seeds=(0,))["clean"].alarms


def test_likelihood_and_coverage_equal_a_slow_run() -> None:
    data, model = make_data(), FakeHead()
    found = measure(model, data, seeds=(3, 4), rates=())
    cell = found["fixed/text/C"]
    losses, areas = [], []
    for seed in found.answers["fixed/text/C"].seeds:
        _, out = slow_predictions(model, data, dataclasses.replace(cell.condition, seed=seed))
        losses.append(nn.functional.cross_entropy(out.logits, data.labels).item())
        sure, guess = out.logits.softmax(-1).max(-1)
        wrong = (guess != data.labels)[sure.argsort(descending=True)].float()
        areas.append((wrong.cumsum(0) / torch.arange(1, 91)).mean().item())
    assert cell.nll.value == pytest.approx(np.mean(losses), rel=1e-3)
    assert cell.aurc == pytest.approx(np.mean(areas), abs=0.01)


def test_harder_conditions_equal_a_slow_run() -> None:
    data, model = make_data(), FakeHead()
    harder: dict[str, Any] = {"rates": (0.9,), "independent": (1.0, (0.9, 0.2, 0.5))}
    found = measure(model, data, settings=("C", "D", "C+D", "P"), seeds=(0, 1), **harder)
    assert len(found.answers) == 1 + 4 * (3 + 1 + 2)
    for cell in found.answers.values():
        for s, seed in enumerate(cell.seeds):
            disruption = dataclasses.replace(cell.condition, seed=seed)
            expected, _ = slow_predictions(model, data, disruption)
            np.testing.assert_array_equal(
                cell.predictions[s], expected.numpy(), cell.condition.key
            )
    everything = found.answers["independent/1/C"].counts[:, :, 0]
    assert (everything == 90).all()
    rows = [
        row["rate"] for row in found.to_rows() if row["condition"] == "independent/0.9+0.2+0.5/D"
    ]
    assert set(rows) == {"0.9, 0.2, 0.5"}


def test_a_constant_model_is_warned_about() -> None:
    class Fixed(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            rows = len(features["image"])
            right = torch.eye(3)[features["image"][:, :3].argmax(1)]
            quality = {"image": torch.full((rows,), -0.693), "text": -features["text"].norm(dim=1)}
            return {"logits": right * self.logits, "log_quality": quality}

    def warnings(*logits: float) -> str:
        report = measure(Fixed(torch.tensor(logits)), make_data(), seeds=(0,), rates=(0.5,))
        text = report.to_markdown()
        assert all(warning in text for warning in report.warnings)
        return "\n".join(report.named("it").warnings)

    working = warnings(1, 1, 1)
    assert "the quality of image is nearly constant" in working
    assert "quality of text" not in working
    assert "never" not in working
    constant = warnings(0, -1, -1)
    assert "it always predicts '0': it never left the majority class" in constant
    two = warnings(1, 1, -1)
    assert "it never predicts '2', not even when clean" in two
    assert not measure(FakeHead(), make_data(), seeds=(0,), rates=()).warnings


def test_a_model_that_falls_back_on_the_majority_under_disruption_is_told() -> None:
    class Fallen(FakeHead):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            zero = torch.eye(3)[torch.zeros(len(out.logits), dtype=torch.long)]
            out.logits = torch.where(available["text"][:, None], out.logits, zero)
            return out

    found = measure(Fallen(), make_data(), seeds=(0,), rates=())
    assert found.warnings == (
        "Fallen predicts '0', the majority class, for every sample in 1 of 10 conditions: text D",
    )
