"""scikit-learn's own checks, and what they do not know: modalities, some of them missing."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from robustfusion.baselines import ConcatenationHead, MajorityHead

base: Any = pytest.importorskip("sklearn.base")
selection: Any = pytest.importorskip("sklearn.model_selection")
pipeline: Any = pytest.importorskip("sklearn.pipeline")
preprocessing: Any = pytest.importorskip("sklearn.preprocessing")
checks: Any = pytest.importorskip("sklearn.utils.estimator_checks")

from robustfusion.integrations.sklearn import (  # noqa: E402, after the skip
    RobustFusionClassifier,
    RobustFusionRegressor,
    join_features,
)

HALVES = {"first": slice(0, 1), "second": slice(1, None)}


@checks.parametrize_with_checks(
    [
        RobustFusionClassifier(HALVES, epochs=10, learning_rate=0.01, random_state=0),
        RobustFusionRegressor(HALVES, epochs=20, learning_rate=0.01, random_state=0),
    ],
    # As for scikit-learn's own networks: batches are drawn at random.
    expected_failed_checks=lambda _: {
        f"check_sample_weight_equivalence_on_{kind}_data": "training draws batches at random"
        for kind in ("dense", "sparse")
    },
)  # type: ignore[untyped-decorator]
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def make(n: int = 240, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Three classes seen in both modalities; each lacks a quarter of the rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    means = {"image": 6, "text": 4}
    features = {
        name: rng.normal(size=(n, dim)) + 3 * np.eye(dim)[y] for name, dim in means.items()
    }
    features["image"][::4] = np.nan
    features["text"][1::4] = np.nan
    return features, np.array(["bad", "good", "so so"])[y]


def fast(**options: Any) -> RobustFusionClassifier:
    return RobustFusionClassifier(**{"epochs": 15, "learning_rate": 0.01, **options})


def test_missing_rows_are_missing_to_the_head() -> None:
    features, y = make()
    model = fast(random_state=0).fit(features, y)
    test, truth = make(seed=1)
    assert model.score(test, truth) > 0.85
    quality = model.log_quality(test)
    assert (np.isneginf(quality["image"]) == np.isnan(test["image"]).any(1)).all()
    assert (np.isneginf(quality["text"]) == np.isnan(test["text"]).any(1)).all()
    # One NaN in a row hides the row, whatever the rest says.
    partly = {name: values.copy() for name, values in test.items()}
    partly["text"][:, 0] = np.nan
    wholly = {**test, "text": np.full_like(test["text"], np.nan)}
    assert (model.predict_proba(partly) == model.predict_proba(wholly)).all()
    assert (model.predict(wholly)[1::4] == truth[1::4]).mean() > 0.7
    nothing = {name: np.full_like(values[:2], np.nan) for name, values in test.items()}
    assert np.isfinite(model.predict_proba(nothing)).all()


def test_rows_without_anything_are_left_out_of_fit() -> None:
    features, y = make()
    probabilities = fast(random_state=0).fit(features, y).predict_proba(features)
    padded = {
        name: np.concatenate([values, np.full_like(values[:9], np.nan)])
        for name, values in features.items()
    }
    model = fast(random_state=0).fit(padded, np.concatenate([y, y[:9]]))
    assert (model.predict_proba(features) == probabilities).all()
    with pytest.raises(ValueError, match="not NaN throughout"):
        fast().fit({name: values * np.nan for name, values in features.items()}, y)


def test_a_dict_and_its_array_are_the_same_model() -> None:
    features, y = make()
    X, columns = join_features(features)
    one = fast(random_state=3).fit(features, y).predict_proba(features)
    swapped = {"text": features["text"], "image": features["image"]}
    assert (fast(random_state=3).fit(features, y).predict_proba(swapped) == one).all()
    two = fast(modalities=columns, random_state=3).fit(X, y)
    assert (two.predict_proba(X) == one).all()
    indices = {"image": list(range(6)), "text": np.arange(6, 10)}
    three = base.clone(fast(modalities=indices, random_state=3)).fit(X, y)
    assert (three.predict_proba(X) == one).all()
    assert (pickle.loads(pickle.dumps(two)).predict_proba(X) == one).all()


def test_columns_of_a_data_frame_by_name() -> None:
    pandas = pytest.importorskip("pandas")
    features, y = make()
    X, columns = join_features(features)
    frame = pandas.DataFrame(X, columns=[f"v{i}" for i in range(10)])
    names = {"image": [f"v{i}" for i in range(6)], "text": [f"v{i}" for i in range(6, 10)]}
    by_name = fast(modalities=names, random_state=0).fit(frame, y).predict_proba(frame)
    by_place = fast(modalities=columns, random_state=0).fit(X, y).predict_proba(X)
    assert (by_name == by_place).all()
    with pytest.raises(ValueError, match=r'modalities\["text"\]: X has no column "w"'):
        fast(modalities={**names, "text": ["w"]}).fit(frame, y)


def test_cross_validation_search_and_pipeline() -> None:
    features, y = make()
    X, columns = join_features(features)
    model = fast(modalities=columns, random_state=0)
    assert selection.cross_val_score(model, X, y, cv=2).mean() > 0.8
    scaled = pipeline.make_pipeline(preprocessing.StandardScaler(), model)
    assert selection.cross_val_score(scaled, X, y, cv=2).mean() > 0.8
    search = selection.GridSearchCV(
        model, {"weight_decay": [0.0, 0.1], "head": [None, ConcatenationHead]}, cv=2
    )
    search.fit(X, y)
    assert search.best_score_ > 0.8


def test_a_seed_decides_and_the_global_generator_stays() -> None:
    features, y = make()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, three = (fast(random_state=seed).fit(features, y) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert (one.predict_proba(features) == two.predict_proba(features)).all()
    assert (one.predict_proba(features) != three.predict_proba(features)).any()


def test_a_head_of_ones_own() -> None:
    features, y = make()
    model = fast(head=ConcatenationHead, random_state=0).fit(features, y)
    assert isinstance(model.head_, ConcatenationHead)
    assert model.score(features, y) > 0.8
    with pytest.raises(AttributeError):
        model.log_quality(features)
    majority = fast(head=MajorityHead, random_state=0).fit(features, y).predict(features)
    assert len(set(majority)) == 1


def test_mistakes_are_named() -> None:
    features, y = make()
    X, columns = join_features(features)
    with pytest.raises(ValueError, match="say which columns belong"):
        fast().fit(X, y)
    with pytest.raises(ValueError, match="X is a dict"):
        fast(modalities=columns).fit(features, y)
    with pytest.raises(ValueError, match=r'modalities\["text"\] selects no column'):
        fast(modalities={"image": slice(0, 6), "text": slice(10, None)}).fit(X, y)
    with pytest.raises(ValueError, match=r'features\["text"\] must have shape \(240, D\)'):
        join_features({"image": features["image"], "text": features["text"][:9]})
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        fast(epochs=0).fit(features, y)
    model = fast().fit(features, y)
    with pytest.raises(ValueError, match=r"X must hold some of \['image', 'text'\], got .*audio"):
        model.predict({"image": features["image"], "audio": features["text"]})
    with pytest.raises(ValueError, match="X must have the columns"):
        model.predict({"image": features["text"], "text": features["image"]})
    swapped = {"text": slice(6, 10), "image": slice(0, 6)}  # a dict would be joined in this order
    with pytest.raises(ValueError, match="X is a dict"):
        fast(modalities=swapped).fit(X, y).predict(features)


def test_a_modality_that_a_dict_leaves_out_is_missing() -> None:
    features, y = make()
    model = fast(random_state=0).fit(features, y)
    without = {**features, "text": np.full_like(features["text"], np.nan)}
    expected = model.predict_proba(without)
    assert (model.predict_proba({"image": features["image"]}) == expected).all()


def test_one_embedding_a_cell() -> None:
    pandas = pytest.importorskip("pandas")
    features, y = make()
    expected = fast(random_state=0).fit(features, y).predict_proba(features)
    cells = {
        name: [None if np.isnan(row).any() else row for row in rows]
        for name, rows in features.items()
    }
    frame = pandas.DataFrame(cells)
    lists = {name: [v if v is None else v.tolist() for v in rows] for name, rows in cells.items()}
    for X in (cells, frame, lists, {name: frame[name].to_numpy() for name in frame}):
        assert (fast(random_state=0).fit(X, y).predict_proba(X) == expected).all()
    frame = frame.assign(id=range(len(frame)))
    for columns in ({"image": "image", "text": "text"}, {"image": ["image"], "text": ["text"]}):
        model = fast(modalities=columns, random_state=0).fit(frame, y)
        assert (model.predict_proba(frame) == expected).all()
    lengths = {"image": [np.ones(3), np.ones(4)], "text": [np.ones(2)] * 2}
    with pytest.raises(
        ValueError, match=r'features\["image"\] must hold embeddings of one length'
    ):
        fast().fit(lengths, ["a", "b"])
    missing = {**lists, "text": [None] * len(y)}
    gone = {"image": lists["image"], "text": np.full((len(y), 4), np.nan)}
    model = fast(random_state=0).fit(features, y)
    assert (model.predict_proba(missing) == model.predict_proba(gone)).all()
    assert fast().fit(missing, y).score(missing, y) > 0.6


def test_sparse_features() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    features, y = make()
    features = {name: np.nan_to_num(rows) for name, rows in features.items()}
    expected = fast(random_state=0).fit(features, y).predict_proba(features)
    mixed = {"image": features["image"], "text": sparse.csr_matrix(features["text"])}
    assert (fast(random_state=0).fit(mixed, y).predict_proba(mixed) == expected).all()
    X, columns = join_features(mixed)
    model = fast(modalities=columns, random_state=0).fit(sparse.csr_array(X), y)
    assert (model.predict_proba(sparse.coo_array(X)) == expected).all()


def test_options_of_the_head_are_parameters() -> None:
    features, y = make()
    model = fast(dropout=0.1, hidden_features=16).fit(features, y)
    dropout: Any = model.head_.dropout
    assert dropout.p == 0.1
    assert model.head_.hidden_features == 16
    search = selection.GridSearchCV(
        fast(modalities=join_features(features)[1]), {"dropout": [0.1, 0.5]}, cv=2
    )
    assert search.fit(join_features(features)[0], y).best_score_ > 0.8


class Weighted(ConcatenationHead):
    """A head whose loss takes weights."""

    def loss(  # type: ignore[override]
        self, output: Any, labels: Any, *, sample_weight: Any = None
    ) -> Any:
        losses = torch.nn.functional.cross_entropy(output.logits, labels, reduction="none")
        return (losses if sample_weight is None else losses * sample_weight).mean()


@pytest.mark.parametrize("head", [None, Weighted, ConcatenationHead])
def test_weights_of_samples_and_classes(head: Any) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(["common", "rare"], [380, 20])
    features = {m: rng.normal(size=(400, 3)) + (y == "rare")[:, None] for m in ("image", "text")}

    def recall(**options: Any) -> float:
        weight = options.pop("sample_weight", None)
        model = fast(head=head, random_state=0, **options).fit(features, y, sample_weight=weight)
        return float((model.predict(features)[y == "rare"] == "rare").mean())

    plain, balanced = recall(), recall(class_weight="balanced")
    assert balanced > plain + 0.1
    by_sample = recall(sample_weight=np.where(y == "rare", 19.0, 1.0))
    assert by_sample > plain + 0.1
    assert recall(class_weight={"rare": 0.0, "common": 1.0}) == 0.0
    with pytest.raises(ValueError, match=r"at least one non-zero|has a weight"):
        recall(sample_weight=np.zeros(400))


def test_labels_that_are_missing_or_all_alike_are_counted() -> None:
    features, y = make()
    for gap in (None, float("nan")):
        with pytest.raises(ValueError, match="contains NaN or None for 2 of 240 samples"):
            fast().fit(features, [gap, gap, *y[2:]])
    with pytest.raises(ValueError, match="1 class: all 240 samples are 'bad'"):
        fast().fit(features, np.repeat("bad", 240))
    numbers = np.unique(y, return_inverse=True)[1] + 10.0
    assert set(fast().fit(features, numbers).predict(features)) <= {10.0, 11.0, 12.0}
    with pytest.raises(ValueError, match="continuous"):
        fast().fit(features, np.linspace(0, 1, 240))


def test_several_labels_a_sample() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((300, 3)) < [0.5, 0.3, 0.4]).astype(int)
    features = {
        "image": 2.0 * y + rng.normal(size=(300, 3)),
        "text": 2.0 * y[:, :2] + rng.normal(size=(300, 2)),
    }
    features["text"][::3] = np.nan
    model = fast(random_state=0, class_weight={2: 3.0}).fit(features, y)
    probabilities, guess = model.predict_proba(features), model.predict(features)
    assert probabilities.shape == guess.shape == (300, 3)
    assert guess.dtype == y.dtype
    assert (guess == (probabilities > 0.5)).all()
    assert (guess == y).mean() > 0.85
    assert model.classes_.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="class_weight must be a dict from column"):
        fast(class_weight="balanced").fit(features, y)


def numbers(n: int = 400, seed: int = 0) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(seed)
    y = 1000 + 50 * rng.normal(size=n)
    noise = {"image": 10, "text": 40}
    features = {m: y[:, None] + scale * rng.normal(size=(n, 3)) for m, scale in noise.items()}
    features["image"][::4] = np.nan
    return features, y


@pytest.mark.parametrize("head", [None, ConcatenationHead])
def test_numbers_and_their_intervals(head: Any) -> None:
    features, y = numbers()
    model = RobustFusionRegressor(head=head, epochs=40, learning_rate=0.01, random_state=0)
    model.fit(features, y)
    new, truth = numbers(seed=1)
    assert model.predict(new).shape == truth.shape
    assert model.score(new, truth) > 0.75
    with pytest.raises(ValueError, match="Call calibrate"):
        model.predict_interval(new)
    held_out, target = numbers(seed=2)
    low, high = model.calibrate(held_out, target).predict_interval(new)
    covered, without = (low <= truth) & (truth <= high), np.isnan(new["image"]).any(1)
    assert covered.mean() > 0.8
    assert covered[without].mean() > 0.75
    # Without the better modality the intervals are wider.
    assert (high - low)[without].mean() > 1.2 * (high - low)[~without].mean()
    with pytest.raises(ValueError, match="X must hold more samples"):
        model.calibrate({m: x[:5] for m, x in held_out.items()}, target[:5])
    with pytest.raises(ValueError, match=r"y must have shape \(400,\)"):
        model.calibrate(held_out, target[:, None])


def test_several_numbers_have_columns() -> None:
    features, y = numbers(120)
    both = np.stack([y, -y], 1)
    model = RobustFusionRegressor(epochs=20, learning_rate=0.01, random_state=0)
    model.fit(features, both, sample_weight=np.linspace(0.5, 1.5, 120))
    low, high = model.calibrate(features, both).predict_interval(features)
    assert model.predict(features).shape == low.shape == high.shape == (120, 2)
    assert np.corrcoef(model.predict(features)[:, 1], -y)[0, 1] > 0.8
