"""The loss modules: switches, gradients, errors. Their formulas are in test_paper."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from robustfusion import DistributionConstraintLoss, DistributionRecoveryLoss
from robustfusion.functional import Gaussian, fit_gaussian


def arguments(**changes: Any) -> dict[str, Any]:
    given = {
        "recovered": torch.randn(6, 4),
        "target": torch.randn(6, 4),
        "generated": Gaussian(torch.randn(4), torch.tensor(1.5)),
        "reference": Gaussian(torch.randn(4), torch.tensor(0.5)),
    }
    return given | changes


def test_terms_add_up_by_their_weights() -> None:
    given = arguments()
    sample = DistributionRecoveryLoss(distribution_weight=0)(**given)
    distribution = DistributionRecoveryLoss(sample_weight=0)(**given)
    both = DistributionRecoveryLoss(sample_weight=2.0, distribution_weight=0.5)(**given)
    assert_close(both, 2 * sample + 0.5 * distribution)
    assert sample > 0
    assert distribution > 0


def test_a_switched_off_term_is_not_computed() -> None:
    broken = Gaussian(torch.full((4,), math.nan), torch.tensor(math.nan))
    given = arguments(generated=broken, reference=broken)
    assert DistributionRecoveryLoss(distribution_weight=0)(**given).isfinite()
    given = arguments(recovered=torch.full((6, 4), math.nan))
    assert DistributionRecoveryLoss(sample_weight=0)(**given).isfinite()
    assert DistributionRecoveryLoss(sample_weight=0, distribution_weight=0)(**given) == 0


def test_no_pair_leaves_the_distribution_term() -> None:
    given = arguments(paired=torch.zeros(6, dtype=torch.bool))
    alone = DistributionRecoveryLoss(sample_weight=0)(**given)
    assert torch.equal(DistributionRecoveryLoss()(**given), alone)


def test_perfect_recovery_costs_nothing_and_has_a_finite_gradient() -> None:
    recovered = torch.randn(6, 4, requires_grad=True)
    moments = fit_gaussian(recovered)
    loss = DistributionRecoveryLoss()(
        recovered, recovered.detach(), moments, fit_gaussian(recovered.detach())
    )
    assert loss == 0
    loss.backward()
    assert recovered.grad is not None
    assert recovered.grad.isfinite().all()


def test_constraint_falls_towards_the_own_mean() -> None:
    own, other = torch.zeros(3), torch.full((3,), 4.0)
    loss = DistributionConstraintLoss()
    near, between, far = (
        loss(torch.full((2, 3), value), own, [other]) for value in (0.0, 2.0, 4.0)
    )
    assert near < between < far
    assert between.item() == pytest.approx(1.0)


def test_an_outlier_cannot_overflow_the_constraint() -> None:
    outlier = torch.full((2, 3), -1e4, requires_grad=True)
    loss = DistributionConstraintLoss()(outlier, torch.full((3,), 1e4), [torch.zeros(3)])
    loss.backward()
    assert loss.isfinite()
    assert outlier.grad is not None
    assert outlier.grad.isfinite().all()


def test_constraint_without_rows_is_zero() -> None:
    loss = DistributionConstraintLoss()
    nothing = torch.zeros(4, dtype=torch.bool)
    assert loss(torch.full((4, 3), math.nan), torch.zeros(3), [torch.ones(3)], nothing) == 0
    assert loss(torch.zeros(0, 3), torch.zeros(3), [torch.ones(3)]) == 0


def test_weights_are_not_negative() -> None:
    with pytest.raises(ValueError, match="sample_weight must not be negative, got -1"):
        DistributionRecoveryLoss(sample_weight=-1)
    with pytest.raises(ValueError, match="distribution_weight must not be negative, got -2"):
        DistributionRecoveryLoss(distribution_weight=-2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recovered": torch.ones(6, 3)}, ValueError, r"recovered must have shape \(B, 4\)"),
        ({"recovered": torch.ones(5, 4)}, ValueError, r"recovered must have the shape of target"),
        ({"target": torch.ones(6, 4).int()}, TypeError, "target must have a floating dtype"),
        ({"paired": torch.ones(6)}, TypeError, "paired must have dtype torch.bool"),
        ({"paired": torch.ones(5).bool()}, ValueError, r"paired must have shape \(6,\)"),
        (
            {"reference": Gaussian(torch.zeros(4), torch.ones(4))},
            ValueError,
            r"generated.scale and reference.scale must be of one covariance type",
        ),
    ],
)
def test_recovery_errors_name_the_argument(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DistributionRecoveryLoss()(**arguments(**changes))


def test_constraint_errors_name_the_argument() -> None:
    loss, x, mean = DistributionConstraintLoss(), torch.ones(5, 3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 4\), got \(5, 3\)"):
        loss(x, torch.zeros(4), [mean])
    with pytest.raises(ValueError, match=r"other_means must hold .* at least one other modality"):
        loss(x, mean, [])
    with pytest.raises(TypeError, match=r"available must have dtype torch.bool"):
        loss(x, mean, [mean], torch.ones(5))
    with pytest.raises(ValueError, match=r"available must have shape \(5,\), got \(4,\)"):
        loss(x, mean, [mean], torch.ones(4).bool())
