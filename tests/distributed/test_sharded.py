"""Parameters sharded by FSDP2, over gloo on the CPU, train as replicated ones do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from main_job.checkpoints import load_checkpoint, save_checkpoint
from ranks import DIMS, buffers, make_head, run_ranks, shard, train_step, wrap
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from robustfusion import DRFClassifier


def make_model(kind: str) -> Any:
    head = make_head(kind)
    return DRFClassifier({name: nn.Linear(dim, dim) for name, dim in DIMS.items()}, head)


def shard_over(model: Any, world: int) -> Any:
    mesh = init_device_mesh("cpu", (world,))
    for module in (*model.encoders.values(), model.head, model):
        fully_shard(module, mesh=mesh)
    return model


def sharded_worker(
    rank: int, world: int, kind: str, sharded: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = make_model(kind)
    if sharded:
        trained: Any = shard_over(model, world)
    else:
        trained = wrap(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    for step in range(5):
        train_step(trained, optimizer, shard(step, rank))
    parameters = {
        name: (p.full_tensor() if sharded else p).detach() for name, p in model.named_parameters()
    }
    return parameters, buffers(model)


@pytest.mark.parametrize("kind", ["paper", "default"])
def test_sharded_training_is_replicated_training(kind: str) -> None:
    expected = run_ranks(2, sharded_worker, kind, False)[0]
    for parameters, state in run_ranks(2, sharded_worker, kind, True):
        for name, parameter in expected[0].items():
            torch.testing.assert_close(parameters[name], parameter, rtol=1e-4, atol=1e-5)
        for name, buffer in expected[1].items():
            torch.testing.assert_close(state[name], buffer, rtol=1e-4, atol=1e-5)


def saving_worker(rank: int, world: int, folder: str) -> tuple[str, dict[str, Tensor]]:
    model: Any = nn.Linear(4, 3)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    path = Path(folder) / f"{rank}.pt"
    with pytest.raises(TypeError) as caught:
        save_checkpoint(path, {"model": model.state_dict()})
    assert not path.exists()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if rank == 0:
        save_checkpoint(path, {"model": state})
    return str(caught.value), {
        name: p.full_tensor().detach() for name, p in model.named_parameters()
    }


def test_sharded_state_is_refused_and_its_full_state_is_saved(tmp_path: Path) -> None:
    (message, expected), _ = run_ranks(2, saving_worker, str(tmp_path))
    assert message.startswith("state.model.weight is sharded over ranks")
    assert "full_state_dict=True" in message
    saved = load_checkpoint(tmp_path / "0.pt")["model"]
    assert set(saved) == {"weight", "bias"}
    for name, parameter in expected.items():
        torch.testing.assert_close(saved[name], parameter)


def whole(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """Parameters, buffers and the optimizer's moments, none of them in parts."""
    options = StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    both = {**weights, **moments}
    return {name: value.clone() for name, value in both.items() if isinstance(value, Tensor)}


def writing_worker(rank: int, world: int, kind: str, folder: str) -> dict[str, Tensor]:
    model = shard_over(make_model(kind), world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        train_step(model, optimizer, shard(step, rank))
    weights, moments = get_state_dict(model, optimizer)
    save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    return whole(model, optimizer)


def reading_worker(
    rank: int, world: int, kind: str, folder: str
) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(1 + rank)  # nothing of what it starts with may be left
    model = make_model(kind)
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    model = shard_over(model, world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    weights, moments = get_state_dict(model, optimizer)
    load({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    loaded = whole(model, optimizer)
    features, available, _ = shard(9, 0)
    logits = model.eval()(features, available).logits.detach()
    train_step(model, optimizer, shard(9, rank))  # and it trains on
    return loaded, logits


@pytest.mark.parametrize("kind", ["paper", "default"])
def test_what_two_ranks_save_one_and_three_load(kind: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "checkpoint")
    expected, _ = run_ranks(2, writing_worker, kind, folder)
    assert any(name.endswith("exp_avg") for name in expected)
    logits = None
    for world in (1, 3):
        for loaded, seen in run_ranks(world, reading_worker, kind, folder):
            assert loaded.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(loaded[name], value), name
            logits = seen if logits is None else logits
            torch.testing.assert_close(seen, logits)
