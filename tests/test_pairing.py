"""The pairing score of the gallery against slow oracles, on pairs and on strangers."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

for _name in ("sklearn", "matplotlib"):
    pytest.importorskip(_name)
sys.path.append(str(Path(__file__).parents[1] / "examples" / "gallery"))

PairingScore: Any = import_module("pairing").PairingScore


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three shared numbers behind 12 and 7 coordinates, with noise and odd scales."""
    fixed = torch.Generator().manual_seed(99)
    first_of, second_of = (torch.randn(3, d, generator=fixed) for d in (12, 7))
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 3, generator=generator)
    first = shared @ first_of + torch.randn(count, 12, generator=generator)
    second = shared @ second_of + torch.randn(count, 7, generator=generator)
    return 50 * first + 3, 0.01 * second


def auroc(high: Tensor, low: Tensor) -> float:
    return float((high[:, None] > low).float().mean())


def test_is_the_log_likelihood_ratio_of_a_gaussian() -> None:
    score = PairingScore(12, 7, components=4).fit(*pairs(3000))
    first, second = pairs(5, seed=1)
    u = (first - score.mean_0) @ score.directions_0
    v = (second - score.mean_1) @ score.directions_1
    expected = torch.zeros(5)
    for row in range(5):
        for k, rho in enumerate(score.correlation.tolist()):
            x = torch.stack([u[row, k], v[row, k]])
            joint = torch.tensor([[1.0, rho], [rho, 1.0]])
            pair = -0.5 * (x @ torch.linalg.inv(joint) @ x + torch.logdet(joint))
            expected[row] += pair + 0.5 * x @ x  # the strangers' log-density is -x @ x / 2
    torch.testing.assert_close(score(first, second), expected, rtol=1e-4, atol=1e-4)


def test_tells_pairs_from_strangers() -> None:
    score = PairingScore(12, 7).fit(*pairs(2000))
    first, second = pairs(500, seed=1)
    assert auroc(score(first, second), score(first, second.roll(1, 0))) > 0.85


def test_finds_nothing_where_nothing_is_shared() -> None:
    first, _ = pairs(2000)
    _, second = pairs(2000, seed=5)
    score = PairingScore(12, 7).fit(first, second)
    # Correlations of the rows that the directions were found on would be far from 0.
    assert score.correlation.max() < 0.15
    first, second = pairs(500, seed=1)
    assert 0.4 < auroc(score(first, second), score(first, second.roll(1, 0))) < 0.6


@pytest.mark.parametrize("held_out", [30, 300])
def test_p_values_of_true_pairs_are_true(held_out: int) -> None:
    score = PairingScore(12, 7).fit(*pairs(1000))
    shares = []
    for seed in range(40):
        score.calibrate(*pairs(held_out, seed=100 + seed))
        shares.append((score.p_value(*pairs(200, seed=500 + seed)) <= 0.1).float().mean())
    assert 0.07 < torch.stack(shares).mean() < 0.13


def test_p_value_is_the_share_at_least_as_odd() -> None:
    score = PairingScore(12, 7).fit(*pairs(1000)).calibrate(*pairs(19, seed=2))
    held = score(*pairs(19, seed=2))
    first, second = pairs(4, seed=3)
    for p, s in zip(score.p_value(first, second), score(first, second), strict=True):
        assert float(p) == pytest.approx((1 + sum(float(h) <= float(s) for h in held)) / 20)
    first[0, 0] = torch.nan
    assert float(score.p_value(first, second)[0]) == pytest.approx(1 / 20)


def test_saved_and_loaded() -> None:
    score = PairingScore(12, 7).fit(*pairs(300)).calibrate(*pairs(80, seed=1))
    fresh = PairingScore(12, 7)
    fresh.load_state_dict(score.state_dict())
    given = pairs(9, seed=2)
    assert torch.equal(fresh.p_value(*given), score.p_value(*given))


def test_too_few_pairs_are_refused() -> None:
    first, second = pairs(20)
    with pytest.raises(ValueError, match="8 pairs or more, got 5 and 5 rows"):
        PairingScore(12, 7).fit(first[:5], second[:5])
    with pytest.raises(ValueError, match="8 pairs or more, got 20 and 19 rows"):
        PairingScore(12, 7).fit(first, second[:19])
