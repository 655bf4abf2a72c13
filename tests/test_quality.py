"""What every quality estimator promises, and the Gaussian one against torch.distributions."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from robustfusion import (
    DRFHead,
    GaussianQualityEstimator,
    NeighborQualityEstimator,
    QualityEstimator,
    calibrate,
)
from robustfusion.functional import CovarianceType, fit_gaussian, mahalanobis_sq

TYPES: tuple[CovarianceType, ...] = ("spherical", "diag", "full")
ESTIMATORS: dict[str, Callable[..., QualityEstimator]] = {
    "neighbor": NeighborQualityEstimator,
    **{
        kind: partial(GaussianQualityEstimator, covariance_type=kind, shrinkage=0.1)
        for kind in TYPES
    },
}
each = pytest.mark.parametrize("kind", ESTIMATORS)
DIM = 24


class World:
    """Features as encoders make them: few directions vary, and none of them lies around zero."""

    def __init__(self, dim: int = DIM, directions: int = 6) -> None:
        self.center, self.mixing = 2 + torch.randn(dim), torch.randn(directions, dim)

    def draw(self, n: int) -> Tensor:
        noise = 0.3 * torch.randn(n, len(self.center))
        return self.center + torch.randn(n, len(self.mixing)) @ self.mixing + noise

    def broken(self, n: int) -> Tensor:
        """Each coordinate comes from another sample, so that each alone looks intact."""
        x = self.draw(n)
        return torch.stack([column[torch.randperm(n)] for column in x.T], dim=1)


def state_of(estimator: QualityEstimator) -> list[Tensor]:
    return [buffer.clone() for buffer in estimator.buffers()]


# ------------------------------------------------------------------------------------ the contract


@each
def test_observe_is_forward_and_then_learns(kind: str) -> None:
    world, estimator = World(), ESTIMATORS[kind](DIM, capacity=64)
    for step in range(12):
        x, here = world.draw(16), torch.rand(16) > 0.2
        rows = x.where(here[:, None], torch.nan)
        expected, before = estimator(x), state_of(estimator)
        got = estimator.observe(rows, here)
        assert torch.equal(got[here], expected[here]), step
        assert any(not torch.equal(a, b) for a, b in zip(before, estimator.buffers(), strict=True))
        assert len(estimator.queue) == min(64, int(estimator.queue.count))
    assert not got.requires_grad


@each
def test_forward_and_p_value_write_nothing(kind: str) -> None:
    world = World()
    estimator = ESTIMATORS[kind](DIM).fit(world.draw(100)).calibrate(world.draw(50))
    before = state_of(estimator)
    estimator(world.draw(8))
    estimator.p_value(world.draw(8))
    assert all(torch.equal(a, b) for a, b in zip(before, estimator.buffers(), strict=True))


@each
def test_fit_forgets_and_takes_valid_rows_alone(kind: str) -> None:
    world = World()
    x, valid = world.draw(120), torch.arange(120) % 3 > 0
    once = ESTIMATORS[kind](DIM).fit(x[valid])
    again = ESTIMATORS[kind](DIM).fit(50 * world.draw(90))
    again.calibrate(world.draw(40)).fit(x.where(valid[:, None], torch.nan), valid)
    probe = world.draw(30)
    assert_close(again(probe), once(probe))
    assert_close(again.p_value(probe), once.p_value(probe))


@each
def test_hidden_rows_leave_no_trace(kind: str) -> None:
    world = World()
    x, here = world.draw(40), torch.arange(40) % 4 > 0
    states = []
    for value in (0.0, torch.nan, torch.inf, 1e6):
        estimator = ESTIMATORS[kind](DIM, capacity=64)
        for rows, mask in zip(torch.split(x, 10), torch.split(here, 10), strict=True):
            estimator.observe(rows.where(mask[:, None], value), mask)
        states.append(state_of(estimator))
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(state, states[0], strict=True))


@each
def test_what_calibrate_was_told_is_forgotten_when_training_goes_on(kind: str) -> None:
    world = World()
    estimator = ESTIMATORS[kind](DIM).fit(world.draw(200))
    probe = world.draw(50)
    estimator.calibrate(world.draw(19))
    assert int(estimator.reference_count) == 19
    p = estimator.p_value(probe)
    assert_close(p * 20, (p * 20).round())
    estimator.observe(world.draw(10))
    assert int(estimator.reference_count) == 0
    p = estimator.p_value(probe)
    assert_close(p * 211, (p * 211).round())  # beside the rows of training again


@each
def test_a_saved_estimator_is_the_same_estimator(kind: str) -> None:
    world = World()
    estimator = ESTIMATORS[kind](DIM).fit(world.draw(90)).calibrate(world.draw(40))
    fresh = ESTIMATORS[kind](DIM)
    fresh.load_state_dict(estimator.state_dict())
    probe = torch.cat([world.draw(10), world.broken(10)])
    for _ in range(2):
        assert torch.equal(fresh(probe), estimator(probe))
        assert torch.equal(fresh.p_value(probe), estimator.p_value(probe))
        rows = world.draw(16)
        assert torch.equal(fresh.observe(rows), estimator.observe(rows))


@each
def test_calibration_takes_an_even_choice_of_many_rows_and_refuses_too_few(kind: str) -> None:
    world = World()
    estimator = ESTIMATORS[kind](DIM).fit(world.draw(100))
    estimator.calibrate(world.draw(3000))
    assert int(estimator.reference_count) == 2048
    with pytest.raises(ValueError, match="features must have at least 2 available rows, got 1"):
        estimator.calibrate(world.draw(3), torch.tensor([False, True, False]))


# ---------------------------------------------------------------------------------------- p-values


def binomial_bounds(trials: int, rate: float) -> tuple[float, float]:
    """Where a share of ``trials`` lies but for one in ten thousand."""
    slack = 3.9 * math.sqrt(rate * (1 - rate) / trials)
    return rate - slack, rate + slack


@each
def test_p_values_of_intact_rows_are_at_most_alpha_with_probability_alpha(kind: str) -> None:
    world = World()
    estimator = ESTIMATORS[kind](DIM).fit(world.draw(60))
    trials = 400
    # A new reference set and one new row each time, so that trials are independent.
    p = torch.cat([
        estimator.calibrate(world.draw(99)).p_value(world.draw(1)) for _ in range(trials)
    ])  # fmt: skip
    for alpha in (0.01, 0.05, 0.1, 0.5):
        low, high = binomial_bounds(trials, alpha)
        assert low <= float((p <= alpha).float().mean()) <= high, alpha


@each
def test_p_values_are_ranks(kind: str) -> None:
    world = World()
    estimator = ESTIMATORS[kind](DIM).fit(world.draw(100))
    held_out, probe = world.draw(39), torch.cat([world.draw(20), world.broken(20)])
    estimator.calibrate(held_out)
    reference, scores = estimator(held_out).tolist(), estimator(probe).tolist()
    expected = [(1 + sum(r <= s for r in reference)) / 40 for s in scores]
    assert_close(estimator.p_value(probe), torch.tensor(expected))
    assert_close(estimator.p_value_of(estimator(probe)), torch.tensor(expected))


def blanks(world: World) -> dict[str, Tensor]:
    x = world.draw(64)
    return {
        "zeros": torch.zeros(1, DIM),
        "mean": world.draw(4000).mean(0, keepdim=True),
        "constant": torch.ones(1, DIM),
        "0.1x": 0.1 * x,
        "10x": 10 * x,
        "nan": x[:1].where(torch.arange(DIM) > 0, torch.nan),
        "inf": x[:1].where(torch.arange(DIM) > 0, -torch.inf),
        "1e9": x[:1].where(torch.arange(DIM) > 0, 1e9),
        "1e30": x[:1].where(torch.arange(DIM) > 0, 1e30),
    }


@each
@pytest.mark.parametrize("learned", ["fit", "fit and calibrated", "one batch and calibrated"])
def test_blanks_and_lengths_alarm(kind: str, learned: str) -> None:
    world = World(directions=16)  # with few, lengths vary so much that a mean is not unusual
    estimator = ESTIMATORS[kind](DIM)
    if learned.startswith("fit"):
        estimator.fit(world.draw(500))
    else:  # beside an empty queue, which says nothing about any of its rows
        estimator.observe(world.draw(500))
    if learned.endswith("calibrated"):
        estimator.calibrate(world.draw(200))
    for name, rows in blanks(world).items():
        p = estimator.p_value(rows)
        assert (p <= 0.05).all(), (name, p.max())
        assert not estimator(rows).isnan().any()
    assert (estimator.p_value(world.draw(500)) <= 0.05).float().mean() < 0.12


@each
def test_rows_that_are_not_finite_have_quality_zero_and_teach_nothing(kind: str) -> None:
    world = World()
    estimator, spared = (ESTIMATORS[kind](DIM) for _ in range(2))
    x = world.draw(40)
    broken = x.clone()
    for place, value in enumerate((torch.nan, torch.inf, -torch.inf, 1e13, -3e38)):
        broken[place, place] = value
    for each_estimator in (estimator, spared):
        each_estimator.fit(world.draw(50) if each_estimator is estimator else torch.zeros(0, DIM))
    spared.load_state_dict(estimator.state_dict())
    quality = estimator.observe(broken)
    spared.observe(x, torch.arange(40) > 4)
    assert all(
        torch.equal(a, b) for a, b in zip(estimator.buffers(), spared.buffers(), strict=True)
    )
    assert quality[5:].isfinite().all()
    assert (estimator(broken)[:5].exp() == 0).all()
    assert (estimator.p_value(broken)[:5] == estimator.p_value(broken).min()).all()


# ------------------------------------------------------------------------ it does not die silently


def auroc(intact: Tensor, broken: Tensor) -> float:
    return float((intact[:, None] > broken).float().mean())


@pytest.mark.parametrize("epochs", [1, 6, 20])
@pytest.mark.parametrize("rows", [225, 500])
def test_small_data_and_many_epochs(rows: int, epochs: int) -> None:
    """With fewer rows than the queue holds, each row lies in it many times over."""
    worlds = {"image": World(48, 8), "text": World(32, 6)}
    head = DRFHead({"image": 48, "text": 32}, 3, hidden_features=8)
    data = {m: world.draw(rows) for m, world in worlds.items()}
    for _ in range(epochs):
        for batch in torch.randperm(rows).split(32):  # type: ignore[no-untyped-call]
            with torch.no_grad():
                head({m: x[batch] for m, x in data.items()})
    head.eval()
    seen = head(data)
    intact = head({m: world.draw(300) for m, world in worlds.items()})
    broken = head({m: world.broken(300) for m, world in worlds.items()})
    for m in worlds:
        assert auroc(intact.log_quality[m], broken.log_quality[m]) >= 0.9, m
        for quality in (seen.log_quality[m], intact.log_quality[m]):
            assert quality.exp().std() > 0.05, m
        assert 0.25 < intact.log_quality[m].exp().mean() < 0.75, m
    p = head.p_values(intact)
    assert all(float((x <= 0.05).float().mean()) < 0.2 for x in p.values())


@each
@pytest.mark.parametrize("epochs", [1, 6, 20])
def test_no_estimator_is_ever_constant(kind: str, epochs: int) -> None:
    world, estimator = World(), ESTIMATORS[kind](DIM)
    rows = world.draw(225)
    for _ in range(epochs):
        for batch in torch.split(rows[torch.randperm(225)], 45):
            quality = estimator.observe(batch)
    for values in (quality, estimator(world.draw(200)), estimator(rows)):
        assert values.exp().std() > 0.05
    # Lengths alone tell these apart, whatever the estimator.
    assert auroc(estimator(world.draw(200)), estimator(4 * world.draw(200))) > 0.9


def test_an_estimator_of_one_s_own_works_in_the_head() -> None:
    class Largest(QualityEstimator):
        def distance(self, features: Tensor) -> Tensor:
            return self.standardize(features).abs().amax(1)

    world = World()
    head = DRFHead({"image": DIM, "text": DIM}, 3, quality=Largest, hidden_features=8)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(12):
        out = head({m: world.draw(32) for m in head.dims})
        head.loss(out, torch.randint(3, (32,))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    head.eval()
    x = world.draw(64)
    spiked = x.clone()
    spiked[:, 0] += 60
    intact = head({"image": x, "text": x})
    odd = head({"image": spiked, "text": x})
    assert (odd.log_quality["image"] < intact.log_quality["image"] - 1).all()
    assert (odd.weights[:, 2] > odd.weights[:, 1]).all()  # text alone above image alone


# -------------------------------------------------------------------------- the Gaussian estimator


def samples(n: int = 40, dim: int = 3) -> Tensor:
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


@pytest.mark.parametrize("kind", TYPES)
def test_observing_fits_the_queue(kind: CovarianceType) -> None:
    x = samples(90)
    estimator = GaussianQualityEstimator(3, covariance_type=kind, capacity=50).double()
    for batch in torch.split(x, 20):
        estimator.observe(batch)
    expected = fit_gaussian(x[-50:], covariance_type=kind)
    for a, b in zip(estimator.distribution, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", TYPES)
def test_a_stored_row_is_measured_by_the_gaussian_of_the_others(kind: CovarianceType) -> None:
    x = torch.randn(30, 5).double() @ torch.randn(5, 5).double() + 3
    estimator = GaussianQualityEstimator(5, covariance_type=kind, eps=1e-12).double().fit(x)
    refitted = torch.stack([
        mahalanobis_sq(
            x[k], fit_gaussian(torch.cat([x[:k], x[k + 1 :]]), covariance_type=kind, eps=1e-12)
        )
        for k in range(30)
    ])  # fmt: skip
    # To a constant factor, which the deviation of scores divides out: n / (n - 1).
    difference = estimator.leave_one_out_distance(x) - 0.5 * (refitted * 29 / 30).log()
    assert difference.abs().max() < (0.15 if kind == "diag" else 1e-6)
    assert (estimator.leave_one_out_distance(x) > estimator.distance(x)).all()


@pytest.mark.parametrize("kind", TYPES)
def test_thin_data_is_born_normal_and_keeps_its_moments(kind: CovarianceType) -> None:
    estimator = GaussianQualityEstimator(3, covariance_type=kind, min_samples=5)
    # Born as N(0, I); for spherical the scale is the root mean square distance.
    born = estimator.distribution
    assert (born.mean == 0).all()
    expected = {"spherical": torch.tensor(3.0).sqrt(), "diag": torch.ones(3), "full": torch.eye(3)}
    assert_close(born.scale, expected[kind])
    x = samples(10).float()
    for count in range(5):
        assert int(estimator.queue.count) == count
        for a, b in zip(estimator.distribution, born, strict=True):
            assert torch.equal(a, b)
        estimator.observe(x[count : count + 1])
    assert not torch.equal(estimator.distribution.mean, born.mean)
    # From scratch: what was fitted before is forgotten.
    for a, b in zip(estimator.fit(x[:4]).distribution, born, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", TYPES)
def test_collapsed_data_stays_finite(kind: CovarianceType) -> None:
    estimator = GaussianQualityEstimator(3, covariance_type=kind)
    estimator.fit(torch.ones(8, 3))
    assert estimator(torch.randn(5, 3)).isfinite().all()
    assert estimator.log_prob(torch.ones(1, 3)).isfinite().all()


def test_wide_features_do_not_underflow() -> None:
    estimator = GaussianQualityEstimator(1024, covariance_type="diag")
    x = torch.randn(64, 1024)
    estimator.fit(x)
    assert estimator.log_prob(3 * x).isfinite().all()
    assert (estimator(3 * x) < estimator(x)).all()


@each
def test_statistics_are_float32_whatever_the_features(kind: str) -> None:
    estimator = ESTIMATORS[kind](3).fit(torch.randn(20, 3).bfloat16())
    assert {x.dtype for x in estimator.buffers() if x.is_floating_point()} == {torch.float32}
    assert estimator(torch.randn(4, 3).bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert estimator(torch.randn(4, 3)).dtype == torch.float32
        assert estimator.observe(torch.randn(4, 3)).dtype == torch.float32


@each
def test_half_precision_features_do_not_overflow(kind: str) -> None:
    estimator = ESTIMATORS[kind](4, capacity=32)
    x = (2e4 * torch.randn(32, 4)).clamp(-6e4, 6e4)
    estimator.observe(x.half())
    estimator.observe(x.half())
    assert all(buffer.isfinite().all() for buffer in estimator.buffers())
    assert estimator(x.half()).isfinite().all()


def test_log_prob_takes_any_leading_dimensions() -> None:
    estimator, x = GaussianQualityEstimator(3, covariance_type="full"), torch.randn(2, 5, 4, 3)
    estimator.fit(torch.randn(30, 3))
    assert_close(estimator.log_prob(x), estimator.log_prob(x.reshape(-1, 3)).reshape(2, 5, 4))
    assert estimator.log_prob(x[0, 0, 0]).shape == ()


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
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianQualityEstimator(3, **options)


@each
def test_errors_name_the_argument(kind: str) -> None:
    estimator, x = ESTIMATORS[kind](3), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 3\), got \(5, 4\)"):
        estimator(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"features must have shape \(B, 3\), got \(5, 4\)"):
        estimator.fit(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"features must have shape \(B, 3\), got \(5, 4\)"):
        estimator.calibrate(torch.randn(5, 4))
    with pytest.raises(TypeError, match=r"features must have a floating dtype, got torch.int64"):
        estimator.observe(x.long())
    with pytest.raises(TypeError, match=r"available must have dtype torch.bool, got torch.int64"):
        estimator.fit(x, torch.ones(5).long())
    with pytest.raises(ValueError, match=r"available must have shape \(5,\), got \(4,\)"):
        estimator.observe(x, torch.ones(4).bool())
    with pytest.raises(TypeError, match="abstract"):
        QualityEstimator(3)  # type: ignore[abstract]


def test_a_share_of_alarms_of_too_few_rows_is_not_a_number() -> None:
    head = DRFHead({"image": 8, "text": 4}, num_classes=3)
    rows = {name: torch.randn(60, dim) for name, dim in head.dims.items()}
    here = {"image": torch.ones(60, dtype=torch.bool), "text": torch.arange(60) < 30}
    batch = {"inputs": rows, "available": here, "label": torch.arange(60) % 3}
    told = calibrate(head, [batch]).to_markdown()
    assert re.search(r"Alarms at 5 %: image \d+\.\d %, text unknown \(too few rows\)\.", told)
