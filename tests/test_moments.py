"""The running moments against those recomputed from all rows, and what becomes of old ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustfusion.moments import RunningMoments


def assert_moments_of(running: RunningMoments, rows: Tensor, rtol: float = 1e-4) -> None:
    rows = rows.double()
    mean, scale = running.gaussian("diag")
    spread = rows.std(0, unbiased=False)
    torch.testing.assert_close(mean.double(), rows.mean(0), rtol=rtol, atol=rtol)
    expected = spread if len(rows) > 1 else torch.ones_like(spread)
    # A hundredth of the mean deviation is added, for coordinates that hardly vary.
    added = 0.01 * expected.mean() if len(rows) > 1 else 0.0
    torch.testing.assert_close(scale.double(), expected + added, rtol=10 * rtol, atol=1e-3)
    _, radius = running.gaussian("spherical")
    total = expected.square().sum().sqrt()
    torch.testing.assert_close(radius.double(), total, rtol=10 * rtol, atol=2e-3)


@given(
    batches=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), max_size=12),
    seed=st.integers(0, 2**16),
    center=st.sampled_from([0.0, 20.0, -3e3]),
)
def test_up_to_the_window_they_are_those_of_all_rows(
    batches: list[tuple[int, float]], seed: int, center: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    running = RunningMoments(3, window=12 * 30)
    kept = []
    for size, share in batches:
        rows = 5 * torch.randn(size, 3, generator=generator) + center
        available = torch.rand(size, generator=generator) < share
        kept.append(rows[available])
        rows[~available] = torch.nan
        running.observe(rows, available)
    seen = torch.cat(kept) if kept else torch.zeros(0, 3)
    assert int(running.count) == len(seen)
    if len(seen):
        assert_moments_of(running, seen)


def test_beyond_the_window_old_rows_fade_as_an_exponential_does() -> None:
    running = RunningMoments(1, window=100)
    running.observe(torch.full((100, 1), 1.0))
    for step in range(1, 61):
        running.observe(torch.zeros(10, 1))
        assert running.moments[0].item() == pytest.approx(0.9**step, rel=1e-4)
    assert int(running.count) == 100
    # A shift of the stream passes through the variance and leaves it again.
    assert running.moments[1].item() < 0.01


def test_a_batch_beyond_the_window_replaces_everything() -> None:
    running = RunningMoments(2, window=10)
    running.observe(torch.full((4, 2), 500.0))
    rows = torch.randn(40, 2)
    running.observe(rows)
    assert_moments_of(running, rows)


def test_far_from_zero_no_digits_are_lost_in_a_long_stream() -> None:
    running = RunningMoments(2, window=256)
    for _ in range(2000):
        running.observe(torch.randn(16, 2) + 1e4)
    mean, scale = running.gaussian("diag")
    # The last 256 rows weigh most: the error is that of their mean, not of rounding.
    assert ((mean - 1e4).abs() < 0.3).all()
    assert ((scale - 1).abs() < 0.2).all()


@pytest.mark.parametrize("given_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_statistics_are_float32_under_autocast(given_dtype: torch.dtype) -> None:
    rows = (100 + torch.randn(64, 3)).to(given_dtype)
    running = RunningMoments(3, window=100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for batch in torch.split(rows, 16):
            running.observe(batch)
        mean, scale = running.gaussian("diag")
    assert mean.dtype == scale.dtype == torch.float32
    assert_moments_of(running, rows)
    double = RunningMoments(3, window=100).double()
    double.observe(rows)
    assert double.gaussian("diag").mean.dtype == torch.float64


def test_of_fewer_than_two_rows_the_variance_is_one() -> None:
    running = RunningMoments(3, window=5)
    for count in (0, 1):
        mean, scale = running.gaussian("diag")
        assert scale.tolist() == [1.0] * 3
        assert mean.tolist() == [2.0 * count] * 3
        assert running.gaussian("spherical").scale.item() == pytest.approx(3**0.5)
        running.observe(torch.full((1, 3), 2.0))


def test_a_batch_without_a_row_writes_nothing() -> None:
    running = RunningMoments(2, window=8)
    running.observe(torch.randn(5, 2))
    before = [buffer.clone() for buffer in running.buffers()]
    running.observe(torch.zeros(0, 2))
    running.observe(torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(running.buffers(), before, strict=True))


def test_reset_forgets() -> None:
    running = RunningMoments(2, window=4)
    running.observe(torch.randn(3, 2))
    running.reset()
    running.observe(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    mean, scale = running.gaussian("diag")
    assert mean.tolist() == [2.0, 3.0]
    assert scale.tolist() == pytest.approx([1.01, 1.01])


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="covariance_type must be"):
        RunningMoments(2, 4).gaussian("full")
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        RunningMoments(0, 4)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        RunningMoments(2, 0)
