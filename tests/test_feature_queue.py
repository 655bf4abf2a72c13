"""FeatureQueue beyond what test_properties and test_contract say of it."""

import copy

import pytest
import torch

from robustfusion import FeatureQueue


def test_stores_only_in_training_and_returns_its_input() -> None:
    queue, features = FeatureQueue(2, capacity=4), torch.ones(3, 2)
    assert queue.eval()(features) is features
    assert len(queue) == 0
    assert queue.train()(features) is features
    assert len(queue) == 3


def test_enqueue_and_reset_also_write_in_evaluation() -> None:
    queue = FeatureQueue(2, capacity=4).eval()
    queue.enqueue(torch.ones(3, 2))
    assert len(queue) == 3
    queue.reset()
    assert len(queue) == 0
    assert (queue.storage == 0).all()
    assert int(queue.cursor) == 0


def test_stored_rows_carry_no_gradient() -> None:
    queue, features = FeatureQueue(2, capacity=4), torch.ones(3, 2, requires_grad=True)
    queue(features).sum().backward()
    assert features.grad is not None
    assert not queue.storage.requires_grad


def test_a_pending_backward_survives_the_next_enqueue() -> None:
    queue, weight = FeatureQueue(2, capacity=4), torch.ones(2, requires_grad=True)
    queue.enqueue(torch.ones(3, 2))
    loss = (queue.storage.clone() * weight).sum()
    queue.enqueue(torch.full((4, 2), 5.0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0, 3.0]


def test_state_is_final_in_shape_and_persistent() -> None:
    queue = FeatureQueue(3, capacity=4)
    born = {name: buffer.shape for name, buffer in queue.state_dict().items()}
    addresses = [buffer.data_ptr() for buffer in queue.buffers()]
    queue.enqueue(torch.randn(9, 3))
    assert {name: buffer.shape for name, buffer in queue.state_dict().items()} == born
    assert [buffer.data_ptr() for buffer in queue.buffers()] == addresses
    assert set(born) == {name for name, _ in queue.named_buffers()}


def test_resumes_in_the_middle() -> None:
    rows = torch.randn(11, 2)
    through = FeatureQueue(2, capacity=4)
    through.enqueue(rows)
    first, second = FeatureQueue(2, capacity=4), FeatureQueue(2, capacity=4)
    first.enqueue(rows[:6])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.enqueue(rows[6:])
    assert torch.equal(second.storage.sort(0).values, through.storage.sort(0).values)


def test_half_precision_rows_are_stored_in_the_queue_s_dtype() -> None:
    queue = FeatureQueue(2, capacity=4)
    queue.enqueue(torch.ones(3, 2, dtype=torch.bfloat16))
    assert queue.storage.dtype == torch.float32
    assert queue.double().storage.dtype == torch.float64


ROWS, MASK = torch.ones(3, 2), torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("features", "available", "error", "message"),
    [
        (torch.ones(3, 4), None, ValueError, r"features must have shape \(B, 2\), got \(3, 4\)"),
        (torch.ones(2), None, ValueError, r"features must have shape \(B, 2\), got \(2,\)"),
        (ROWS.long(), None, TypeError, r"features must have a floating dtype, got torch.int64"),
        ([[1.0, 2.0]], None, TypeError, r"features must be a torch.Tensor, got list"),
        (ROWS, MASK[:2], ValueError, r"available must have shape \(3,\), got \(2,\)"),
        (
            ROWS,
            MASK.float(),
            TypeError,
            r"available must have dtype torch.bool, got torch.float32",
        ),
        (ROWS, [True] * 3, TypeError, r"available must be a torch.Tensor, got list"),
    ],
)
def test_errors_name_the_argument(
    features: torch.Tensor,
    available: torch.Tensor | None,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        FeatureQueue(2).enqueue(features, available)


@pytest.mark.parametrize(
    ("dim", "capacity", "error", "message"),
    [
        (0, 4, ValueError, "dim must be at least 1, got 0"),
        (2, -1, ValueError, "capacity must be at least 1, got -1"),
        (2.5, 4, TypeError, "dim must be an int, got float"),
        (2, True, TypeError, "capacity must be an int, got bool"),
    ],
)
def test_sizes_are_positive_integers(
    dim: int, capacity: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FeatureQueue(dim, capacity)
