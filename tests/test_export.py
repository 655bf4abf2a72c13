"""torch.export and ONNX of the inference path, any batch size, equal to eager."""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfusion import DRFHead, PaperDRFHead

EXAMPLES = Path(__file__).parents[1] / "examples"
TWO = {"image": 6, "text": 4}
HEADS: dict[str, Callable[[], nn.Module]] = {
    "default": lambda: DRFHead(TWO, 3, hidden_features=16),
    "default, three": lambda: DRFHead({**TWO, "audio": 5}, 3, hidden_features=16),
    "default, four": lambda: DRFHead({**TWO, "audio": 5, "depth": 3}, 3, hidden_features=16),
    "paper": lambda: PaperDRFHead(TWO, 3),
    "paper, three": lambda: PaperDRFHead({**TWO, "audio": 5}, 3),
}
Pair = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in ("sklearn", "typer"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("export_onnx")


def inputs(head: Any, batch: int, seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    features = {m: torch.randn(batch, d, generator=generator) for m, d in head.dims.items()}
    available = {m: torch.rand(batch, generator=generator) > 0.4 for m in head.dims}
    return features, available


def trained(kind: str) -> Any:
    head: Any = HEADS[kind]()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for step in range(4):
        features, available = inputs(head, 16, step)
        head.loss(head(features, available), torch.randint(3, (16,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head.eval()


@pytest.fixture(params=HEADS)
def kind(request: pytest.FixtureRequest) -> str:
    if "," in request.param and not request.config.getoption("--long"):
        pytest.skip("more modalities: with --long")
    return str(request.param)


def test_exported_program_is_eager_at_any_batch_size(kind: str, example: Any) -> None:
    head = trained(kind)
    names = tuple(head.dims)
    wrapper = example.ForExport(head, names)
    features, available = inputs(head, 5)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        wrapper,
        (*features.values(), *available.values()),
        dynamic_shapes=(tuple({0: batch} for _ in range(2 * len(names))),),
    )
    for size in (2, 3, 7, 64):
        features, available = inputs(head, size, size)
        got = program.module()(*features.values(), *available.values())
        torch.testing.assert_close(got, head(features, available).logits)


def test_onnx_is_eager_at_any_batch_size(kind: str, example: Any, tmp_path: Path) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    head = trained(kind)
    path = tmp_path / "head.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        example.export(head, inputs(head, 5)[0], path)
    for size in (1, 2, 7, 64):
        features, available = inputs(head, size, size)
        for mask in available.values():
            mask[: size // 4] = False  # some samples without any modality
        got = example.run(path, features, available)
        with torch.no_grad():
            expected = head(features, available).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    odd = {name: 30 * x for name, x in features.items()}  # of next to no quality, yet there
    got = example.run(path, odd, available)
    with torch.no_grad():
        out = head(odd, available)
    assert min(q[available[name]].min() for name, q in out.log_quality.items()) < -20
    torch.testing.assert_close(got, out.logits, rtol=1e-4, atol=1e-4)
    first, second = list(head.dims)[:2]
    features[first][0, 0], features[first][1], features[second][2] = (
        torch.nan,
        torch.inf,
        torch.nan,
    )
    with torch.no_grad():
        expected = head(features, available).logits
    assert expected.isfinite().all()
    got = example.run(path, features, available)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_example_exports_a_trained_classifier(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example.main(steps=60, output_dir=tmp_path)
    printed = capsys.readouterr().out
    assert (tmp_path / "digits.onnx").stat().st_size > 1000
    assert float(printed.rsplit(" ", 1)[1]) > 0.6
    assert float(printed.split("difference ")[1].split(",")[0]) < 1e-4


def test_scripts_of_users_get_no_training_state(example: Any) -> None:
    head = trained("default")
    before = {name: buffer.clone() for name, buffer in head.named_buffers()}
    features, available = inputs(head, 5)
    torch.export.export(
        example.ForExport(head, tuple(head.dims)), (*features.values(), *available.values())
    )
    for name, buffer in head.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert not any(isinstance(module, nn.Dropout) and module.training for module in head.modules())


class Padded(nn.Module):
    """Append a sample that has no modality and drop its result: no reduction sees an empty batch.

    ONNX Runtime gives a reduction of an empty tensor the shape of its input, whatever the axes.
    """

    def __init__(self, wrapper: nn.Module) -> None:
        super().__init__()
        self.wrapper = wrapper

    def forward(self, *tensors: Tensor) -> Tensor:
        padded = (torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in tensors)
        logits: Tensor = self.wrapper(*padded)[:-1]
        return logits


def test_onnx_of_an_empty_batch_and_in_int8(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    head, path = trained("default"), tmp_path / "head.onnx"
    plain = example.ForExport
    monkeypatch.setattr(example, "ForExport", lambda *arguments: Padded(plain(*arguments)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example.export(head, inputs(head, 5)[0], path)
    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes of weights that the quantizer transposes
    onnx.save(model, path)
    quantize_dynamic(path, tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    for file, tolerance in ((path, 1e-5), (tmp_path / "int8.onnx", 0.1)):
        for size in (0, 1, 64):
            features, available = inputs(head, size, size)
            got = example.run(file, features, available)
            with torch.no_grad():
                expected = head(features, available).logits
            assert got.shape == (size, 3)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=tolerance)
