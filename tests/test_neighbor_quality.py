"""The neighbor score against slow loops, and that copies of a row are no neighbors of it."""

import math

import pytest
import torch
from torch import Tensor

from robustfusion import DRFHead, NeighborQualityEstimator, QualityEstimator
from robustfusion.functional import nearest_similarity


def slow_similarity(
    queries: Tensor, rows: Tensor, valid: Tensor, origin: Tensor, scale: Tensor, neighbors: int
) -> Tensor:
    means = []
    for query in queries:
        x = ((query - origin) / scale).tolist()
        cosines = []
        for row, keep in zip(rows, valid.tolist(), strict=True):
            r = ((row - origin) / scale).tolist()
            dot = sum(a * b for a, b in zip(x, r, strict=True))
            counts = keep and not torch.equal(row, query)
            cosines.append(dot / math.hypot(*x) / math.hypot(*r) if counts else 0.0)
        means.append(sum(sorted(cosines, reverse=True)[:neighbors]) / neighbors)
    return torch.tensor(means)


@pytest.mark.parametrize("chunk", [7, 40, 16384])
@pytest.mark.parametrize("count", [0, 2, 40])
def test_similarity_is_that_of_a_loop(chunk: int, count: int) -> None:
    rows, queries = torch.randn(40, 6) + 3, torch.randn(9, 6) + 3
    origin, scale = torch.randn(6) / 2 + 3, torch.rand(6) + 0.5
    queries[0] = rows[0]  # its own copy does not count
    valid = torch.arange(40) < count
    inverse = (1 / ((rows - origin) / scale).norm(dim=-1)).where(valid, 0.0)
    found = nearest_similarity(
        queries, rows, inverse, origin=origin, scale=scale, neighbors=5, chunk=chunk
    )
    expected = slow_similarity(queries, rows, valid, origin, scale, 5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_of_the_same_direction_but_another_length_is_a_neighbor() -> None:
    query = torch.randn(1, 6)
    rows = torch.cat([query, 2 * query])
    zero, one = torch.zeros(6), torch.ones(6)
    inverse = 1 / rows.norm(dim=-1)
    for keep, similarity in ((1, 0.0), (2, 1.0)):
        found = nearest_similarity(
            query, rows[:keep], inverse[:keep], origin=zero, scale=one, neighbors=1
        )
        assert found.item() == pytest.approx(similarity)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_of_another_precision_than_the_queue_s(dtype: torch.dtype) -> None:
    estimator = NeighborQualityEstimator(6, capacity=50).fit(torch.randn(50, 6))
    x = torch.randn(9, 6).to(dtype)
    torch.testing.assert_close(
        estimator.distance(x).float(), estimator.distance(x.float()), rtol=1e-4, atol=1e-4
    )


def make(dim: int = 24) -> tuple[NeighborQualityEstimator, Tensor]:
    mixing = torch.randn(5, dim)
    estimator = NeighborQualityEstimator(dim, capacity=400)
    return estimator.fit(torch.randn(600, 5) @ mixing), mixing


@pytest.mark.parametrize("center", [0.0, 100.0])
@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_copies_of_a_row_in_the_queue_are_passed_over(center: float, drift: float) -> None:
    mixing = torch.randn(5, 24)
    rows = torch.randn(300, 5) @ mixing + center
    estimator = NeighborQualityEstimator(24, capacity=1000)
    for _ in range(2):  # two epochs: two copies of each row
        for batch in torch.split(rows, 50):
            estimator.observe(batch)
    if drift:  # what comes next moves and widens the standardization
        estimator.observe((1 + drift) * torch.randn(300, 5) @ mixing + center + drift)
    seen = estimator.distance(rows[:40])
    alone = [without(estimator, (k, 300 + k)).distance(rows[k : k + 1]) for k in range(40)]
    difference = seen - torch.cat(alone)
    assert difference.min() > -1e-2  # a copy would be a neighbor at cosine 1
    # Now and then another row is taken for a copy, for it projects onto the feature as one would.
    assert difference.max() < 0.3
    assert (difference < 1e-3).float().mean() > 0.6
    assert seen.std() > 0.05


def without(
    estimator: NeighborQualityEstimator, slots: tuple[int, ...]
) -> NeighborQualityEstimator:
    """The same estimator, these slots of its queue empty."""
    other = NeighborQualityEstimator(24, capacity=1000)
    other.load_state_dict(estimator.state_dict())
    other.inverse_lengths[list(slots)] = 0
    return other


def test_shift_scale_and_sign_of_coordinates_change_nothing() -> None:
    rows, odd = torch.rand(300, 6).square() @ torch.rand(6, 12), torch.rand(40, 12)
    factor, offset = torch.rand(12) + 0.5, 5 * torch.randn(12)
    factor[::3] *= -1
    plain = NeighborQualityEstimator(12, capacity=300).fit(rows)
    moved = NeighborQualityEstimator(12, capacity=300).fit(rows * factor + offset)
    torch.testing.assert_close(
        moved.distance(odd * factor + offset), plain.distance(odd), rtol=0.02, atol=0.02
    )


def test_real_features_score_above_broken_ones() -> None:
    estimator, mixing = make()
    real = torch.randn(200, 5) @ mixing
    off = torch.randn(200, 24) * real.std()
    assert (estimator(real)[:, None] > estimator(off)).float().mean() > 0.95
    assert estimator(real).exp().mean() > 0.4
    assert estimator(off).exp().mean() < 0.2
    assert estimator(real).max() <= 0


def test_before_anything_was_seen_nothing_is_trusted() -> None:
    estimator = NeighborQualityEstimator(4)
    assert not estimator.ready
    quality = estimator(torch.randn(3, 4))
    assert quality.isfinite().all()
    assert (quality < -1000).all()
    assert estimator.p_value(torch.randn(3, 4)).isnan().all()
    assert estimator.fit(torch.randn(30, 4)).ready
    assert estimator.p_value(torch.randn(3, 4)).isfinite().all()


def test_a_modality_that_training_never_had_gets_no_weight() -> None:
    torch.manual_seed(0)
    head = DRFHead({"image": 4, "text": 3}, 3)
    for _ in range(3):
        x = {"image": torch.randn(16, 4), "text": torch.randn(16, 3)}
        head(x, {"text": torch.zeros(16, dtype=torch.bool)})
    head.eval()
    out = head(x)
    alone = head(x, {"text": torch.zeros(16, dtype=torch.bool)})
    torch.testing.assert_close(out.logits, alone.logits)
    assert (out.trust["text"] == 0).all()
    assert head.p_values(out)["text"].isnan().all()


def test_padding_rows_do_not_change_what_is_learned() -> None:
    """Ranks pad uneven batches with unavailable rows; the state must not depend on them."""
    one, other = NeighborQualityEstimator(6, capacity=50), NeighborQualityEstimator(6, capacity=50)
    for step in range(12):
        rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        padded = torch.full((9, 6), torch.nan)
        places = torch.tensor([0, 2, 3, 6, 8])
        padded[places] = rows
        mask = torch.zeros(9, dtype=torch.bool)
        mask[places] = True
        one.observe(rows)
        other.observe(padded, mask)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="neighbors must be at least 1"):
        NeighborQualityEstimator(4, neighbors=0)
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        NeighborQualityEstimator(4, capacity=0)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 4\), got \(3, 5\)"):
        NeighborQualityEstimator(4)(torch.zeros(3, 5))


@pytest.mark.parametrize("modalities", [2, 3])
def test_training_predicts_as_if_every_feature_were_typical(modalities: int) -> None:
    torch.manual_seed(0)
    dims = dict(list({"a": 4, "b": 3, "c": 5}.items())[:modalities])
    head = DRFHead(dims, 3, dropout=0.0)
    x = {name: torch.randn(40, dim) for name, dim in dims.items()}
    head(x)  # the second call stores the same rows, so the moments stay as they are
    out = head(x)
    for log_quality in out.log_quality.values():
        torch.testing.assert_close(log_quality, torch.full((40,), 0.5).log())
    head.eval()
    for name, estimator in list(head.estimators.items()):
        typical = Typical(dims[name])
        typical.load_state_dict(estimator.state_dict(), strict=False)
        typical.score_stats.copy_(torch.tensor([[0.0] * 4, [torch.inf] * 4]))
        head.estimators.add_module(name, typical)
    torch.testing.assert_close(head(x).logits, out.logits, rtol=1e-4, atol=1e-4)


def test_auroc_and_alarms_after_a_training_that_only_stored() -> None:
    """On made-up features, mean of six seeds; the expected values were measured.

    Scores of training rows, each taken by `observe` before it was stored, gave an AUROC of 0.668
    and shares of alarms of 0.048 and 0.039: the moments were still moving when they were taken.
    """
    measured = torch.tensor([alarms_after_training(seed) for seed in range(6)]).mean(0)
    torch.testing.assert_close(
        measured, torch.tensor([0.7465, 0.0502, 0.0529]), rtol=0, atol=0.005
    )


def alarms_after_training(seed: int, dim: int = 24, test_rows: int = 4000) -> list[float]:
    """Return the AUROC of mixed rows, and the alarms of intact ones calibrated and not."""
    torch.manual_seed(seed)
    mixing, center = torch.randn(6, dim), 2 + torch.randn(dim)

    def draw(count: int) -> Tensor:
        return center + torch.randn(count, 6) @ mixing + 0.3 * torch.randn(count, dim)

    train, held_out, intact, damaged = (draw(n) for n in (2000, 2000, test_rows, test_rows))
    # A quarter of each coordinate comes from another sample.
    others = torch.stack([column[torch.randperm(test_rows)] for column in damaged.T], dim=1)
    damaged.lerp_(others, 0.25)
    estimator = NeighborQualityEstimator(dim)
    for _ in range(2):
        for rows in torch.split(train[torch.randperm(len(train))], 100):
            estimator.store(rows, torch.ones(len(rows), dtype=torch.bool))
    estimator.eval()
    rank = torch.cat([estimator.score(intact), estimator.score(damaged)]).argsort().argsort()
    smallest = test_rows * (test_rows - 1) / 2
    auroc = (float(rank[test_rows:].double().sum()) - smallest) / test_rows**2
    alarms = float((estimator.p_value(intact) <= 0.05).double().mean())
    estimator.calibrate(held_out)
    return [auroc, float((estimator.p_value(intact) <= 0.05).double().mean()), alarms]


class Typical(QualityEstimator):
    """An estimator by whose score statistics every feature is typical."""

    def distance(self, features: Tensor) -> Tensor:
        return torch.zeros(len(features))
