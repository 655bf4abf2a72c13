"""Export the DRF model of a run of drf_mvsa.py to ONNX and check it against PyTorch.

    python examples/export_run.py runs/drf_mvsa-001

writes ``model.onnx`` into the folder of the run. Its inputs, for any batch size, are ``image``,
``text`` and the masks ``has_image`` and ``has_text``. ``image`` and ``text`` are pixels and word
ids, as ``main_job/encoders.py`` prepares them; of a frozen encoder, which stays outside of the
file, they are its features. With ``--table-columns`` there are ``table``, the vectors that
``TableColumns`` makes, ``has_table`` and ``table_p``; what it needs is in the metadata of the file
as ``table_columns``. The outputs are ``probabilities`` (of a regression ``numbers``), in the
order of ``class_names`` in the metadata of the file, and the p-values ``image_p`` and ``text_p``.
A p-value of at most 0.05 is an alarm; it is NaN where the modality is missing. Needs
``robustfusion[examples,onnx]``.
"""

import json
import logging
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

NEEDS = 'This example needs: pip install -e ".[examples,onnx]"'
try:
    import torch
    import typer
    from main_job.encoders import SetupError
    from main_job.predictor import Predictor
    from PIL import Image
    from torch import Tensor, nn
except ImportError as error:
    sys.exit(f"{error}. {NEEDS}")


class Served(nn.Module):
    """The model with plain tensors as inputs and outputs, as ONNX needs it."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.p_values = predictor.model, predictor.p_values
        self.names, self.task = predictor.modalities, predictor.settings.task

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return probabilities (B, C) and p-values (B,) from the inputs and their masks."""
        count = len(self.names)
        available = dict(zip(self.names, tensors[count:], strict=True))
        out = self.model(dict(zip(self.names, tensors[:count], strict=True)), available)
        p = self.p_values(out)
        masked = [p[name].where(available[name], torch.nan) for name in available]
        if self.task == "regression":
            return (out.logits, *masked)
        several = self.task == "multilabel"
        return (out.logits.sigmoid() if several else out.logits.softmax(1), *masked)


def example(predictor: Predictor) -> tuple[Tensor, ...]:
    """Make four posts; two of them have one modality only."""
    noise = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8).numpy()
    pictures = [Image.fromarray(pixels) for pixels in noise]
    texts = ["a first text", "another", None, "without an image"]
    rows: list[Tensor | None] | None = None
    if predictor.columns is not None:
        rows = [*torch.randn(3, predictor.columns.dim), None]
    inputs, available = predictor.prepare([*pictures, None], texts, rows)
    if not isinstance(inputs["text"], Tensor):
        raise SetupError("the run trained a text encoder of transformers: export it with optimum")
    return (*inputs.values(), *available.values())


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/drf_mvsa-001.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of model.onnx; by default RUN.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(hidden=True, help="The file itself, as in former versions.")
    ] = None,
) -> None:
    """Export the model of a run to ONNX and compare it with PyTorch."""
    for name in ("onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            sys.exit(f"No module named {name!r}. {NEEDS}")
    import onnxruntime

    path = output or (output_dir or run) / "model.onnx"
    try:
        predictor = Predictor(run)
        arguments = example(predictor)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    served = Served(predictor).eval()
    modalities = predictor.modalities
    names = [*modalities, *(f"has_{name}" for name in modalities)]
    answer = "numbers" if predictor.settings.task == "regression" else "probabilities"
    outputs = [answer, *(f"{name}_p" for name in modalities)]
    # The exporter warns that torchvision is missing, which is not needed here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            served,
            arguments,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(({0: torch.export.Dim("batch")},) * len(names),),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props["class_names"] = json.dumps(predictor.class_names)
    program.model.metadata_props["task"] = predictor.settings.task
    if predictor.columns is not None:
        program.model.metadata_props["table_columns"] = json.dumps(predictor.columns.state)
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    more = [torch.cat([x, x]) for x in arguments]  # another batch size than that of the export
    feed = {name: x.numpy() for name, x in zip(names, more, strict=True)}
    exported = [torch.from_numpy(x) for x in session.run(outputs, feed)]
    with torch.no_grad():
        expected = served(*more)
    print(path)
    for name, a, b in zip(outputs, exported, expected, strict=True):
        gap = (a.nan_to_num(-1) - b.nan_to_num(-1)).abs().max()
        print(f"  {name}: largest difference from PyTorch {gap:.1e}")
    for entry in session.get_inputs():
        print(f"  from {entry.name}: {entry.type}, {entry.shape}")


if __name__ == "__main__":
    typer.run(main)
