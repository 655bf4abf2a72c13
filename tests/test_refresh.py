"""After weights were averaged, refresh makes qualities and alarms those of the averaged model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import swa_utils

from robustfusion import DRFClassifier, DRFHead, calibrate
from robustfusion.calibration import refresh

DIMS = {"image": 8, "text": 6}
EMA: Any = swa_utils.get_ema_multi_avg_fn


def draw(count: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    inputs = {name: torch.randn(count, dim, generator=generator) for name, dim in DIMS.items()}
    for x in inputs.values():
        x[torch.arange(count), label] += 3
    return {"inputs": inputs, "label": label}


def average_by_hand(averaged: torch.nn.Module, model: torch.nn.Module) -> None:
    """Average every floating tensor of the state, as many hand-written loops do."""
    live = model.state_dict()
    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(live[name], 0.1)


def trained(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    encoders = {name: torch.nn.Linear(dim, dim) for name, dim in DIMS.items()}
    model = DRFClassifier(encoders, DRFHead(DIMS, 3, hidden_features=32))
    averaged = swa_utils.AveragedModel(
        model, multi_avg_fn=EMA(0.9), use_buffers=kind == "use_buffers"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        batch = draw(64, 1000 + step)
        loss: Tensor = model.loss(model(batch["inputs"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if kind == "by hand":
            average_by_hand(averaged.module, model)
        else:
            averaged.update_parameters(model)
    return averaged.eval()


def alarms(model: torch.nn.Module, batch: dict[str, Any]) -> float:
    inner: Any = model
    while not hasattr(inner, "p_values"):
        inner = getattr(inner, "head", None) or inner.module
    with torch.no_grad():
        p_value = inner.p_values(model(batch["inputs"]))["image"]
    return float((p_value <= 0.05).float().mean())


@pytest.mark.parametrize("kind", ["parameters", "use_buffers", "by hand"])
def test_alarms_are_right_after_a_refresh(kind: str) -> None:
    model = trained(kind)
    training = [draw(256, 1000 + step) for step in range(8)]
    refresh(model, [{"inputs": batch["inputs"]} for batch in training])
    calibrate(model, [draw(500, 1)])
    test = draw(1000, 2)
    damaged = {**test, "inputs": {**test["inputs"], "image": 4 * torch.randn(1000, 8)}}
    assert alarms(model, test) <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5
    assert alarms(model, damaged) > 0.5
    queue = next(m for m in model.modules() if isinstance(m, DRFHead)).queues["image"]
    assert len(queue) == queue.capacity


def test_the_same_state_whatever_was_averaged() -> None:
    model = trained("parameters")
    batches = [{"inputs": draw(256, step)["inputs"]} for step in range(4)]
    refresh(model, batches)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, DRFHead):
            module.queues["image"].slots.mul_(0.3)  # an average of rows shrinks them
    refresh(model, batches)
    for name, value in model.state_dict().items():
        assert torch.equal(value, first[name]), name
    assert not any(module.training for module in model.modules())
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        refresh(model, [])
