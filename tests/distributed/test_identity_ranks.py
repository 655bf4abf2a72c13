"""What a state belongs to is known to every rank, in states that are whole or in parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks, wrap
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from robustfusion._identity import register_identity

if not hasattr(torch.distributed, "fsdp") or not hasattr(torch.distributed.fsdp, "fully_shard"):
    pytest.skip("this version of torch has no fully_shard", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def make(names: list[str], kind: str, world: int) -> Any:
    layer: Any = nn.Linear(4, 2)
    register_identity(layer, modalities=names)
    if kind == "ddp":
        return wrap(layer)
    fully_shard(layer, mesh=init_device_mesh("cpu", (world,)))
    return layer


def worker(rank: int, world: int, kind: str, folder: str) -> list[str]:
    right, wrong = (make(names, kind, world) for names in (["a", "b"], ["b", "a"]))
    right(torch.ones(2, 4)).sum().backward()  # DDP broadcasts buffers
    messages = []

    def refused(state: Any, options: StateDictOptions | None = None) -> None:
        with pytest.raises(ValueError, match="belongs to another") as caught:
            set_model_state_dict(right, state, options=options)
        messages.append(str(caught.value))

    for options in (None, StateDictOptions(full_state_dict=True)):
        own, other = (get_model_state_dict(part, options=options) for part in (right, wrong))
        set_model_state_dict(right, own, options=options)
        refused(other, options)
    save({"model": get_model_state_dict(wrong)}, checkpoint_id=folder)
    state = get_model_state_dict(right)
    load({"model": state}, checkpoint_id=folder)  # writes into the tensors of the model
    refused(state)
    return messages


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_another_order_is_refused_on_every_rank(kind: str, tmp_path: Path) -> None:
    for messages in run_ranks(2, worker, kind, str(tmp_path / "checkpoint")):
        for message in messages:
            assert 'its modalities are ["b", "a"], those of this one are ["a", "b"]' in message
