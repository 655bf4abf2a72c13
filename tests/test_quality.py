"""GaussianQualityEstimator against torch.distributions and plain moments."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from robustfusion import GaussianQualityEstimator
from robustfusion.functional import CovarianceType

TYPES: tuple[CovarianceType, ...] = ("spherical", "diag", "full")


def samples(n: int = 40, dim: int = 3) -> torch.Tensor:
    mixing = torch.randn(dim, dim).double()
    return torch.randn(n, dim).double() @ mixing + torch.arange(dim)


def test_diag_is_a_product_of_normals() -> None:
    x = samples()
    estimator = GaussianQualityEstimator(3, covariance_type="diag").double().fit(x)
    expected = Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum(-1)  # type: ignore[no-untyped-call]
    assert_close(estimator.log_prob(x), expected)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_full_is_a_multivariate_normal(shrinkage: float) -> None:
    x, eps = samples(), 1e-3
    estimator = GaussianQualityEstimator(
        3, covariance_type="full", shrinkage=shrinkage, eps=eps
    ).double()
    covariance = x.T.cov(correction=0)
    average = covariance.diagonal().mean()
    shrunk = (1 - shrinkage) * covariance + (shrinkage * average + eps) * torch.eye(3).double()
    expected = MultivariateNormal(x.mean(0), shrunk).log_prob(x)  # type: ignore[no-untyped-call]
    assert_close(estimator.fit(x).log_prob(x), expected)


def test_diag_shrinks_to_the_average_variance() -> None:
    x = samples()
    estimator = GaussianQualityEstimator(3, covariance_type="diag", shrinkage=1.0).double().fit(x)
    average = x.var(0, correction=0).mean().sqrt()
    assert_close(estimator.distribution.scale, average.expand(3))


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("dim", [2, 50])
def test_log_quality_is_minus_a_half_on_average_at_any_width(
    covariance_type: CovarianceType, dim: int
) -> None:
    x = samples(400, dim)
    estimator = GaussianQualityEstimator(dim, covariance_type=covariance_type, eps=1e-12)
    quality = estimator.double().fit(x)(x)
    assert quality.mean().item() == pytest.approx(-0.5, rel=1e-3)
    assert (quality <= 0).all()


@pytest.mark.parametrize("covariance_type", TYPES)
def test_invalid_rows_do_not_enter_the_fit(covariance_type: CovarianceType) -> None:
    x, valid = samples(), torch.arange(40) % 3 > 0
    estimator = GaussianQualityEstimator(3, covariance_type=covariance_type).double()
    expected = estimator.fit(x[valid]).distribution
    for value in (math.nan, math.inf, 1e6):
        actual = estimator.fit(x.where(valid[:, None], value), valid).distribution
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_thin_data_keeps_the_moments(covariance_type: CovarianceType, count: int) -> None:
    estimator = GaussianQualityEstimator(3, covariance_type=covariance_type, min_samples=5)
    # Born as N(0, I); for spherical the scale is the root mean square distance.
    born = estimator.distribution
    assert (born.mean == 0).all()
    expected = {"spherical": torch.tensor(3.0).sqrt(), "diag": torch.ones(3), "full": torch.eye(3)}
    assert_close(born.scale, expected[covariance_type])
    x = samples(10).float()
    valid = torch.arange(10) < count
    for a, b in zip(estimator.fit(x, valid).distribution, born, strict=True):
        assert torch.equal(a, b)
    fitted = estimator.fit(x).distribution
    assert not torch.equal(fitted.mean, born.mean)
    for a, b in zip(estimator.fit(x, valid).distribution, fitted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_collapsed_data_stays_finite(covariance_type: CovarianceType) -> None:
    estimator = GaussianQualityEstimator(3, covariance_type=covariance_type)
    estimator.fit(torch.ones(8, 3))
    assert estimator(torch.randn(5, 3)).isfinite().all()
    assert estimator.log_prob(torch.ones(1, 3)).isfinite().all()


def test_wide_features_do_not_underflow() -> None:
    estimator = GaussianQualityEstimator(1024, covariance_type="diag")
    x = torch.randn(64, 1024)
    estimator.fit(x)
    assert estimator.log_prob(3 * x).isfinite().all()
    assert (estimator(3 * x) < estimator(x)).all()


def test_statistics_are_float32_whatever_the_features() -> None:
    estimator = GaussianQualityEstimator(3).fit(torch.randn(20, 3).bfloat16())
    assert estimator.distribution.mean.dtype == torch.float32
    assert estimator(torch.randn(4, 3).bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert estimator.log_prob(torch.randn(4, 3)).dtype == torch.float32


def test_leading_dimensions_are_free() -> None:
    estimator, x = GaussianQualityEstimator(3, covariance_type="full"), torch.randn(2, 5, 4, 3)
    estimator.fit(torch.randn(30, 3))
    for score in (estimator, estimator.log_prob):
        assert_close(score(x), score(x.reshape(-1, 3)).reshape(2, 5, 4))
    assert estimator(x[0, 0, 0]).shape == ()


def test_a_pending_backward_survives_the_next_fit() -> None:
    estimator, x = GaussianQualityEstimator(3), torch.randn(4, 3, requires_grad=True)
    estimator.fit(torch.randn(9, 3))
    score = estimator.log_prob(x).sum()
    estimator.fit(5 * torch.randn(9, 3))
    score.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance_type": "tied"}, r"covariance_type must be in .* got 'tied'"),
        ({"min_samples": 0}, "min_samples must be at least 1, got 0"),
        ({"shrinkage": 1.5}, "shrinkage must be between 0.0 and 1.0, got 1.5"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianQualityEstimator(3, **options)  # type: ignore[arg-type]


def test_errors_name_the_argument() -> None:
    estimator = GaussianQualityEstimator(3)
    with pytest.raises(ValueError, match=r"features must have shape \(\.\.\., 3\), got \(5, 4\)"):
        estimator(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"samples must have shape \(B, 3\), got \(5, 4\)"):
        estimator.fit(torch.randn(5, 4))
    with pytest.raises(TypeError, match=r"features must have a floating dtype, got torch.int64"):
        estimator.log_prob(torch.ones(5, 3).long())
    with pytest.raises(TypeError, match=r"valid must have dtype torch.bool, got torch.int64"):
        estimator.fit(torch.randn(5, 3), torch.ones(5).long())
    with pytest.raises(ValueError, match=r"valid must have shape \(5,\), got \(4,\)"):
        estimator.fit(torch.randn(5, 3), torch.ones(4).bool())
