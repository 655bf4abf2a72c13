"""Every rank holds the state of one process that sees all batches, bit for bit."""

from typing import Any

import pytest
import torch
from ranks import DIMS, buffers, joined, make_head, run_ranks, shard, train_step, wrap
from torch import Tensor, nn

from robustfusion import FeatureQueue
from robustfusion.distributed import gather_rows

STEPS = 6
KINDS = ("paper", "default")


def gather_worker(rank: int, world: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    features, available, _ = shard(2, rank)
    return gather_rows(features["image"].to(dtype), available["image"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gathered_rows_are_the_concatenation(dtype: torch.dtype) -> None:
    features, available, _ = joined(2, 3)
    expected = features["image"].to(dtype), available["image"]
    for rows, mask in run_ranks(3, gather_worker, dtype):
        assert rows.dtype == dtype
        assert torch.equal(rows.nan_to_num(), expected[0].nan_to_num())
        assert torch.equal(mask, expected[1])


def empty_worker(rank: int, world: int) -> tuple[Tensor, Tensor]:
    return gather_rows(torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool))


def test_gathering_nothing_from_everywhere_gives_nothing() -> None:
    for rows, mask in run_ranks(2, empty_worker):
        assert rows.shape == (0, 3)
        assert mask.shape == (0,)


def state_worker(rank: int, world: int, kind: str, ddp: bool, sync: bool) -> list[Any]:
    model = make_head(kind)
    model = wrap(model, sync_buffers=sync) if ddp else model
    seen = []
    for step in range(STEPS):
        train_step(model, None, shard(step, rank))
        seen.append(buffers(getattr(model, "module", model)))
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ddp", "sync"),
    [(False, False), (True, True), (True, False)],
    ids=["bare", "default broadcast", "no broadcast"],
)
def test_state_is_that_of_one_process(kind: str, ddp: bool, sync: bool) -> None:
    alone = make_head(kind)
    expected = []
    for step in range(STEPS):
        train_step(alone, None, joined(step, 3))
        expected.append(buffers(alone))
    changed = [n for n, b in expected[-1].items() if not torch.equal(b, expected[0][n])]
    assert len(changed) >= 4, "the state must have moved for its equality to mean anything"
    for seen in run_ranks(3, state_worker, kind, ddp, sync):
        for step in range(STEPS):
            for name, buffer in expected[step].items():
                assert torch.equal(seen[step][name], buffer), f"{name} after step {step}"


def gradient_worker(rank: int, world: int, kind: str, unused: bool) -> dict[str, Any]:
    model: Any = wrap(make_head(kind), find_unused_parameters=unused)
    for step in range(4):
        train_step(model, None, shard(step, rank))
    return {name: p.grad for name, p in model.module.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unused", [False, True])
def test_every_parameter_gets_the_same_finite_gradient(kind: str, unused: bool) -> None:
    first, *others = run_ranks(2, gradient_worker, kind, unused)
    for name, gradient in first.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        for other in others:
            assert torch.equal(other[name], gradient), name


def accumulating_worker(rank: int, world: int, kind: str, no_sync: bool) -> Any:
    model: Any = wrap(make_head(kind))
    if no_sync:
        with model.no_sync():
            train_step(model, None, shard(0, rank))
            train_step(model, None, shard(1, rank))
        own = {name: p.grad.clone() for name, p in model.module.named_parameters()}
    else:
        train_step(model, None, shard(0, rank))
        train_step(model, None, shard(1, rank))
        own = {}
    train_step(model, None, shard(3, rank))
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    return own, gradients, buffers(model.module)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulating_without_sync_ends_with_the_same_gradients_and_state(kind: str) -> None:
    lazy = run_ranks(2, accumulating_worker, kind, True)
    eager = run_ranks(2, accumulating_worker, kind, False)
    assert any(not torch.equal(lazy[0][0][n], lazy[1][0][n]) for n in lazy[0][0])
    for (_, gradients, state), (_, expected, expected_state) in zip(lazy, eager, strict=True):
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
        for name, buffer in state.items():
            assert torch.equal(buffer, expected_state[name]), name


def two_forwards_worker(rank: int, world: int, kind: str) -> dict[str, Any]:
    model: Any = wrap(make_head(kind))
    model.train()
    total = 0
    for step in (0, 1):
        features, available, labels = shard(step, rank)
        total = total + model.module.loss(model(features, available), labels)
    total.backward()  # type: ignore[attr-defined]
    return {name: p.grad for name, p in model.module.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_forwards_before_one_backward(kind: str) -> None:
    first, second = run_ranks(2, two_forwards_worker, kind)
    for name, gradient in first.items():
        assert torch.equal(second[name], gradient), name


def joining_worker(rank: int, world: int, throw: bool, gather: bool) -> tuple[str, int]:
    model: Any = wrap(make_head("default", gather_distributed=gather), sync_buffers=gather)
    steps = 0
    try:
        with model.join(throw_on_early_termination=throw):
            for step in range(2 + 2 * rank):
                train_step(model, None, shard(10 + step, rank))
                steps += 1
    except RuntimeError as error:
        return str(error), steps
    return "", steps


def test_join_is_refused_at_once_on_every_rank() -> None:
    for message, steps in run_ranks(2, joining_worker, False, True):
        assert message.startswith("a head that gathers rows cannot train within")
        assert steps == 0


def test_join_that_ends_for_all_and_join_of_local_queues_work() -> None:
    (_, one), (message, two) = run_ranks(2, joining_worker, True, True)
    assert one == two == 2
    assert "exhausted inputs" in message
    (no_error, one), (none_either, two) = run_ranks(2, joining_worker, False, False)
    assert (one, two) == (2, 4)
    assert no_error == none_either == ""


class Remembering(nn.Module):
    """A user's model: a queue behind an encoder, the rows of this rank only."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIMS["image"], 4)
        self.queue = FeatureQueue(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.queue(self.encoder(x))
        return features


def local_worker(rank: int, world: int, kind: str, sync: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    if kind == "queue":
        model: Any = wrap(Remembering(), sync_buffers=sync)
        for _ in range(2):
            model(torch.full((3, 6), float(rank + 1))).sum().backward()
        remembered: dict[str, Tensor] = buffers(model.module)
        return remembered
    model = wrap(make_head("default", gather_distributed=False), sync_buffers=sync)
    for step in range(3):
        train_step(model, None, shard(step, rank))
    state: dict[str, Tensor] = buffers(model.module)
    return state


@pytest.mark.parametrize("kind", ["queue", "head"])
def test_local_queues_stay_local_without_the_broadcast(kind: str) -> None:
    first, second = run_ranks(2, local_worker, kind, False)
    if kind == "head":
        for rank, got in enumerate((first, second)):
            alone = make_head("default")
            for step in range(3):
                train_step(alone, None, shard(step, rank))
            for name, buffer in buffers(alone).items():
                assert torch.equal(got[name], buffer), name
    else:
        assert first["queue.count"] == second["queue.count"] == 6
        assert not torch.equal(first["queue.slots"], second["queue.slots"])


def test_the_default_broadcast_does_overwrite_local_queues() -> None:
    # Documents the trap that the docstring names; if torch closes it, the docstring must change.
    first, second = run_ranks(2, local_worker, "queue", True)
    assert torch.equal(first["queue.slots"][:3], second["queue.slots"][:3])
