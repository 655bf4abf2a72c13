"""What can be recovered, against scikit-learn and by hand."""

import math

import pytest
import torch

from robustfusion._recoverability import _ridge
from robustfusion.diagnostics import recoverability


def related(rows: int = 400, noise: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    hidden = draw(rows, 4)
    made = {name: hidden @ draw(4, dim) for name, dim in (("image", 12), ("text", 6))}
    return {**{m: x + noise * draw(*x.shape) for m, x in made.items()}, "noise": draw(rows, 5)}


def test_shares_of_variance_are_found() -> None:
    features = related()
    # Half of the variance of the text is its own.
    text = features["text"]
    own = torch.randn(text.shape, generator=torch.Generator().manual_seed(1))
    features["text"] = text + own * text.std(0)
    found = recoverability(features)
    assert found.rows == 400
    assert found.r2["text"]["image"] == pytest.approx(0.5, abs=0.05)
    assert found.r2["text"]["all others"] == pytest.approx(0.5, abs=0.05)
    assert found.r2["noise"]["image"] == pytest.approx(0.0, abs=0.03)
    assert 0.5 < found.r2["image"]["text"] < 1
    assert found.best("text")[1] == max(found.r2["text"].values())
    again = recoverability({name: features[name] for name in ("noise", "text", "image")})
    assert again.r2["text"]["image"] == pytest.approx(found.r2["text"]["image"], rel=1e-9)


def test_two_modalities_have_no_others() -> None:
    features = related()
    found = recoverability({name: features[name] for name in ("image", "text")})
    assert found.r2 == {
        "image": {"text": pytest.approx(1.0)},
        "text": {"image": pytest.approx(1.0)},
    }


def test_only_rows_with_both_count_and_wide_features_do_not_overfit() -> None:
    features = related(noise=0.1)
    there = {name: torch.ones(400, dtype=torch.bool) for name in features}
    there["image"][:100] = False
    features["image"][:100] = torch.nan
    features["text"][100] = torch.inf  # not finite is not there
    found = recoverability(features, there)
    assert found.r2["text"]["image"] > 0.9
    # Wider than there are rows: the best penalty is a large one.
    wide = {"image": torch.randn(60, 300), "text": torch.randn(60, 3)}
    assert -0.35 < recoverability(wide).r2["text"]["image"] < 0.1


@pytest.mark.parametrize("width", [8, 80])
def test_ridge_equals_scikit_learn_under_its_penalty(width: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, noise = torch.randn(50, width).double(), torch.randn(50, 3).double()
    x = x - x.mean(0)
    y = x @ torch.randn(width, 3).double() + noise
    y = y - y.mean(0)
    weights = _ridge(x, y)
    # The penalty is one of the grid: the ridge of one of them must be these weights.
    values = torch.linalg.svdvals(x).square()[: min(x.shape)]
    scale = (values.sum() / len(values) * 50 / 1000).item()
    close = [
        abs(
            linear.Ridge(alpha=scale * 10.0**k, fit_intercept=False).fit(x, y).coef_.T
            - weights.numpy()
        ).max()
        for k in range(-3, 6)
    ]
    assert min(close) < 1e-6


def test_the_table_says_what_it_means() -> None:
    text = recoverability(related()).to_markdown()
    assert "| recovered | from text | from noise | from all others | from image |" in text
    assert "- image: a good part can be recovered" in text
    assert "- noise: next to nothing can be recovered" in text


def test_recoverability_refuses() -> None:
    two = {"image": torch.randn(20, 3), "text": torch.randn(20, 3)}
    with pytest.raises(ValueError, match="two modalities"):
        recoverability({"image": two["image"]})
    with pytest.raises(ValueError, match=r'features\["text"\] must have shape \(20, D\)'):
        recoverability({**two, "text": torch.randn(19, 3)})
    with pytest.raises(ValueError, match="image from text: 4 rows have both"):
        recoverability(two, {"image": torch.arange(20) < 4, "text": torch.ones(20).bool()})
    with pytest.raises(ValueError, match="too few for 1 folds"):
        recoverability(two, folds=1)
    constant = {**two, "text": torch.ones(20, 3)}
    assert math.isnan(recoverability(constant).r2["text"]["image"])
