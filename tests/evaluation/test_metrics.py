"""Metrics against scikit-learn and SciPy, on resampled rows, with ties and unknown targets."""

from typing import Any

import numpy as np
import pytest

from robustfusion.evaluation import metrics as m

oracle: Any = pytest.importorskip("sklearn.metrics")
scipy_stats: Any = pytest.importorskip("scipy.stats")

RNG = np.random.default_rng(0)
N, C, R = 60, 4, 5
WEIGHTS = np.stack([np.ones(N), *RNG.multinomial(N, np.full(N, 1 / N), size=R - 1)]).astype("f4")
ROWS = [np.repeat(np.arange(N), w.astype(int)) for w in WEIGHTS]


def test_labels() -> None:
    targets = (RNG.random((N, C)) < [0.5, 0.3, 0.2, 0.4]).astype(float)
    scores = RNG.random((N, C)).round(1)  # with ties
    guess = (scores > 0.5).astype(int)
    got = m.label_metrics(targets, guess, scores, WEIGHTS)
    for k, rows in enumerate(ROWS):
        y, x, p = targets[rows], guess[rows], scores[rows]
        for kind in ("micro", "macro"):
            expected = oracle.f1_score(y, x, average=kind, zero_division=0)
            assert got[f"{kind}_f1"][k] == pytest.approx(expected)
        expected = oracle.average_precision_score(y, p, average="macro")
        assert got["mean_average_precision"][k] == pytest.approx(expected)
        assert got["accuracy"][k] == pytest.approx((y == x).mean())


def test_unknown_labels_are_left_out() -> None:
    targets = (RNG.random((N, C)) < 0.4).astype(float)
    scores = RNG.random((N, C))
    guess = (scores > 0.5).astype(int)
    hidden = RNG.random((N, C)) < 0.3
    for unknown in (np.nan, -1.0):
        got = m.label_metrics(np.where(hidden, unknown, targets), guess, scores, WEIGHTS[:1])
        each = [
            (oracle.f1_score(*pair), oracle.average_precision_score(pair[0], p))
            for c in range(C)
            for pair, p in [
                ((targets[~hidden[:, c], c], guess[~hidden[:, c], c]), scores[~hidden[:, c], c])
            ]
        ]
        expected = np.mean(each, axis=0)
        assert got["macro_f1"][0] == pytest.approx(expected[0])
        assert got["mean_average_precision"][0] == pytest.approx(expected[1])


def test_a_label_without_samples_counts_in_no_mean() -> None:
    targets = np.array([[1.0, 0.0], [0.0, 0.0]])
    got = m.label_metrics(targets, targets.astype(int), targets, np.ones((1, 2), "f4"))
    assert got["macro_f1"][0] == got["mean_average_precision"][0] == got["micro_f1"][0] == 1
    wrong = m.label_metrics(targets, np.full((2, 2), -1), targets, np.ones((1, 2), "f4"))
    assert wrong["micro_f1"][0] == wrong["accuracy"][0] == 0


def test_numbers() -> None:
    targets = RNG.normal(size=(N, 2)).round(1)
    guess = targets + RNG.normal(size=(N, 2)).round(1)
    got = m.number_metrics(targets, guess, np.full((N, 2), 1.0), WEIGHTS)
    for k, rows in enumerate(ROWS):
        y, x = targets[rows], guess[rows]
        assert got["mae"][k] == pytest.approx(oracle.mean_absolute_error(y, x))
        assert got["r2"][k] == pytest.approx(oracle.r2_score(y, x))
        ranks = [scipy_stats.spearmanr(y[:, c], x[:, c]).statistic for c in range(2)]
        assert got["spearman"][k] == pytest.approx(np.mean(ranks))
        assert got["coverage"][k] == pytest.approx((np.abs(y - x) <= 1).mean())
    assert "coverage" not in m.number_metrics(targets, guess, None, WEIGHTS)


def test_a_constant_number_has_no_correlation() -> None:
    ones = np.ones((1, 5), "f4")
    got = m.number_metrics(np.full((5, 1), 2.0), np.arange(5.0)[:, None], None, ones)
    assert np.isnan(got["r2"][0])
    assert np.isnan(got["spearman"][0])
    targets = np.array([1.0, 2, np.nan, 3, 5])[:, None]
    got = m.number_metrics(targets, np.full((5, 1), 2.75), None, ones)
    assert got["r2"][0] == pytest.approx(0)
    assert np.isnan(got["spearman"][0])


def test_classes() -> None:
    labels, scores = RNG.integers(0, 3, N), RNG.random((N, 3)).round(1)
    got = m.class_auroc(labels, scores, WEIGHTS)
    for k, rows in enumerate(ROWS):
        each = [oracle.roc_auc_score(labels[rows] == c, scores[rows, c]) for c in range(3)]
        assert got[k] == pytest.approx(np.mean(each))
    assert np.isnan(m.auroc(np.ones(N, bool), scores[:, 0], WEIGHTS)).all()


def test_a_metric_of_your_own_gets_repeated_rows() -> None:
    labels, guess = RNG.integers(0, 3, N), RNG.integers(0, 3, (2, N))
    got = m.own_metric(oracle.cohen_kappa_score, labels, guess, iter([WEIGHTS]))
    expected = [oracle.cohen_kappa_score(labels[ROWS[1]], g[ROWS[1]]) for g in guess]
    assert got[1] == pytest.approx(np.mean(expected))


def test_what_paired_tests_compare() -> None:
    assert m.utility("multiclass", np.array([0, 1]), np.array([[0, 0]])).tolist() == [[1, 0]]
    labels = np.array([[1.0, 0.0], [1.0, np.nan]])
    assert m.utility("multilabel", labels, np.array([[[1, 1], [1, 1]]])).tolist() == [[0.5, 1]]
    numbers = np.array([[1.0, -3.0], [np.nan, 2.0]])
    assert m.utility("regression", numbers, np.zeros((1, 2, 2))).tolist() == [[-2, -2]]
    assert m.constant_predictions("regression", numbers).tolist() == [1, -0.5]
    assert m.constant_predictions("multilabel", labels).tolist() == [1, 0]
