"""Scores, intervals and tests against slow oracles."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from robustfusion.evaluation.statistics import (
    bootstrap_weights,
    calibration_error,
    classification_scores,
    combine_p_values,
    estimate,
    holm,
    mcnemar_exact,
    risk_coverage,
    separation_auroc,
    sign_flip_p_values,
    weighted_mean,
)


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


def test_sign_flips_equal_every_sign_tried() -> None:
    generator = np.random.default_rng(0)
    differences = generator.normal(0.4, 1, (10, 2))
    signs = np.array(list(itertools.product((-1, 1), repeat=10)))
    sums = np.abs(signs @ differences)
    expected = (sums >= np.abs(differences.sum(0)) - 1e-9).mean(0)
    found = sign_flip_p_values(differences, flips=40_000)
    np.testing.assert_allclose(found, expected, atol=0.01)
    again = sign_flip_p_values(differences, flips=40_000)
    np.testing.assert_array_equal(found, again)


def test_sign_flips_of_right_and_wrong_are_mcnemars_test() -> None:
    outcomes = np.repeat([1.0, -1.0, 0.0], [14, 5, 60])[:, None]
    found = sign_flip_p_values(outcomes, flips=40_000)[0]
    assert found == pytest.approx(mcnemar_exact(14, 5), abs=0.006)


def test_sign_flips_keep_their_level() -> None:
    generator = np.random.default_rng(0)
    alike = generator.choice([-1.0, 0.0, 1.0], (60, 400), p=[0.2, 0.6, 0.2])
    assert (sign_flip_p_values(alike, flips=2000) <= 0.05).mean() <= 0.07


def test_weighted_means_equal_means_of_the_resampled_rows() -> None:
    generator = np.random.default_rng(1)
    values = generator.random((2, 40)).astype(np.float32)
    counted = generator.random((2, 40)) < 0.6
    weights = np.concatenate(list(bootstrap_weights(40, 5, seed=3)))
    some, everything = weighted_mean(values, weights, counted), weighted_mean(values, weights)
    for r, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), counts)
        for s in range(2):
            kept = rows[counted[s, rows]]
            assert some[r, s] == pytest.approx(values[s, kept].mean(), rel=1e-5)
            assert everything[r, s] == pytest.approx(values[s, rows].mean(), rel=1e-5)
    assert np.isnan(weighted_mean(values, weights, np.zeros((2, 40), bool))).all()


def test_risk_coverage_equals_a_loop() -> None:
    generator = np.random.default_rng(0)
    correct, confidence = generator.random((2, 50)) < 0.7, generator.random((2, 50))
    coverage, risk = risk_coverage(correct, confidence)
    for place, k in enumerate(range(1, 51)):
        wrong = [(~correct[s][np.argsort(-confidence[s])[:k]]).mean() for s in range(2)]
        assert coverage[place] == pytest.approx(k / 50)
        assert risk[place] == pytest.approx(np.mean(wrong))


def test_equal_confidences_have_no_order() -> None:
    correct = np.array([[True, False, False, True]])
    _, risk = risk_coverage(correct, np.full((1, 4), 0.5))
    np.testing.assert_allclose(risk, 0.5)


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
