"""Recoverability against scikit-learn and by hand."""

import math

import pytest
import torch

from robustfusion._recoverability import _errors
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
    assert found.samples == 400
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


def test_only_rows_with_both_count() -> None:
    features = related(noise=0.1)
    there = {name: torch.ones(400, dtype=torch.bool) for name in features}
    there["image"][:100] = False
    features["image"][:100] = torch.nan
    features["text"][100] = torch.inf  # not finite is not there
    found = recoverability(features, there)
    assert found.r2["text"]["image"] > 0.9


@pytest.mark.parametrize(("rows", "width"), [(60, 300), (200, 500), (400, 768)])
def test_nothing_is_recovered_from_independent_features_with_fewer_rows_than_columns(
    rows: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(rows, width, generator=generator)
    text = torch.randn(rows, 40, generator=generator)
    r2 = recoverability({"image": image, "text": text}).r2
    # Predicting the mean itself scores about -1 / rows out of fold.
    assert -0.05 <= r2["text"]["image"] < 0.03
    assert -0.05 <= r2["image"]["text"] < 0.03


@pytest.mark.parametrize(("rows", "width"), [(120, 300), (300, 300), (400, 30)])
def test_equals_cross_validated_ridge_of_scikit_learn(rows: int, width: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    scaling = pytest.importorskip("sklearn.preprocessing")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 5, generator=generator)
    image, text = (
        hidden @ torch.randn(5, d, generator=generator) + torch.randn(rows, d, generator=generator)
        for d in (width, 8)
    )
    r2 = recoverability({"image": image, "text": text}).r2["text"]["image"]
    ridge = linear.RidgeCV(alphas=[10.0**k * width for k in range(-5, 6)])
    model = pipeline.make_pipeline(scaling.StandardScaler(), ridge)
    folds = selection.KFold(5, shuffle=True, random_state=0)
    predicted = torch.from_numpy(selection.cross_val_predict(model, image, text, cv=folds))
    expected = 1 - float((predicted - text).square().sum() / (text - text.mean(0)).square().sum())
    assert expected > 0.5
    assert r2 == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("width", [8, 80])
def test_errors_are_those_of_the_normal_equations(width: int) -> None:
    x, y = torch.randn(60, width).double(), torch.randn(60, 3).double()
    train = torch.arange(60) < 50
    errors = _errors(x, y, train, ~train)
    z = (x - x[train].mean(0)) / x[train].std(0, unbiased=False)
    offset = y[train].mean(0)
    gram = z[train].T @ z[train]
    scale = torch.linalg.svdvals(z[train]).square().mean() * 50 / 1000
    for k, error in zip(range(-3, 8), errors, strict=True):
        penalty = scale * 10.0**k * torch.eye(width)
        weights = torch.linalg.solve(gram + penalty, z[train].T @ (y[train] - offset))
        expected = (y[~train] - offset - z[~train] @ weights).square().sum()
        torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-8)


def test_the_table_says_what_it_means() -> None:
    text = recoverability(related()).to_markdown()
    assert "| recovered | from image | from text | from noise | from all others |" in text
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
