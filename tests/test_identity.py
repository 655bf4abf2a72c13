"""A state says what it belongs to, and survives everything that states go through."""

import copy
import importlib.util
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robustfusion import checkpoint
from robustfusion._identity import decode, register_identity

NAMES = ["image", "text"]
OTHER = r'modalities are \["text", "image"\], those of this one are \["image", "text"\]'


class Part(nn.Module):
    """A part whose columns belong to names."""

    def __init__(self, names: list[str] | None = None, **options: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        register_identity(self, modalities=names or NAMES, **options)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


def model(names: list[str] | None = None, **options: Any) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4), Part(names, **options))


def same(module: nn.Module) -> nn.Module:
    return module


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


EMA: Any = get_ema_multi_avg_fn


def averaged(buffers: bool) -> Callable[[nn.Module], nn.Module]:
    def change(module: nn.Module) -> nn.Module:
        average = AveragedModel(module, multi_avg_fn=EMA(0.9), use_buffers=buffers)
        for _ in range(20):
            average.update_parameters(module)
        return average.module

    return change


def ema_pytorch(module: nn.Module) -> nn.Module:
    package = pytest.importorskip("ema_pytorch")
    ema = package.EMA(module, beta=0.9, update_every=1, update_after_step=0)
    for _ in range(20):
        ema.update()
    result: nn.Module = ema.ema_model
    return result


def timm(module: nn.Module) -> nn.Module:
    spec = importlib.util.find_spec("timm")  # does not import it: that would need torchvision
    if spec is None or spec.origin is None:
        pytest.skip("needs timm")
    path = Path(spec.origin).parent / "utils" / "model_ema.py"
    file = importlib.util.spec_from_file_location("timm_model_ema", path)
    assert file is not None
    assert file.loader is not None
    package = importlib.util.module_from_spec(file)
    file.loader.exec_module(package)
    ema = package.ModelEmaV3(module, decay=0.9)
    for _ in range(20):
        ema.update(module)
    result: nn.Module = ema.module
    return result


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": same,
    "copied": copy.deepcopy,
    "pickled": lambda module: pickle.loads(pickle.dumps(module)),
    "compiled": compiled,
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "double": lambda module: module.double(),
    "averaged": averaged(False),
    "averaged with buffers": averaged(True),
    "ema_pytorch": ema_pytorch,
    "timm": timm,
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_survives_and_refuses(change: str) -> None:
    right, wrong = CHANGES[change](model()), CHANGES[change](model(["text", "image"]))
    before = {name: value.clone() for name, value in right.state_dict().items()}
    right.load_state_dict({name: value + 0 for name, value in right.state_dict().items()})
    with pytest.raises(ValueError, match=f"state belongs to another Part: its {OTHER}"):
        right.load_state_dict(wrong.state_dict())
    for name, value in right.state_dict().items():
        if ".0." not in f".{name}":  # batch norm came first and was loaded before the check
            assert torch.equal(value, before[name]), name
    key = next(name for name in before if name.endswith("identity"))
    assert decode(right.state_dict()[key]) == {"modalities": NAMES}
    # A copy of whatever it became takes the state of a fresh one, and the other way round.
    fresh = model()
    fresh.load_state_dict(
        {name.removeprefix("_orig_mod."): value for name, value in right.state_dict().items()}
    )


def test_another_width_is_told_by_its_name_not_by_the_length_of_a_buffer() -> None:
    with pytest.raises(ValueError, match=r'its modalities are \["audio", "image", "text"\]'):
        model().load_state_dict(model(["audio", "image", "text"]).state_dict())
    with pytest.raises(ValueError, match='its task is "regression", that of this one is "many"'):
        model(task="many").load_state_dict(model(task="regression").state_dict())


def test_options_of_other_versions_are_not_compared() -> None:
    newer, older = model(task="regression"), model()
    older.load_state_dict(newer.state_dict())
    newer.load_state_dict(older.state_dict())
    assert decode(newer.state_dict()["1.identity"])["task"] == "regression"


def test_a_state_without_identity_loads_with_a_warning() -> None:
    state = model().state_dict()
    del state["1.identity"]
    with pytest.warns(UserWarning, match=r'taken for one of modalities \["image", "text"\]'):
        model().load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a partial state says nothing of the part
        model().load_state_dict({"0.weight": torch.ones(4)}, strict=False)


def test_a_damaged_identity_is_refused() -> None:
    state = model().state_dict()
    state["1.identity"] = torch.full((5,), 7.0)
    with pytest.raises(ValueError, match="unreadable identity"):
        model().load_state_dict(state)


def test_a_model_in_a_folder_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    checkpoint.save_model(model(["text", "image"]), tmp_path, {})
    own = model()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(ValueError, match=f"another Part '1': its {OTHER}"):
        checkpoint.load_model(own, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    checkpoint.save_model(own, tmp_path, {})
    checkpoint.load_model(model(), tmp_path)


def test_it_is_exported_and_assigned(tmp_path: Path) -> None:
    program = torch.export.export(model().eval(), (torch.ones(2, 4),))
    assert decode(program.state_dict["1.identity"]) == {"modalities": NAMES}
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(model().eval(), (torch.ones(2, 4),), dynamo=True)
    assert exported is not None
    own = model()
    own.load_state_dict(model().state_dict(), assign=True)
    assert own(torch.ones(2, 4)).shape == (2, 2)


def test_a_pretrained_model_of_transformers_may_hold_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class Whole(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        config_class = transformers.PretrainedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.head = Part()
            self.post_init()

    whole = Whole(transformers.PretrainedConfig())
    whole.save_pretrained(tmp_path)
    again = Whole.from_pretrained(tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
