"""Paired tests between models."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from reports import (
    FakeHead,
    drawn,
    make_data,
    measure,
)
from torch import Tensor

from robustfusion.evaluation import (
    CachedFeatures,
    RobustnessReport,
    compare,
)
from robustfusion.evaluation.statistics import (
    combine_p_values,
    mcnemar_exact,
)


def test_compare_counts_by_hand(report: RobustnessReport) -> None:
    other = measure(FakeHead(seed=9), make_data(), seeds=(0, 1, 2), replicates=0)
    result = compare(report, other, replicates=500)
    labels = make_data().labels.numpy()
    key = "fixed/text/C"
    mine = report.answers[key].predictions == labels
    yours = other.answers[key].predictions == labels
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
    same = compare(report, report, replicates=100)
    assert all(c.mcnemar_p == 1 and c.difference == (0, 0, 0) for c in same.cells.values())

    class Wrong(FakeHead):
        def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
            out = super().forward(features, available)
            out.logits = -out.logits
            return out

    bad = measure(Wrong(), make_data(), seeds=(0, 1, 2), replicates=0)
    result = compare(report, bad, replicates=500)
    assert result.cells["clean"].holm_p < 0.001
    assert result.overall.low > 0
    assert result.overall_p < 0.01


def test_compare_is_antisymmetric(report: RobustnessReport) -> None:
    other = measure(FakeHead(seed=9), make_data(), seeds=(0, 1, 2), replicates=0)
    there, back = compare(report, other, replicates=200), compare(other, report, replicates=200)
    for key, cell in there.cells.items():
        assert cell.difference.value == pytest.approx(-back.cells[key].difference.value)
        assert cell.mcnemar_p == back.cells[key].mcnemar_p


def test_the_interval_of_a_comparison_knows_of_the_seeds(report: RobustnessReport) -> None:
    # Right everywhere under one seed and wrong everywhere under the other, against the reverse.
    labels = report.labels
    wrong = ((labels + 1) % 3).astype(np.int16)
    sample, clean = report.answers["fixed/image/C"], report.answers["clean"]
    arrays: dict[str, Any] = {
        name: np.repeat(getattr(sample, name)[:1], 2, axis=0)
        for name in ("confidence", "log_likelihood", "p_values", "counts")
    }
    reports = []
    for pair in ((labels, wrong), (wrong, labels)):
        one = dataclasses.replace(
            sample, seeds=(0, 1), predictions=np.stack(pair).astype(np.int16), **arrays
        )
        reports.append(
            dataclasses.replace(
                report, seeds=(0, 1), answers={"clean": clean, "fixed/image/C": one}
            )
        )
    found = compare(*reports, replicates=400).cells["fixed/image/C"]
    assert found.difference == (0.0, -1.0, 1.0)
    assert found.mcnemar_p < 1e-9  # each seed by itself is as sure as can be: look at both


def test_compare_refuses_what_is_not_paired(report: RobustnessReport) -> None:
    def run(data: CachedFeatures, seeds: tuple[int, ...] = (0, 1, 2)) -> RobustnessReport:
        return measure(FakeHead(), data, seeds=seeds, replicates=0)

    with pytest.raises(ValueError, match="different data"):
        compare(report, run(make_data(93)))
    relabelled = make_data()
    relabelled.labels = relabelled.labels.flip(0)
    with pytest.raises(ValueError, match="different data"):
        compare(report, run(relabelled))
    with pytest.raises(ValueError, match="different disruptions"):
        compare(report, run(make_data(), seeds=(0, 1, 4)))
    own = make_data()
    own.features["text"] = own.features["text"] + 1e-3
    with pytest.raises(ValueError, match="same_inputs=False"):
        compare(report, run(own))
    assert compare(report, run(own), same_inputs=False, replicates=10).cells
    noisy = make_data()
    noisy.corrupted["text"] = drawn(noisy, "text") + 1e-3
    with pytest.raises(ValueError, match="same_inputs=False"):
        compare(report, run(noisy))


def test_compare_where_nothing_was_disrupted_or_resampled() -> None:
    options: dict[str, Any] = {"seeds": (0,), "replicates": 0}
    clean = measure(FakeHead(), make_data(), settings=(), **options)
    found = compare(clean, clean, replicates=20)
    assert list(found.cells) == ["clean"]
    assert math.isnan(found.overall.value)
    assert math.isnan(found.overall_p)
    assert "Mean over the disrupted" not in found.to_markdown()
    assert "nan" not in found.to_markdown()

    whole = measure(FakeHead(), make_data(), rates=(), **options)
    other = measure(FakeHead(seed=1), make_data(), rates=(), **options)
    table = compare(whole, other, replicates=0)
    assert math.isnan(table.overall.low)
    assert 0 < table.overall_p < 1  # permutations need no replicates
    assert table.overall.value != 0
    assert "nan" not in table.to_markdown()


def with_accuracy(report: RobustnessReport, share: float, seed: int) -> RobustnessReport:
    """The same data, answered rightly by a share of the samples, drawn anew in each run."""
    generator = np.random.default_rng(seed)
    answers = {}
    for key, one in report.answers.items():
        right = generator.random(one.predictions.shape) < share
        wrong = (report.labels + 1) % 3
        predictions = np.where(right, report.labels, wrong).astype(np.int16)
        answers[key] = dataclasses.replace(one, predictions=predictions)
    return dataclasses.replace(report, answers=answers)


def test_several_training_seeds_a_side(report: RobustnessReport) -> None:
    ours = [with_accuracy(report, 0.8, seed) for seed in range(3)]
    theirs = [with_accuracy(report, 0.6, seed) for seed in range(10, 13)]
    found = compare(ours, theirs, replicates=1000)
    assert found.runs == 3
    labels = report.labels
    for key, cell in found.cells.items():
        hits = [
            np.stack([r.answers[key].predictions == labels for r in side])
            for side in (ours, theirs)
        ]
        gap = hits[0].astype(float) - hits[1]
        assert cell.difference.value == pytest.approx(gap.mean())
        assert cell.accuracy == pytest.approx((hits[0].mean(), hits[1].mean()))
        runs = len(report.answers[key].seeds)
        assert len(cell.discordant) == 3 * runs
        tests = [mcnemar_exact(*pair) for pair in cell.discordant]
        assert cell.mcnemar_p == combine_p_values(np.array(tests)), key
        assert cell.difference.low < cell.difference.value < cell.difference.high
    assert found.overall.low > 0.15
    assert found.overall.high < 0.25
    assert found.overall_p == pytest.approx(1 / 10_001)
    assert "3 training seeds each" in found.to_markdown()
    # One seed a side says less: its interval is wider.
    one = compare(ours[0], theirs[0], replicates=1000).overall
    assert one.high - one.low > found.overall.high - found.overall.low
    with pytest.raises(ValueError, match="as many training seeds, at least one, got 3 and 2"):
        compare(ours, theirs[:2])
    with pytest.raises(ValueError, match="at least one, got 0 and 0"):
        compare([], [])


def test_training_seeds_that_disagree_widen_the_interval(report: RobustnessReport) -> None:
    # Training decides all: right everywhere under one seed, wrong everywhere under the other.
    good, bad = with_accuracy(report, 1.0, 0), with_accuracy(report, 0.0, 0)
    found = compare([good, bad], [bad, bad], replicates=400)
    assert found.overall == (0.5, 0.0, 1.0)


def test_a_comparison_says_which_model_is_constant(report: RobustnessReport) -> None:
    constant = dataclasses.replace(
        report,
        name="constant",
        answers={
            key: dataclasses.replace(a, predictions=np.zeros_like(a.predictions))
            for key, a in report.answers.items()
        },
    )
    found = compare(report, constant, replicates=10)
    assert any("constant always predicts '0'" in warning for warning in found.warnings)
    assert "never left the majority class" in found.to_markdown()
    assert not compare(report, report, replicates=10).warnings
