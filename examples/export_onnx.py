"""Export a trained classifier to ONNX and check it against PyTorch.

    python examples/export_onnx.py

The exported graph maps tensors to logits, for any batch size. The availability masks are inputs of
the graph, so each sample of a batch may lack another modality. Needs
``robustfusion[examples,onnx]``.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

NEEDS = 'This example needs: pip install -e ".[examples,onnx]"'
try:
    import torch
    import typer
    from digits import HalfDigits, Sample, inputs_of, make_model
    from torch import Tensor, nn
except ImportError as error:
    sys.exit(f"{error}. {NEEDS}")


class ForExport(nn.Module):
    """Take all tensors, then all masks, in the order of the modalities; return the logits."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return logits (B, C)."""
        inputs = dict(zip(self.names, tensors[: len(self.names)], strict=True))
        available = dict(zip(self.names, tensors[len(self.names) :], strict=True))
        logits: Tensor = self.model(inputs, available).logits
        return logits


def export(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Write ``model`` as ONNX; its inputs are named ``<name>`` and ``has_<name>``."""
    names = tuple(inputs)
    available = [torch.ones(len(x), dtype=torch.bool) for x in inputs.values()]
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        ForExport(model, names).eval(),
        (*inputs.values(), *available),
        path,
        input_names=[*names, *(f"has_{name}" for name in names)],
        output_names=["logits"],
        dynamic_shapes=(tuple({0: batch} for _ in range(2 * len(names))),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def run(path: Path, inputs: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
    """Compute the logits with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {name: x.numpy() for name, x in inputs.items()}
    feed |= {f"has_{name}": mask.numpy() for name, mask in available.items()}
    return torch.from_numpy(session.run(["logits"], feed)[0])


def main(steps: int = 200, output_dir: Path = Path("runs/export_onnx")) -> None:
    """Train briefly, export, and compare both on test digits whose upper half is missing."""
    for name in ("onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            sys.exit(f"No module named {name!r}. {NEEDS}")
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    train: Sample = torch.utils.data.default_collate(list(HalfDigits("train")))
    for _ in range(steps):
        rows = torch.randint(len(train["labels"]), (32,))
        batch = {name: column[rows] for name, column in train.items()}
        model.loss(model(*inputs_of(batch)), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "digits.onnx"
    model.eval()
    test: Sample = torch.utils.data.default_collate(list(HalfDigits("test", lost="upper")))
    inputs, available = inputs_of(test)
    export(model, {name: x[:4] for name, x in inputs.items()}, path)
    with torch.no_grad():
        expected = model(inputs, available).logits
    exported = run(path, inputs, available)
    right = (exported.argmax(1) == test["labels"]).float().mean()
    gap = (exported - expected).abs().max()
    print(f"{path}: largest difference {gap:.1e}, accuracy {right:.3f}")


if __name__ == "__main__":
    typer.run(main)
