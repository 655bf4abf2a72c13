"""The neighbour score, its calibration and the estimator against slow oracles."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from robustfusion import NeighborQualityEstimator
from robustfusion.functional import fit_logistic, nearest_rows, replace_coordinates


def slow_similarity(queries: Tensor, rows: Tensor, valid: Tensor, neighbors: int) -> Tensor:
    means = []
    for query in queries:
        cosines = [
            float(query @ row / row.norm())
            for row, keep in zip(rows, valid, strict=True)
            if keep and float(query @ row / row.norm()) < 0.9999
        ]
        nearest = sorted(cosines, reverse=True)[:neighbors]
        means.append(sum(nearest) / len(nearest) if nearest else math.nan)
    return torch.tensor(means)


@pytest.mark.parametrize("chunk", [7, 16384])
@pytest.mark.parametrize("count", [0, 2, 40])
def test_similarity_is_that_of_a_loop(chunk: int, count: int) -> None:
    rows, queries = torch.randn(40, 6), torch.nn.functional.normalize(torch.randn(9, 6), dim=-1)
    queries[0] = rows[0] / rows[0].norm()  # its own copy does not count
    valid = torch.arange(40) < count
    inverse = (1 / rows.norm(dim=-1)).where(valid, 0.0)
    value, place = nearest_rows(queries, rows, inverse, torch.zeros(9), neighbors=5, chunk=chunk)
    expected = slow_similarity(queries, rows, valid, 5)
    torch.testing.assert_close(
        value.masked_fill(value.isinf(), torch.nan).nanmean(1), expected, equal_nan=True
    )
    cosine = (queries[:, None] * rows[place]).sum(-1) / rows[place].norm(dim=-1)
    torch.testing.assert_close(cosine[value.isfinite()], value[value.isfinite()])


def test_the_curve_is_that_of_scikit_learn() -> None:
    real, broken = torch.randn(300) + 1.0, 0.5 * torch.randn(300) - 0.5
    scores = torch.stack([real, broken], dim=1)
    slope, offset = fit_logistic(scores, torch.ones(300, dtype=torch.bool), ridge=0.0, steps=25)
    oracle = LogisticRegression(C=math.inf, tol=1e-10).fit(
        torch.cat([real, broken])[:, None].numpy(), [1] * 300 + [0] * 300
    )
    assert float(slope) == pytest.approx(oracle.coef_[0, 0], rel=1e-3)
    assert float(offset) == pytest.approx(oracle.intercept_[0], rel=1e-3, abs=1e-3)


def test_the_curve_never_prefers_broken_features_and_stays_finite() -> None:
    everything = torch.ones(50, dtype=torch.bool)
    upside_down = torch.stack([torch.randn(50) - 2, torch.randn(50) + 2], dim=1)
    slope, offset = fit_logistic(upside_down, everything)
    assert slope == 0
    separable = torch.stack([torch.rand(50) + 9, torch.rand(50) - 9], dim=1)
    slope, offset = fit_logistic(separable, everything)
    assert slope > 0
    assert slope.isfinite()
    assert offset.isfinite()
    assert [float(x) for x in fit_logistic(separable, ~everything)] == [0, 0]
    constant = torch.ones(50, 2)
    assert all(x.isfinite() for x in fit_logistic(constant, everything))


def test_replacing_keeps_marginals_and_the_stated_share() -> None:
    donors = torch.arange(64.0)[:, None].expand(64, 500) + 1000
    features = torch.zeros(32, 500)
    broken = replace_coordinates(
        features, donors, torch.tensor(10), torch.arange(32), shares=(0.3, 0.6)
    )
    replaced = broken != 0
    share = replaced.float().mean(1)
    assert share.min() > 0.28
    assert share.max() < 0.62
    assert share.std() > 0.05
    # Donors are the first ten rows only, and all of them.
    assert set(broken[replaced].tolist()) == {1000.0 + k for k in range(10)}


def make(dim: int = 24) -> tuple[NeighborQualityEstimator, Tensor]:
    torch.manual_seed(0)
    mixing = torch.randn(5, dim)
    estimator = NeighborQualityEstimator(dim, capacity=400)
    return estimator.fit(torch.randn(600, 5) @ mixing), mixing


def test_real_features_score_above_broken_ones() -> None:
    estimator, mixing = make()
    real = torch.randn(200, 5) @ mixing
    off = torch.randn(200, 24) * real.std()
    scores = torch.cat([estimator(real), estimator(off)])
    assert roc_auc_score([1] * 200 + [0] * 200, scores.numpy()) > 0.95
    assert estimator(real).exp().mean() > 0.6
    assert estimator(off).exp().mean() < 0.2
    assert estimator(real).max() <= 0


def test_before_anything_was_seen_the_prior_decides() -> None:
    estimator = NeighborQualityEstimator(4, prior=0.8)
    torch.testing.assert_close(estimator(torch.randn(3, 4)).exp(), torch.full((3,), 0.8))


def test_padding_rows_do_not_change_what_is_learned() -> None:
    """Ranks pad uneven batches with unavailable rows; the state must not depend on them."""
    one, other = NeighborQualityEstimator(6, capacity=50), NeighborQualityEstimator(6, capacity=50)
    for step in range(12):
        rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        padded = torch.full((9, 6), torch.nan)
        places = torch.tensor([0, 2, 3, 6, 8])
        padded[places] = rows
        mask = torch.zeros(9, dtype=torch.bool)
        mask[places] = True
        one.observe(rows)
        other.observe(padded, mask)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)


def test_standardized_features_of_the_queue_have_mean_zero_and_about_unit_variance() -> None:
    estimator, _ = make()
    z = estimator.standardize(estimator.queue.storage)
    torch.testing.assert_close(z.mean(0), torch.zeros(24), atol=1e-4, rtol=0)
    assert ((z.std(0) > 0.95) & (z.std(0) < 1.01)).all()


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="neighbors must be at least 1"):
        NeighborQualityEstimator(4, neighbors=0)
    with pytest.raises(ValueError, match=r"prior must be between 0.001 and 0.999, got 1.0"):
        NeighborQualityEstimator(4, prior=1.0)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 4\), got \(3, 5\)"):
        NeighborQualityEstimator(4)(torch.zeros(3, 5))
