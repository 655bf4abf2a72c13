"""Everything runs on a device without float64, up to where it asks for the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretend_device import DEVICE, OnDevice, PretendDevice
from torch import Tensor

from robustfusion import DRFClassifier, DRFHead, GaussianQualityEstimator, PaperDRFHead, calibrate
from robustfusion.diagnostics import diagnose, recoverability
from robustfusion.monitor import DriftMonitor

DIMS = {"image": 6, "text": 4}


def features(rows: int = 60) -> dict[str, Tensor]:
    return {name: torch.randn(rows, dim) for name, dim in DIMS.items()}


def test_the_pretended_device_refuses_float64_and_lets_go_at_cpu() -> None:
    with PretendDevice() as device:
        x = device.put(torch.ones(3))
        for refused in (
            lambda: x.double(),
            lambda: x.to(torch.float64),
            lambda: torch.zeros(3, dtype=torch.float64, device=x.device),
            lambda: x.new_zeros(3, dtype=torch.float64),
            lambda: (x + 1).sum(dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="no float64"):
                refused()
        assert x.cpu().double().dtype == torch.float64
        assert x.to("cpu").double().sum() == 3
        assert (x * 2).device == torch.zeros(2, device=x.device).device == DEVICE
        assert x.cpu().device.type == "cpu"
        assert not isinstance(x.cpu(), OnDevice)


HEADS: dict[str, Callable[[], Any]] = {
    "default": lambda: DRFHead(DIMS, 3),
    "gaussian": lambda: DRFHead(DIMS, 3, quality=GaussianQualityEstimator),
    "paper": lambda: PaperDRFHead(DIMS, 3),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_trained_calibrated_and_watched_there(kind: str) -> None:
    with PretendDevice() as device:
        model = device.put(
            DRFClassifier({name: torch.nn.Linear(d, d) for name, d in DIMS.items()}, HEADS[kind]())
        )
        for _ in range(3):
            inputs = device.put(features())
            output = model.train()(inputs)
            model.loss(output, device.put(torch.randint(3, (60,)))).backward()
        model.eval()
        batch = {"inputs": features(), "available": {}, "label": torch.randint(3, (60,))}
        if kind != "paper":
            calibrate(model, [device.put(batch)])
        with torch.no_grad():
            output = model(device.put(features()))
        assert output.logits.device == DEVICE
        if kind != "paper":
            monitor = DriftMonitor.for_model(model)
            assert monitor.update(model.head.p_values(output)).samples == 60
        diagnosis = diagnose(model, device.put(features()))
        assert diagnosis.numbers["samples"] == 60


def test_recoverability_and_the_monitor_take_what_is_there() -> None:
    with PretendDevice() as device:
        r2 = recoverability(device.put(features()), device.put({"image": torch.arange(60) > 9})).r2
        assert set(r2) == set(DIMS)
        state = DriftMonitor(["x"]).update(
            {"x": device.put(torch.rand(20))}, device.put(torch.arange(20) // 2)
        )
        assert state.available == {"x": 10}
