"""After weights were averaged, refresh makes qualities and alarms those of the averaged model."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import swa_utils

from robustfusion import (
    DRFClassifier,
    DRFHead,
    NeighborQualityEstimator,
    QualityEstimator,
    calibrate,
)
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


def timm_average(model: torch.nn.Module) -> torch.nn.Module:
    """The average of timm from its own file: the package itself imports torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("timm is not installed")
    path = Path(found.submodule_search_locations[0], "utils", "model_ema.py")
    spec: Any = importlib.util.spec_from_file_location("timm_model_ema", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    average: torch.nn.Module = module.ModelEmaV3(model, decay=0.9)
    return average


def start(kind: str, model: torch.nn.Module) -> tuple[torch.nn.Module, Callable[[], Any]]:
    """Return a wrapper of the averaged model, and what updates it after a step."""
    average: Any
    if kind == "ema_pytorch":
        package = pytest.importorskip("ema_pytorch")
        average = package.EMA(model, beta=0.9, update_after_step=0, update_every=1)
        return average.ema_model, average.update
    if kind == "timm":
        average = timm_average(model)
        return average.module, lambda: average.update(model)
    buffers = kind == "use_buffers"
    average = swa_utils.AveragedModel(model, multi_avg_fn=EMA(0.9), use_buffers=buffers)
    if kind == "by hand":
        return average.module, lambda: average_by_hand(average.module, model)
    return average, lambda: average.update_parameters(model)


def build() -> DRFClassifier:
    torch.manual_seed(0)
    encoders = {name: torch.nn.Linear(dim, dim) for name, dim in DIMS.items()}
    return DRFClassifier(encoders, DRFHead(DIMS, 3, hidden_features=32))


def trained(kind: str) -> torch.nn.Module:
    model = build()
    if kind == "Lightning":
        return trained_by_lightning(model)
    averaged, update = start(kind, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(100):
        batch = draw(64, 1000 + step)
        loss: Tensor = model.loss(model(batch["inputs"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        update()
    return averaged


def trained_by_lightning(model: DRFClassifier) -> torch.nn.Module:
    lightning = pytest.importorskip("lightning")
    callback = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
            loss: Tensor = self.model.loss(self.model(batch["inputs"]), batch["label"])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback.EMAWeightAveraging(decay=0.9)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning about workers, and of us, tested below
        batches: list[Any] = [draw(64, 1000 + step) for step in range(100)]
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return module.model


def estimators(model: torch.nn.Module) -> list[QualityEstimator]:
    return [part for part in model.modules() if isinstance(part, QualityEstimator)]


@torch.no_grad()
def p_values(model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
    head = next(part for part in model.modules() if isinstance(part, DRFHead))
    return head.p_values(model(batch["inputs"]))["image"]


def alarms(model: torch.nn.Module, batch: dict[str, Any]) -> float:
    return float((p_values(model, batch) <= 0.05).float().mean())


KINDS = ["parameters", "use_buffers", "by hand", "ema_pytorch", "timm", "Lightning"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_averaged_queue_gives_no_p_value_and_a_warning_until_a_refresh(kind: str) -> None:
    model = trained(kind)
    test = draw(1000, 2)
    if kind == "parameters":  # its buffers are those of the model in training
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.eval()
        assert not any(bool(part.mixed) for part in estimators(model))
    else:
        with pytest.warns(UserWarning, match=r"robustfusion\.calibration\.refresh"):
            model.eval()
        assert not any(part.ready for part in estimators(model))
        assert p_values(model, test).isnan().all()
        with pytest.warns(UserWarning, match=r"robustfusion\.calibration\.refresh"):
            calibrate(model, [draw(500, 1)])
        assert p_values(model, test).isnan().all()
    training = [draw(256, 1000 + step) for step in range(8)]
    refresh(model, [{"inputs": batch["inputs"]} for batch in training])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(model, [draw(500, 1)])
    damaged = {**test, "inputs": {**test["inputs"], "image": 4 * torch.randn(1000, 8)}}
    assert alarms(model, test) <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5
    assert alarms(model, damaged) > 0.5
    queue = next(m for m in model.modules() if isinstance(m, DRFHead)).queues["image"]
    assert len(queue) == queue.capacity


def test_the_same_state_whatever_was_averaged() -> None:
    model = trained("parameters").eval()
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


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_whole_rows_are_not_taken_for_averages(change: str) -> None:
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(3000, 16))
    estimator = NeighborQualityEstimator(16).fit(features)
    assert 0.4 < float((estimator.marks > 0).float().mean()) < 0.6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(estimator, change)().eval()
    assert estimator.ready
    estimator.marks[5] = 0.5
    assert not estimator.ready


def test_a_state_without_marks_loads_as_whole_rows() -> None:
    estimator = NeighborQualityEstimator(8).fit(torch.randn(300, 8))
    state = {name: value for name, value in estimator.state_dict().items() if name != "marks"}
    again = NeighborQualityEstimator(8)
    again.load_state_dict(state)
    assert again.ready
