"""Parameters sharded by FSDP2, over gloo on the CPU, train as replicated ones do."""

from typing import Any

import pytest
import torch
from ranks import DIMS, buffers, make_head, run_ranks, shard, train_step, wrap
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from robustfusion import DRFClassifier


def sharded_worker(
    rank: int, world: int, kind: str, sharded: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    head = make_head(kind)
    model: Any = DRFClassifier({name: nn.Linear(dim, dim) for name, dim in DIMS.items()}, head)
    if sharded:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world,))
        for module in (*model.encoders.values(), model.head, model):
            fully_shard(module, mesh=mesh)
        trained: Any = model
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
