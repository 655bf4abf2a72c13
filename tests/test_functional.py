"""The pure functions against loops, with masks, extremes and gradients."""

import math

import oracles
import pytest
import torch
from oracles import rows_of
from torch.testing import assert_close

from robustfusion.functional import (
    CovarianceType,
    Gaussian,
    fit_gaussian,
    gaussian_log_prob,
    mahalanobis_sq,
    masked_mean,
    masked_softmax,
    moment_matching_loss,
    sample_recovery_loss,
)

TYPES: tuple[CovarianceType, ...] = ("spherical", "diag", "full")


@pytest.mark.parametrize("covariance_type", TYPES)
def test_mahalanobis_whitens(covariance_type: CovarianceType) -> None:
    x = torch.randn(50, 3).double() @ torch.randn(3, 3).double()
    gaussian = fit_gaussian(x, covariance_type=covariance_type, eps=1e-12)
    expectation = 1.0 if covariance_type == "spherical" else 3.0
    assert mahalanobis_sq(x, gaussian).mean().item() == pytest.approx(expectation)
    # One vector by hand: the distance is the same through the precision matrix.
    scale = gaussian.scale
    full = covariance_type == "full"
    covariance = scale @ scale.mT if full else scale.square().expand(3).diag()
    centred = x[0] - gaussian.mean
    by_hand = centred @ torch.linalg.solve(covariance, centred)
    assert_close(mahalanobis_sq(x[0], gaussian), by_hand)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_fit_is_differentiable(covariance_type: CovarianceType) -> None:
    x = torch.randn(6, 3).double().requires_grad_()
    valid = torch.arange(6) != 2

    def scalar(x: torch.Tensor) -> torch.Tensor:
        mean, scale = fit_gaussian(x, valid, covariance_type=covariance_type, shrinkage=0.1)
        return mean.square().sum() + scale.square().sum()

    assert torch.autograd.gradcheck(scalar, [x])
    scalar(x).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert (x.grad[2] == 0).all()


@pytest.mark.parametrize("covariance_type", TYPES)
def test_log_prob_is_differentiable(covariance_type: CovarianceType) -> None:
    gaussian = fit_gaussian(torch.randn(9, 3).double(), covariance_type=covariance_type)
    x = torch.randn(4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gaussian_log_prob(x, gaussian), [x])


def test_moment_matching_is_differentiable() -> None:
    target = fit_gaussian(torch.randn(9, 3).double())
    x = torch.randn(5, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moment_matching_loss(fit_gaussian(x), target), [x])


@pytest.mark.parametrize("covariance_type", TYPES)
def test_no_valid_row_gives_a_finite_fit(covariance_type: CovarianceType) -> None:
    nothing = torch.zeros(5, dtype=torch.bool)
    x = torch.full((5, 3), math.nan)
    mean, scale = fit_gaussian(x, nothing, covariance_type=covariance_type)
    assert (mean == 0).all()
    assert scale.isfinite().all()
    assert fit_gaussian(x[:0], covariance_type=covariance_type).scale.isfinite().all()


def test_a_singular_covariance_falls_back_to_its_diagonal() -> None:
    direction = torch.randn(1, 64)
    x = torch.randn(8, 1) @ direction * 1e4
    gaussian = fit_gaussian(x, covariance_type="full")
    assert gaussian.scale.isfinite().all()
    assert (gaussian.scale.diagonal() > 0).all()
    assert gaussian_log_prob(x, gaussian).isfinite().all()


def test_masked_mean() -> None:
    values, keep = torch.tensor([1.0, math.nan, 3.0]), torch.tensor([True, False, True])
    assert masked_mean(values, keep) == 2
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)) == 0
    assert masked_mean(values[:0]) == 0
    assert masked_mean(torch.tensor([1.0, 2.0])) == 1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_softmax_in_every_dtype(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.0, 1.0, -math.inf], [5.0, 5.0, 5.0]], dtype=dtype)
    available = torch.tensor([[True, True, True], [False, False, False]])
    weights = masked_softmax(scores, available)
    assert weights.dtype == dtype
    expected = oracles.softmax([0.0, 1.0], [True, True])
    assert_close(weights[0], torch.tensor([*expected, 0.0], dtype=dtype))
    assert (weights[1] == 0).all()


def test_masked_softmax_along_another_dimension() -> None:
    scores, available = torch.randn(3, 4), torch.rand(3, 4) > 0.4
    assert_close(masked_softmax(scores, available, dim=0), masked_softmax(scores.T, available.T).T)


def test_masked_scores_get_no_gradient() -> None:
    scores = torch.tensor([[0.0, math.nan, 2.0]], requires_grad=True)
    weight = masked_softmax(scores, torch.tensor([[True, False, True]]))[0, 0]
    weight.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 1] == 0


def test_unpaired_rows_get_no_gradient() -> None:
    recovered = torch.randn(4, 3, requires_grad=True)
    target = torch.full((4, 3), math.nan).index_fill(0, torch.tensor([0, 1]), 1.0)
    loss = sample_recovery_loss(recovered, target, torch.tensor([1, 1, 0, 0]).bool())
    loss.backward()  # type: ignore[no-untyped-call]
    assert recovered.grad is not None
    assert (recovered.grad[2:] == 0).all()
    assert (recovered.grad[:2] != 0).all()


def test_low_precision_is_computed_in_float32() -> None:
    x = (100 + torch.randn(200, 8)).bfloat16()
    fit = fit_gaussian(x)
    assert fit.mean.dtype == fit.scale.dtype == torch.float32
    assert fit.scale.item() == pytest.approx(oracles.spread(rows_of(x)), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fit_gaussian(x.float()).mean, fit.mean)
        full = fit_gaussian(x.float(), covariance_type="full")
        assert full.scale.dtype == torch.float32
        assert gaussian_log_prob(x, full).dtype == torch.float32


def test_options_are_checked() -> None:
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"covariance_type must be .*, got 'tied'"):
        fit_gaussian(x, covariance_type="tied")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shrinkage must be between 0.0 and 1.0, got -1"):
        fit_gaussian(x, shrinkage=-1)
    with pytest.raises(ValueError, match=r"one covariance type, got shapes \(\) and \(3,\)"):
        moment_matching_loss(fit_gaussian(x), Gaussian(torch.zeros(3), torch.ones(3)))
