"""Imputation and EmbraceNet, each against an obvious version."""

import pytest
import torch
from torch import Tensor

from robustfusion.baselines import EmbraceNetHead, ImputationHead
from robustfusion.baselines.embracenet import embrace

DIMS = {"text": 5, "image": 4}


def make_features(rows: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(rows, dim) for name, dim in DIMS.items()}


def masks(text: list[int], image: list[int]) -> dict[str, Tensor]:
    return {"text": torch.tensor(text).bool(), "image": torch.tensor(image).bool()}


def test_mean_imputation_is_the_mean_of_all_past_samples() -> None:
    torch.manual_seed(0)
    features, available = {m: torch.randn(50, d) for m, d in DIMS.items()}, torch.rand(50) > 0.3
    head = ImputationHead(DIMS, 3, strategy="mean")
    for rows in torch.split(torch.arange(50), 7):
        head(
            {m: x[rows] for m, x in features.items()}, {"image": available[rows], "text": rows > 9}
        )
    nothing = head.eval()(make_features(), masks([0] * 6, [0] * 6)).extras
    image, text = features["image"][available].mean(0), features["text"][10:].mean(0)
    torch.testing.assert_close(nothing["image"], image.expand(6, 4))
    torch.testing.assert_close(nothing["text"], text.expand(6, 5))


def test_mean_imputation_uses_past_batches_only() -> None:
    head, features = ImputationHead(DIMS, 3, strategy="mean"), make_features()
    available = masks([1] * 6, [1, 1, 0, 1, 1, 0])
    first = head(features, available)
    assert (first.extras["image"][2] == 0).all()
    second = head(features, available)
    expected = features["image"][available["image"]].mean(0)
    torch.testing.assert_close(second.extras["image"][2], expected)
    assert torch.equal(second.extras["image"][0], features["image"][0])


def test_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="strategy must be"):
        ImputationHead(DIMS, 3, strategy="median")  # type: ignore[arg-type]


def test_embrace_draws_whole_dimensions_at_the_stated_rates() -> None:
    torch.manual_seed(0)
    docked = torch.stack([torch.full((2, 40_000), float(m + 1)) for m in range(3)], dim=1)
    probability = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    drawn = embrace(docked, probability)
    rates = torch.stack([(drawn[0] == m + 1).float().mean() for m in range(3)])
    torch.testing.assert_close(rates, probability[0], atol=0.01, rtol=0)
    assert (drawn[1] == 2).all()
    assert (embrace(docked, torch.zeros(2, 3)) == 0).all()


def test_embracenet_evaluates_the_expectation() -> None:
    head, features = EmbraceNetHead(DIMS, 3).eval(), make_features()
    out = head(features, masks([1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 1]))
    text = head.docking["text"](features["text"])
    image = head.docking["image"](features["image"])
    expected = torch.stack([(text[0] + image[0]) / 2, text[1], image[2], 0 * text[3]])
    torch.testing.assert_close(out.fused[:4], expected)
