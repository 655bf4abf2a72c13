"""Laws that hold for any input, looked for by hypothesis."""

import math
from collections import deque
from functools import partial
from random import Random

import oracles
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from robustfusion import (
    FeatureQueue,
    QualityWeightedFusion,
    admit_above_mean,
    admit_above_quantile,
    admit_all,
)
from robustfusion.functional import masked_softmax

# One batch: for each row whether it is available; sizes 0 to well above the capacities.
batches = st.lists(st.lists(st.booleans(), max_size=13), max_size=6)
scores = st.floats(-80, 80, width=32)
rows_of_scores = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.tuples(scores, st.booleans()), min_size=width, max_size=width),
        min_size=1,
        max_size=4,
    )
)


def split(rows: list[list[tuple[float, bool]]]) -> tuple[Tensor, Tensor]:
    values = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float64)
    return values, torch.tensor([[here for _, here in row] for row in rows])


@given(st.integers(1, 6), batches)
def test_queue_is_a_deque(capacity: int, masks: list[list[bool]]) -> None:
    queue = FeatureQueue(2, capacity)
    expected: deque[list[float]] = deque(maxlen=capacity)
    number = 0.0
    for mask in masks:
        rows = []
        for here in mask:
            number += 1
            rows.append([number, -number] if here else [math.nan, math.inf])
            if here:
                expected.append([number, -number])
        queue.enqueue(torch.tensor(rows).reshape(-1, 2), torch.tensor(mask, dtype=torch.bool))
        assert len(queue) == len(expected) == int(queue.valid.sum())
        # The oldest row is at the cursor once the queue is full, at 0 before.
        start = int(queue.cursor) if len(queue) == capacity else 0
        ordered = queue.storage.roll(-start, 0)[: len(queue)]
        assert ordered.tolist() == list(expected)
        assert queue.storage.isfinite().all()
        assert (queue.storage[~queue.valid] == 0).all()


@given(rows_of_scores)
def test_masked_softmax_is_softmax_over_what_is_there(
    rows: list[list[tuple[float, bool]]],
) -> None:
    values, available = split(rows)
    expected = [
        oracles.softmax(v, a) for v, a in zip(values.tolist(), available.tolist(), strict=True)
    ]
    actual = masked_softmax(values, available)
    assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    assert_close(actual.sum(1), available.any(1).double())
    assert (actual[~available] == 0).all()
    # What the mask hides does not matter, bit for bit.
    for value in (math.nan, math.inf, -math.inf):
        assert torch.equal(masked_softmax(values.where(available, value), available), actual)


@given(rows_of_scores, st.randoms(use_true_random=False), st.sampled_from([0.5, 1.0, 3.0]))
def test_fused_weights(
    rows: list[list[tuple[float, bool]]], random: Random, temperature: float
) -> None:
    values, available = split(rows)
    width = values.shape[1]
    candidates = torch.arange(values.numel() * 3).reshape(*values.shape, 3).double().sin()
    fusion = QualityWeightedFusion(temperature=temperature)
    weights = fusion.weights(values, available)
    fused = fusion(candidates, values, available)
    # Weights sum to 1, or to 0 where nothing is there, and then the fused vector is 0.
    assert_close(weights.sum(1), available.any(1).double())
    assert (weights >= 0).all()
    assert (fused[~available.any(1)] == 0).all()
    # A better candidate never weighs less.
    order = values.where(available, -math.inf).argsort(1)
    assert (weights.gather(1, order).diff(dim=1) >= 0).all()
    # Renaming the candidates renames the weights and leaves the fused vector.
    order = torch.tensor(random.sample(range(width), width))
    assert_close(fusion.weights(values[:, order], available[:, order]), weights[:, order])
    assert_close(fusion(candidates[:, order], values[:, order], available[:, order]), fused)
    # A constant added to all qualities changes nothing; the paper's weights scale by its exp.
    assert_close(fusion.weights(values + 7, available), weights)
    paper = QualityWeightedFusion(normalize=False)
    assert_close(paper.weights(values - 1, available), paper.weights(values, available) / math.e)


@given(
    st.lists(scores, max_size=6),
    st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=8),
)
def test_admission_above_the_mean(new: list[float], queued: list[tuple[float, bool]]) -> None:
    log_prob = torch.tensor(new, dtype=torch.float64)
    (in_queue,), (valid,) = split([queued])
    there = [math.exp(value) for value, here in queued if here]
    actual = admit_above_mean(log_prob, in_queue, valid).tolist()
    expected = oracles.admitted([math.exp(value) for value in new], there)
    bar = sum(there) / max(len(there), 1)
    for value, got, want in zip(new, actual, expected, strict=True):
        # At the bar itself rounding decides.
        assert got == want or math.isclose(math.exp(value), bar, rel_tol=1e-9)
    hidden = admit_above_mean(log_prob, in_queue.where(valid, math.nan), valid)
    assert hidden.tolist() == actual


@given(st.integers(2, 30), st.integers(0, 29), st.integers(0, 5))
def test_admission_above_a_quantile(count: int, rank: int, holes: int) -> None:
    # Scores 0, 1, 2 … in any order, with holes in the queue, and a quantile between two ranks.
    rank %= count
    quantile = min((rank + 0.5) / (count - 1), 1.0)
    in_queue = torch.cat([torch.randperm(count).float(), torch.full((holes,), math.nan)])
    valid = torch.arange(count + holes) < count
    rule = partial(admit_above_quantile, quantile=quantile)
    new = torch.arange(count).float()
    admitted = rule(new, in_queue, valid)
    assert admitted.tolist() == [value >= rank for value in range(count)]
    assert rule(new[:0], in_queue, valid).shape == (0,)


@given(st.integers(0, 5), st.integers(0, 1))
def test_thin_queues_admit_everything(batch: int, count: int) -> None:
    log_prob, in_queue = torch.full((batch,), -50.0), torch.zeros(4)
    valid = torch.arange(4) < count
    for rule in (admit_all, admit_above_mean, admit_above_quantile):
        mask = rule(log_prob, in_queue, valid)
        assert mask.dtype == torch.bool
        assert mask.tolist() == [True] * batch
