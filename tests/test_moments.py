"""The running moments of a ring against moments recomputed from its rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfusion import FeatureQueue
from robustfusion.moments import RunningMoments


def tracked(queue: FeatureQueue) -> RunningMoments:
    assert queue.moments is not None
    return queue.moments


def assert_equal_to_recomputed(queue: FeatureQueue, rtol: float = 1e-4) -> None:
    rows = queue.storage[: len(queue)].double()
    mean, scale = tracked(queue).gaussian("diag")
    assert int(tracked(queue).count) == len(queue)
    spread = rows.std(0, unbiased=False)
    torch.testing.assert_close(mean.double(), rows.mean(0), rtol=rtol, atol=rtol)
    torch.testing.assert_close(scale.double(), spread.clamp_min(1e-3), rtol=rtol, atol=1e-3)
    _, radius = tracked(queue).gaussian("spherical")
    expected = spread.square().sum().sqrt().clamp_min(1e-3)
    torch.testing.assert_close(radius.double(), expected, rtol=rtol, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    capacity=st.integers(1, 12),
    batches=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), max_size=20),
    seed=st.integers(0, 2**16),
)
def test_moments_equal_recomputed_ones(
    capacity: int, batches: list[tuple[int, float]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queue = FeatureQueue(3, capacity, track_moments=True)
    for batch, share in batches:
        features = 5 * torch.randn(batch, 3, generator=generator) + 20
        available = torch.rand(batch, generator=generator) < share
        features[~available] = torch.nan
        queue.enqueue(features, available)
        if len(queue):
            assert_equal_to_recomputed(queue)


def test_outlier_leaves_no_trace_after_it_left() -> None:
    queue = FeatureQueue(2, 8, track_moments=True)
    queue.enqueue(torch.randn(8, 2))
    queue.enqueue(torch.full((1, 2), 1e6))
    for _ in range(8):  # a few laps, for the outlier was in the mean that became the pivot
        queue.enqueue(torch.randn(5, 2))
    assert_equal_to_recomputed(queue)


def test_reset_forgets() -> None:
    queue = FeatureQueue(2, 4, track_moments=True)
    queue.enqueue(torch.randn(3, 2))
    queue.reset()
    queue.enqueue(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    mean, scale = tracked(queue).gaussian("diag")
    assert mean.tolist() == [2.0, 3.0]
    assert scale.tolist() == [1.0, 1.0]


def test_full_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="covariance_type must be"):
        RunningMoments(2, 4).gaussian("full")
