"""The robustness report against slow oracles, and what it must refuse."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustfusion import DRFHead, PaperDRFHead
from robustfusion.baselines import MajorityHead
from robustfusion.disruption import (
    DisruptedDataset,
    Disruption,
    FeatureCorruption,
    collate,
    disrupt_features,
)
from robustfusion.evaluation import (
    CachedFeatures,
    RawSamples,
    RobustnessReport,
    plot_rate_curves,
    robustness_grid,
    robustness_report,
)
from robustfusion.evaluation.report import build_report
from robustfusion.evaluation.statistics import (
    bootstrap_p_value,
    bootstrap_weights,
    calibration_error,
    classification_scores,
    combine_p_values,
    estimate,
    holm,
    mcnemar_exact,
    separation_auroc,
)

NAMES = ("image", "text", "audio")


class FakeHead(nn.Module):
    """Sums linear logits of what is available, weighted by a quality that falls with the norm."""

    candidates: tuple[tuple[str, ...], ...]

    def __init__(self, names: tuple[str, ...] = NAMES, dim: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.names = names
        self.candidates = tuple((name,) for name in names)
        generator = torch.Generator().manual_seed(seed)
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(len(names), generator=generator))
        self.dim = dim
        self.calls = 0
        self.rows = 0

    def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
        self.calls += 1
        self.rows += len(features[self.names[0]])
        seen = {m: torch.where(available[m][:, None], features[m], 0) for m in self.names}
        quality = {
            m: torch.where(available[m], -x.square().mean(-1) / 2, -torch.inf)
            for m, x in seen.items()
        }
        weights = torch.stack([quality[m] for m in self.names], 1).softmax(-1)
        logits = sum(
            weights[:, k, None] * self.scale[k] * seen[m][:, :3] for k, m in enumerate(self.names)
        )
        recovered = {t: {s: 0.5 * seen[s] for s in self.names if s != t} for t in self.names}
        return SimpleNamespace(
            logits=logits, weights=weights, log_quality=quality, recovered=recovered
        )


def make_data(
    samples: int = 90,
    names: tuple[str, ...] = NAMES,
    draws: int = 2,
    dim: int = 6,
    **options: Any,
) -> CachedFeatures:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(samples) % 3
    labels[:10] = 0
    one_hot = torch.nn.functional.one_hot(labels, dim).float()
    noise = {m: torch.randn(samples, dim, generator=generator) for m in names}
    clean = {m: 1.2 * one_hot + noise[m] for m in names}
    corrupted = {m: 2 * torch.randn(draws, samples, dim, generator=generator) for m in names}
    ids = [f"post-{i}" for i in range(samples)]
    return CachedFeatures(clean, labels, **{"ids": ids, "corrupted": corrupted, **options})


def drawn(data: CachedFeatures, name: str) -> Tensor:
    corrupted = data.corrupted[name]
    assert isinstance(corrupted, Tensor)
    return corrupted


@pytest.fixture(scope="module")
def report() -> RobustnessReport:
    return robustness_report(
        FakeHead(), make_data(), seeds=(0, 1, 2), replicates=200, record={"commit": "abc"}
    )


# --- statistics -----------------------------------------------------------------------------


def test_scores_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=60)
    labels[labels == 3] = 2  # class 3 is neither present ...
    predictions = generator.integers(3, size=(3, 60))
    predictions[1] = 3  # ... nor, but for this seed, predicted
    scores = classification_scores(labels, predictions, 4)
    for s, guess in enumerate(predictions):
        assert scores.accuracy[0, s] == pytest.approx(metrics.accuracy_score(labels, guess))
        for values, average in ((scores.macro_f1, "macro"), (scores.weighted_f1, "weighted")):
            expected = metrics.f1_score(labels, guess, average=average, zero_division=0)
            assert values[0, s] == pytest.approx(expected)


def test_weighted_scores_equal_scores_of_the_resampled_rows() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    labels, predictions = generator.integers(3, size=40), generator.integers(3, size=(2, 40))
    confidence = generator.random((2, 40))
    weights = np.concatenate(list(bootstrap_weights(40, 5, seed=3)))
    scores = classification_scores(labels, predictions, 3, weights)
    errors = calibration_error(predictions == labels, confidence, 15, weights)
    for r, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), counts)
        for s in range(2):
            a, b = labels[rows], predictions[s, rows]
            assert scores.accuracy[r, s] == pytest.approx(metrics.accuracy_score(a, b))
            expected = metrics.f1_score(a, b, average="macro", zero_division=0)
            assert scores.macro_f1[r, s] == pytest.approx(expected)
            plain = calibration_error((a == b)[None], confidence[s : s + 1, rows])
            assert errors[r, s] == pytest.approx(plain[0, 0], abs=1e-6)


def test_a_row_without_a_class_is_wrong() -> None:
    scores = classification_scores(np.array([0, 1]), np.array([[0, -1]]), 2)
    assert scores.accuracy[0, 0] == 0.5
    assert scores.macro_f1[0, 0] == 0.5


def test_calibration_error_by_hand() -> None:
    # Bins (0.5, 0.75] and (0.75, 1]: gaps |0.6 - 1/2| with 2 rows, |0.9 - 1/3| with 3 rows.
    correct = np.array([[True, False, True, False, False]])
    confidence = np.array([[0.55, 0.65, 0.8, 0.9, 1.0]])
    expected = (2 * 0.1 + 3 * (0.9 - 1 / 3)) / 5
    assert calibration_error(correct, confidence, bins=4)[0, 0] == pytest.approx(expected)


def test_calibration_error_equals_a_loop_over_bins() -> None:
    generator = np.random.default_rng(0)
    confidence = np.append(generator.random(300), [0.0, 1.0, 0.2, 0.4])
    correct = generator.random(304) < confidence
    expected = 0.0
    for k in range(10):
        inside = [i for i, p in enumerate(confidence) if k / 10 < p <= (k + 1) / 10]
        inside += [i for i, p in enumerate(confidence) if k == p == 0]
        if inside:
            sure = sum(confidence[i] for i in inside) / len(inside)
            right = sum(bool(correct[i]) for i in inside) / len(inside)
            expected += len(inside) / 304 * abs(sure - right)
    found = calibration_error(correct[None], confidence[None], bins=10)
    assert found[0, 0] == pytest.approx(expected, abs=1e-6)


def test_auroc_equals_scikit_learn_with_ties_and_weights() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(2)
    higher = np.round(generator.normal(1, 1, 50), 1)
    lower = np.round(generator.normal(0, 1, 50), 1)
    truth = np.repeat([1, 0], 50)
    expected = metrics.roc_auc_score(truth, np.concatenate([higher, lower]))
    assert separation_auroc(higher, lower)[0] == pytest.approx(expected)
    weights = np.concatenate(list(bootstrap_weights(50, 4, seed=0)))
    for row, found in zip(weights, separation_auroc(higher, lower, weights), strict=True):
        expected = metrics.roc_auc_score(
            truth, np.concatenate([higher, lower]), sample_weight=np.tile(row, 2)
        )
        assert found == pytest.approx(expected)


def test_auroc_takes_infinities_and_refuses_nan() -> None:
    assert separation_auroc(np.array([0.0, 0.0]), np.array([-np.inf, 0.0]))[0] == 0.75
    assert math.isnan(separation_auroc(np.array([0.0]), np.array([np.nan]))[0])


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (5, 1), (2, 11), (0, 8)])
def test_mcnemar_equals_brute_force(b: int, c: int) -> None:
    # Sum the probabilities of all outcomes at least as far from the middle, in exact fractions.
    n = b + c
    outcomes = [(abs(2 * k - n), Fraction(math.comb(n, k), 2**n)) for k in range(n + 1)]
    expected = sum(p for distance, p in outcomes if distance >= abs(b - c))
    assert mcnemar_exact(b, c) == pytest.approx(float(expected))


def test_mcnemar_equals_scipy_for_many_samples() -> None:
    stats = pytest.importorskip("scipy.stats")
    for b, c in ((1300, 1500), (4000, 3000), (20, 2)):
        assert mcnemar_exact(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)


def test_p_values_combine_and_adjust() -> None:
    assert combine_p_values(np.array([0.03])) == 0.03
    # The second of three ordered p-values, times 3 / 2.
    assert combine_p_values(np.array([0.9, 0.01, 0.02])) == pytest.approx(0.03)
    assert combine_p_values(np.array([0.9, 0.8, 0.95])) == 1.0
    p = np.array([0.04, 0.001, 0.03, 0.2])
    by_hand = [max(0.09, 0.04 * 2), 0.004, 0.03 * 3, 0.2]
    np.testing.assert_allclose(holm(p), by_hand)
    assert bootstrap_p_value(np.arange(-50.0, 51.0)) == 1.0
    assert bootstrap_p_value(np.ones(99)) == pytest.approx(0.02)


def test_combined_p_value_keeps_its_level_for_equal_tests() -> None:
    generator = np.random.default_rng(0)
    same = generator.random(4000)[:, None].repeat(5, axis=1)
    rejected = np.mean([combine_p_values(row) <= 0.05 for row in same])
    assert rejected <= 0.05


def test_bootstrap_draws_are_seeded_and_whole() -> None:
    weights = np.concatenate(list(bootstrap_weights(30, 50, seed=1)))
    assert weights.shape == (50, 30)
    assert (weights.sum(1) == 30).all()
    np.testing.assert_array_equal(weights, np.concatenate(list(bootstrap_weights(30, 50, seed=1))))
    assert (weights != np.concatenate(list(bootstrap_weights(30, 50, seed=2)))).any()


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        right = generator.random(200) < 0.7
        weights = np.concatenate(list(bootstrap_weights(200, 200, seed=trial)))
        found = estimate(right.mean(), weights @ right / 200, 0.9)
        covered += found.low <= 0.7 <= found.high
    assert 0.84 <= covered / 200 <= 0.96


# --- the grid -------------------------------------------------------------------------------


def test_grid_has_the_papers_conditions() -> None:
    keys = [condition.key for condition in robustness_grid(("image", "text"))]
    assert len(keys) == len(set(keys)) == 1 + 2 * 3 + 5 * 3
    assert keys[:3] == ["clean", "fixed/image/C", "fixed/image/D"]
    assert keys[-1] == "random/1/C+D"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("image",)}, "at least two"),
        ({"settings": ("X",)}, "settings must be among"),
        ({"rates": (0.0,)}, "rates must lie in"),
        ({"rates": (1.2,)}, "rates must lie in"),
    ],
)
def test_grid_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustness_grid(**{"modalities": ("image", "text"), **options})


# --- the report -----------------------------------------------------------------------------


def slow_predictions(
    model: nn.Module, data: CachedFeatures, disruption: Disruption
) -> tuple[Tensor, Any]:
    """The whole condition in one batch, straight from the disruption module."""
    made = disrupt_features(disruption, data.ids, data.features, data.corrupted)
    out = model(made.inputs, made.available)
    return out.logits.argmax(-1), out


@pytest.mark.parametrize("names", [("image", "text"), NAMES])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("source", ["draws", "single", "function"])
def test_every_cell_equals_a_slow_run(names: tuple[str, ...], reuse: bool, source: str) -> None:
    data = make_data(names=names)
    if source == "single":
        data = make_data(names=names, corrupted={m: drawn(data, m)[0] for m in names})
    if source == "function":
        data = make_data(names=names, corrupted=dict.fromkeys(names, FeatureCorruption()))
    model = FakeHead(names)
    seeds = (3, 4)
    found = robustness_report(
        model, data, seeds=seeds, batch_size=32, replicates=0, reuse=reuse, rates=(0.3, 1.0)
    )
    assert len(found.cells) == 1 + 3 * len(names) + 3 * 2
    for key, cell in found.cells.items():
        condition = cell.samples.condition
        for s, seed in enumerate(cell.samples.seeds):
            disruption = condition.disruption(names, seed)
            expected, out = slow_predictions(model, data, disruption)
            np.testing.assert_array_equal(cell.samples.predictions[s], expected.numpy(), key)
            sure = out.logits.softmax(-1).amax(-1).detach().numpy()
            np.testing.assert_allclose(cell.samples.confidence[s], sure, atol=1e-3)
            counts = disruption.plan(data.ids).counts()
            for column, name in enumerate(names):
                both = (counts["corrupted"][name], counts["discarded"][name])
                assert tuple(cell.samples.counts[s, column]) == both
        right = cell.samples.predictions == data.labels.numpy()
        assert cell.accuracy.value == pytest.approx(right.mean())
        assert cell.drop.value == pytest.approx(found["clean"].accuracy.value - right.mean())


def test_weights_and_quality_equal_a_slow_run(report: RobustnessReport) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data, model = make_data(), FakeHead()
    clean = model(data.features, {m: torch.ones(90, dtype=torch.bool) for m in NAMES})
    found = report["clean"].samples.weights
    assert found is not None
    np.testing.assert_allclose(found, clean.weights.mean(0).detach(), rtol=1e-5)
    assert report.context.candidates == NAMES
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
    robustness_report(model, data, seeds=(0, 1, 2), replicates=0, batch_size=45)
    # Clean, 2 discarded, 2 x 3 corrupted, and the check that rows do not depend on each other.
    assert model.rows == 90 * (1 + 2 + 6) + 45 // 2


def test_a_model_that_mixes_rows_is_refused_and_can_be_run_in_full() -> None:
    class Mixing(FakeHead):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            out.logits = out.logits - out.logits.mean(0)
            return out

    with pytest.raises(ValueError, match="depend on the other rows"):
        robustness_report(Mixing(), make_data(), seeds=(0,))
    found = robustness_report(Mixing(), make_data(), seeds=(0,), replicates=0, reuse=False)
    assert len(found.cells) == 25


def test_report_is_the_same_in_any_batch_size_and_leaves_no_trace() -> None:
    model = FakeHead().train()
    frozen = nn.Linear(1, 1).eval()
    model.add_module("frozen", frozen)
    state = torch.random.get_rng_state()
    numpy_state = str(np.random.get_state())  # noqa: NPY002
    texts = [
        robustness_report(model, make_data(), seeds=(0, 1), batch_size=b, replicates=20).to_json()
        for b in (7, 90)
    ]
    assert texts[0] == texts[1]
    assert torch.equal(state, torch.random.get_rng_state())
    assert numpy_state == str(np.random.get_state())  # noqa: NPY002
    assert model.training
    assert not frozen.training


def test_rows_never_observed_are_spared_and_left_out_of_the_quality() -> None:
    seen = torch.ones(90, dtype=torch.bool)
    seen[:30] = False
    data = make_data(names=("image", "text"), available={"image": seen})
    data.features["image"][:30] = torch.nan
    found = robustness_report(FakeHead(("image", "text")), data, seeds=(0,), replicates=20)
    # Only the text is left of the first thirty: discarding it would leave nothing.
    assert tuple(found["fixed/text/D"].samples.counts[0, 1]) == (0, 60)
    assert np.isnan(found.quality["image"].samples.clean).sum() == 30
    assert math.isfinite(found.quality["image"].auroc.value)
    assert not (found["clean"].samples.predictions < 0).any()


def test_logits_that_are_not_finite_count_as_wrong_and_are_told() -> None:
    class Broken(FakeHead):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            out.logits = torch.where(available["text"][:, None], out.logits, torch.nan)
            return out

    found = robustness_report(Broken(), make_data(), seeds=(0,), replicates=10)
    assert found["fixed/text/D"].accuracy.value == 0
    assert "not finite" in found.to_markdown()
    assert "not finite" not in robustness_report(FakeHead(), make_data(), seeds=(0,)).to_markdown()


def test_a_model_with_logits_only_is_enough(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            return SimpleNamespace(logits=features["image"][:, :3] + features["text"][:, :3])

    found = robustness_report(Plain(), make_data(), seeds=(0,), replicates=10)
    assert not found.quality
    assert found["clean"].samples.weights is None
    assert "Quality" not in found.to_markdown()
    assert [path.name for path in found.plot(tmp_path)] == ["rate_curves.png"]


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_report_of_a_drf_head(variant: str) -> None:
    torch.manual_seed(0)
    dims = {"image": 6, "text": 6}
    head: nn.Module = PaperDRFHead(dims, 3) if variant == "paper" else DRFHead(dims, 3)
    data = make_data(names=("image", "text"))
    before = {k: v.clone() for k, v in head.state_dict().items()}
    found = robustness_report(head, data, seeds=(0,), replicates=10)
    assert found.context.candidates == ("image+text", "image", "text")
    assert set(found.quality) == {"image", "text"}
    recovers = {("image", "text"), ("text", "image")} if variant == "paper" else set()
    assert set(found.recovered) == recovers
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


# --- raw samples ----------------------------------------------------------------------------


class Encoded(nn.Module):
    """Encoders inside, then the head: as `DRFClassifier`."""

    def __init__(self) -> None:
        super().__init__()
        self.head = FakeHead(("image", "text"))

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
        features = {"image": inputs["image"].flatten(1) - 0.5}
        lengths = [[text.count(word) for word in "abcdef"] for text in inputs["text"]]
        features["text"] = torch.tensor(lengths, dtype=torch.float32)
        return self.head(features, available)


def add_noise(image: Tensor, generator: np.random.Generator) -> Tensor:
    return image + torch.from_numpy(generator.normal(size=tuple(image.shape))).float()


def reverse_half(text: str, generator: np.random.Generator) -> str:
    return "".join(letter for letter in text if generator.random() < 0.5)


def make_posts(count: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "inputs": {
                "image": torch.rand(1, 2, 3, generator=generator),
                "text": "abc"[i % 3] * 2 + "def"[i % 2],
            },
            "label": i % 3,
            "id": f"post-{i}",
            "available": {"image": i != 5, "text": True},
        }
        for i in range(count)
    ]


def test_raw_samples_equal_a_slow_run() -> None:
    posts, model = make_posts(), Encoded()
    ids = [post["id"] for post in posts]
    corruptions: dict[str, Callable[..., Any]] = {"image": add_noise, "text": reverse_half}
    data = RawSamples(posts, corruptions, ids=ids)
    state = torch.random.get_rng_state()
    found = robustness_report(
        model, data, seeds=(0, 1), batch_size=10, replicates=10, rates=(0.5,)
    )
    for cell in found.cells.values():
        for s, seed in enumerate(cell.samples.seeds):
            disruption = cell.samples.condition.disruption(data.modalities, seed)
            disrupted = DisruptedDataset(posts, disruption, corruptions, ids=ids)
            batch = collate([disrupted[i] for i in range(len(posts))])
            expected = model(batch["inputs"], batch["available"]).logits.argmax(-1)
            np.testing.assert_array_equal(cell.samples.predictions[s], expected.numpy())
    assert torch.equal(state, torch.random.get_rng_state())
    # The features are those that reach the head, one post has no image.
    assert len(found.recovered["image", "text"].labels) == 23


def test_raw_samples_refuse_an_empty_dataset() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        RawSamples([])


# --- comparison -----------------------------------------------------------------------------


def test_compare_counts_by_hand(report: RobustnessReport) -> None:
    other = robustness_report(FakeHead(seed=9), make_data(), seeds=(0, 1, 2), replicates=0)
    result = report.compare(other, replicates=500)
    labels = make_data().labels.numpy()
    key = "fixed/text/C"
    mine = report[key].samples.predictions == labels
    yours = other[key].samples.predictions == labels
    cell = result.cells[key]
    by_hand = tuple(
        (
            sum(bool(a) and not b for a, b in zip(mine[s], yours[s], strict=True)),
            sum(bool(b) and not a for a, b in zip(mine[s], yours[s], strict=True)),
        )
        for s in range(3)
    )
    assert cell.discordant == by_hand
    assert cell.difference.value == pytest.approx(mine.mean() - yours.mean())
    expected = combine_p_values(np.array([mcnemar_exact(*pair) for pair in by_hand]))
    assert cell.mcnemar_p == expected
    assert cell.holm_p >= cell.mcnemar_p
    assert cell.difference.low <= cell.difference.value <= cell.difference.high
    gaps = [c.difference.value for k, c in result.cells.items() if k != "clean"]
    assert result.overall.value == pytest.approx(np.mean(gaps))
    assert key.split("/")[1] in result.to_markdown()


def test_a_model_does_not_differ_from_itself_and_differs_from_a_bad_one(
    report: RobustnessReport,
) -> None:
    same = report.compare(report, replicates=100)
    assert all(c.mcnemar_p == 1 and c.difference == (0, 0, 0) for c in same.cells.values())

    class Wrong(FakeHead):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            out.logits = -out.logits
            return out

    bad = robustness_report(Wrong(), make_data(), seeds=(0, 1, 2), replicates=0)
    result = report.compare(bad, replicates=500)
    assert result.cells["clean"].holm_p < 0.001
    assert result.overall.low > 0
    assert result.overall_p < 0.01


def test_compare_is_antisymmetric(report: RobustnessReport) -> None:
    other = robustness_report(FakeHead(seed=9), make_data(), seeds=(0, 1, 2), replicates=0)
    there, back = report.compare(other, replicates=200), other.compare(report, replicates=200)
    for key, cell in there.cells.items():
        assert cell.difference.value == pytest.approx(-back.cells[key].difference.value)
        assert cell.mcnemar_p == back.cells[key].mcnemar_p


def test_the_interval_of_a_comparison_knows_of_the_seeds(report: RobustnessReport) -> None:
    # Right everywhere under one seed and wrong everywhere under the other, against the reverse.
    labels = report.context.labels
    wrong = ((labels + 1) % 3).astype(np.int16)
    context = dataclasses.replace(report.context, seeds=(0, 1))
    sample = report["fixed/image/C"].samples
    shape = (2, len(labels))
    mine, yours = (
        sample._replace(
            seeds=(0, 1), predictions=np.stack(pair), confidence=np.ones(shape, np.float16)
        )
        for pair in ((labels, wrong), (wrong, labels))
    )
    clean = report["clean"].samples
    cells = [build_report(context, [clean, one], {}, {}) for one in (mine, yours)]
    found = cells[0].compare(cells[1], replicates=400).cells["fixed/image/C"]
    assert found.difference == (0.0, -1.0, 1.0)
    assert found.mcnemar_p < 1e-9  # each seed by itself is as sure as can be: look at both


def test_compare_refuses_what_is_not_paired(report: RobustnessReport) -> None:
    def run(data: CachedFeatures, seeds: tuple[int, ...] = (0, 1, 2)) -> RobustnessReport:
        return robustness_report(FakeHead(), data, seeds=seeds, replicates=0)

    with pytest.raises(ValueError, match="different data"):
        report.compare(run(make_data(93)))
    relabelled = make_data()
    relabelled.labels = relabelled.labels.flip(0)
    with pytest.raises(ValueError, match="different data"):
        report.compare(run(relabelled))
    with pytest.raises(ValueError, match="different disruptions"):
        report.compare(run(make_data(), seeds=(0, 1, 4)))
    own = make_data()
    own.features["text"] = own.features["text"] + 1e-3
    with pytest.raises(ValueError, match="same_inputs=False"):
        report.compare(run(own))
    assert report.compare(run(own), same_inputs=False, replicates=10).cells
    noisy = make_data()
    noisy.corrupted["text"] = drawn(noisy, "text") + 1e-3
    with pytest.raises(ValueError, match="same_inputs=False"):
        report.compare(run(noisy))


def test_compare_where_nothing_was_disrupted_or_resampled() -> None:
    options: dict[str, Any] = {"seeds": (0,), "replicates": 0}
    clean = robustness_report(FakeHead(), make_data(), settings=(), **options)
    found = clean.compare(clean, replicates=20)
    assert list(found.cells) == ["clean"]
    assert math.isnan(found.overall.value)
    assert math.isnan(found.overall_p)
    assert "Mean over the disrupted" not in found.to_markdown()
    assert "nan" not in found.to_markdown()

    whole = robustness_report(FakeHead(), make_data(), rates=(), **options)
    other = robustness_report(FakeHead(seed=1), make_data(), rates=(), **options)
    table = whole.compare(other, replicates=0)
    assert math.isnan(table.overall_p)  # no replicates, no test: 1.0 would say "no difference"
    assert table.overall.value != 0
    assert "nan" not in table.to_markdown()


# --- files ----------------------------------------------------------------------------------


def test_json_round_trip(report: RobustnessReport, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    text = report.to_json(path)
    document = json.loads(text)
    assert document["record"] == {"commit": "abc"}
    assert document["scores"]
    for back in (RobustnessReport.from_json(path), RobustnessReport.from_json(text)):
        assert back.to_json() == text
        assert back.to_markdown() == report.to_markdown()
        assert back["random/0.4/C+D"].accuracy == report["random/0.4/C+D"].accuracy
        assert back.compare(report, replicates=10).overall.value == 0
    with pytest.raises(ValueError, match="not a robustness report"):
        RobustnessReport.from_json("{}")
    with pytest.raises(ValueError, match="format None"):
        RobustnessReport.from_json('{"cells": []}')
    with pytest.raises(ValueError, match="format 99"):
        RobustnessReport.from_json(json.dumps({**document, "format": 99}))


def test_csv_holds_every_score(report: RobustnessReport, tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    text = report.to_csv(path)
    assert path.read_text(encoding="utf-8") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    found = {(row["condition"], row["metric"]): row for row in rows}
    cell = found["fixed/image/C+D", "accuracy"]
    assert float(cell["value"]) == report["fixed/image/C+D"].accuracy.value
    assert float(cell["low"]) == report["fixed/image/C+D"].accuracy.low
    assert not any("nan" in row["value"] for row in rows)


def test_markdown_tells_what_a_reader_needs(report: RobustnessReport) -> None:
    text = report.to_markdown()
    for part in (
        "Majority line",
        "| random 0.6 C+D |",
        "## Corruption premium",
        "AUROC",
        "area under the curve",
        "- commit: abc",
        "disruption seeds 0, 1, 2",
    ):
        assert part in text
    widths: dict[int, set[int]] = {}
    block = 0
    for line in text.splitlines():
        block += not line.startswith("|")
        if line.startswith("|"):
            widths.setdefault(block, set()).add(line.count("|"))
    assert all(len(counts) == 1 for counts in widths.values())


def test_plots_are_written(report: RobustnessReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = report.plot(tmp_path / "new" / "folder", formats=("png", "svg"))
    assert sorted(path.name for path in written) == sorted(
        f"{stem}.{ending}"
        for stem in ("rate_curves", "quality", "recovered_pca")
        for ending in ("png", "svg")
    )
    assert all(path.stat().st_size > 5000 for path in written)
    other = robustness_report(FakeHead(seed=9), make_data(), seeds=(0,), replicates=10)
    path = plot_rate_curves([report, other], tmp_path / "both.png")
    assert path.stat().st_size > 5000
    far = robustness_report(FakeHead(), make_data(60), seeds=(0,), replicates=0)
    with pytest.raises(ValueError, match="same samples"):
        plot_rate_curves([report, far], tmp_path / "never.png")


def test_tsne(report: RobustnessReport, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    written = report.plot(tmp_path, embedding="tsne")
    assert "recovered_tsne.png" in [path.name for path in written]


def test_progress_bar_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    robustness_report(
        FakeHead(), make_data(), seeds=(0,), replicates=0, rates=(0.5,), progress=True
    )
    assert "robustness: 100%" in capsys.readouterr().err


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds must be"),
        ({"seeds": (1, 1)}, "seeds must be"),
        ({"level": 1.0}, "level must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"replicates": -1}, "replicates must not be negative"),
        ({"settings": ("C", "D", "C")}, "'fixed/image/C' comes twice"),
        ({"rates": (0.5, 1.0, 0.5)}, "'random/0.5/C' comes twice"),
        ({"rates": (1 / 3, 0.3333333)}, "'random/0.333333/C' comes twice"),
        ({"record": {"lr": math.nan}}, "record must be what JSON can hold"),
        ({"record": {"path": Path("runs")}}, "record must be what JSON can hold"),
    ],
)
def test_report_refuses(options: dict[str, Any], message: str) -> None:
    head = FakeHead()
    with pytest.raises(ValueError, match=message):
        robustness_report(head, make_data(), **options)
    assert head.calls == 0  # told before the work, not after


def test_seeds_may_come_from_numpy() -> None:
    options: dict[str, Any] = {"rates": (), "settings": ("C",), "replicates": 0}
    seeds: Any = np.arange(2)
    found = robustness_report(FakeHead(), make_data(), seeds=seeds, **options)
    assert found.context.seeds == (0, 1)
    with pytest.raises(TypeError):
        robustness_report(FakeHead(), make_data(), seeds=(0.5,), **options)  # type: ignore[arg-type]


def test_report_refuses_labels_and_logits_that_do_not_fit() -> None:
    data = make_data()
    data.labels = data.labels + 1
    with pytest.raises(ValueError, match=r"labels must lie in 0 .. 2"):
        robustness_report(FakeHead(), data)

    class Flat(nn.Module):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            return SimpleNamespace(logits=features["image"][:, 0])

    with pytest.raises(ValueError, match=r"logits of shape \(90, C\), got \(90,\)"):
        robustness_report(Flat(), make_data())
    with pytest.raises(ValueError, match="class_names must name 3"):
        robustness_report(FakeHead(), make_data(class_names=("a", "b")), seeds=(0,))
    missing = make_data(corrupted={})
    with pytest.raises(ValueError, match="corrupted"):
        robustness_report(FakeHead(), missing, seeds=(0,))
    assert robustness_report(FakeHead(), missing, seeds=(0,), settings=("D",), replicates=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"image": torch.zeros(4, 2)}}, "two modalities"),
        ({"features": {"image": torch.zeros(4, 2), "text": torch.zeros(3, 2)}}, r'\["text"\]'),
        ({"labels": torch.zeros(4)}, "labels must be integers"),
        ({"ids": ["a", "a", "b", "c"]}, "unique"),
        ({"corrupted": {"image": torch.zeros(4, 3)}}, r'corrupted\["image"\] must have shape'),
        ({"corrupted": {"sound": torch.zeros(4, 2)}}, "not among"),
        ({"corrupted": {"image": torch.zeros(0, 4, 2)}}, r'corrupted\["image"\] must have shape'),
        ({"available": {"image": torch.ones(3).bool()}}, r'available\["image"\] must have shape'),
        ({"available": {"sound": torch.ones(4).bool()}}, "available has the key 'sound'"),
    ],
)
def test_cached_features_refuse(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": {"image": torch.zeros(4, 2), "text": torch.zeros(4, 2)},
        "labels": torch.zeros(4, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        CachedFeatures(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 0, 1]}, "labels must be a tensor, got list"),
        ({"features": {"image": np.zeros((4, 2)), "text": torch.zeros(4, 2)}}, "got ndarray"),
        (
            {"features": {"image": torch.zeros(4, 2), "text": torch.zeros(4, 2).long()}},
            r'features\["text"\] must be a floating tensor, got torch.int64',
        ),
        ({"corrupted": {"image": None}}, r'corrupted\["image"\], .* got NoneType'),
        ({"available": {"image": torch.ones(4)}}, r'available\["image"\] must be a bool tensor'),
        ({"available": {"image": [True] * 4}}, r'available\["image"\] must .* got list'),
        ({"ids": ["a", 0.5, "b", "c"]}, "a sample id must be a str or an int, got 0.5"),
    ],
)
def test_cached_features_refuse_other_types(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": {"image": torch.zeros(4, 2), "text": torch.zeros(4, 2)},
        "labels": torch.zeros(4, dtype=torch.long),
    }
    with pytest.raises(TypeError, match=message):
        CachedFeatures(**{**arguments, **change})


def test_an_id_is_the_same_from_python_numpy_and_torch() -> None:
    options: dict[str, Any] = {"seeds": (0,), "replicates": 0, "rates": (0.5,)}
    ids: tuple[Any, ...] = (range(90), list(np.arange(90)), torch.arange(90))
    reports = [robustness_report(FakeHead(), make_data(ids=i), **options) for i in ids]
    for other in reports[1:]:
        assert other.context.fingerprint == reports[0].context.fingerprint
        assert reports[0].compare(other, replicates=10).overall.value == 0
    with pytest.raises(ValueError, match="unique"):
        make_data(ids=torch.zeros(90, dtype=torch.long))
    twins: Any = [3, np.int64(3)]
    with pytest.raises(ValueError, match="ids must be 2 unique names, got 2, 1 of them unique"):
        RawSamples([{"inputs": {"a": torch.zeros(1)}, "label": 0}] * 2, ids=twins)


def test_unknown_condition_lists_the_known_ones(report: RobustnessReport) -> None:
    with pytest.raises(KeyError, match="fixed/image/C"):
        report["fixed/sound/C"]


def test_logits_that_are_a_view_of_a_parameter_are_read() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    head = MajorityHead({"image": 2, "text": 2}, 3)
    head.fit(labels)
    data = CachedFeatures({"image": torch.randn(4, 2), "text": torch.randn(4, 2)}, labels)
    report = robustness_report(head, data, seeds=(0,), settings=("D",), rates=(), replicates=0)
    assert report["clean"].accuracy.value == 0.5
