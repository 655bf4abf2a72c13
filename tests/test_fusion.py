"""QualityWeightedFusion: its options and errors. Its laws are in test_properties."""

import pytest
import torch
from torch.testing import assert_close

from robustfusion import QualityWeightedFusion

QUALITY = torch.tensor([[0.0, -1.0, -2.0]])


def test_normalised_weights_are_a_softmax() -> None:
    assert_close(QualityWeightedFusion().weights(QUALITY), QUALITY.softmax(-1))


def test_unnormalised_weights_are_the_qualities() -> None:
    assert_close(QualityWeightedFusion(normalize=False).weights(QUALITY), QUALITY.exp())


@pytest.mark.parametrize("normalize", [True, False])
def test_temperature_evens_out(normalize: bool) -> None:
    cold, warm = (
        QualityWeightedFusion(normalize=normalize, temperature=t).weights(QUALITY)
        for t in (0.5, 5.0)
    )
    assert warm[0, 2] / warm[0, 0] > cold[0, 2] / cold[0, 0]


@pytest.mark.parametrize("normalize", [True, False])
def test_a_score_of_minus_infinity_weighs_nothing(normalize: bool) -> None:
    fusion = QualityWeightedFusion(normalize=normalize)
    quality = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    assert_close(fusion.weights(quality), torch.eye(2))


def test_one_candidate_is_returned() -> None:
    candidates = torch.randn(4, 1, 5)
    assert_close(QualityWeightedFusion()(candidates, torch.randn(4, 1)), candidates[:, 0])


def test_gradients_reach_candidates_and_quality() -> None:
    candidates = torch.randn(4, 3, 5, requires_grad=True)
    quality = torch.randn(4, 3, requires_grad=True)
    QualityWeightedFusion()(candidates, quality).square().sum().backward()
    for x in (candidates, quality):
        assert x.grad is not None
        assert (x.grad != 0).any()


def test_the_temperature_is_positive() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        QualityWeightedFusion(temperature=0)


def test_errors_name_the_argument() -> None:
    fusion, x, quality = QualityWeightedFusion(), torch.ones(4, 3, 5), torch.ones(4, 3)
    with pytest.raises(
        ValueError, match=r"candidates must have shape \(B, K, F\) .* got \(4, 5\)"
    ):
        fusion(torch.ones(4, 5), quality)
    with pytest.raises(ValueError, match=r"got \(4, 3, 5\) and \(4, 2\)"):
        fusion(x, torch.ones(4, 2))
    with pytest.raises(TypeError, match="candidates must have a floating dtype"):
        fusion(x.long(), quality)
    with pytest.raises(TypeError, match="log_quality must have a floating dtype"):
        fusion(x, quality.long())
    with pytest.raises(TypeError, match=r"available must have dtype torch.bool"):
        fusion(x, quality, quality)
    with pytest.raises(ValueError, match=r"available must have shape \(4, 3\), got \(4,\)"):
        fusion(x, quality, torch.ones(4).bool())
