"""Export the DRF model of a run of drf_mvsa.py to ONNX and check it against PyTorch.

    python examples/export_run.py runs/drf_mvsa-001

writes ``model.onnx`` into the folder of the run. Its inputs are ``image``, ``text`` and the masks
``has_image``, ``has_text``, any batch size: pixels and word ids, as ``main_job/encoders.py`` makes
them, or the features of an encoder that was frozen, which stays outside of the file. Its outputs
are ``probabilities``, in the order of the classes that the file's metadata name, and the p-values
``image_p``, ``text_p``: at most 0.05 is an alarm, NaN a modality that is missing. Needs
``robustfusion[examples,onnx]``.
"""

import json
import logging
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

NEEDS = 'This example needs: pip install "robustfusion[examples,onnx]"'
try:
    import torch
    import typer
    from main_job.encoders import SetupError
    from main_job.predictor import Predictor
    from PIL import Image
    from torch import Tensor, nn
except ImportError as error:
    sys.exit(f"{error}. {NEEDS}")

INPUTS = ("image", "text", "has_image", "has_text")
OUTPUTS = ("probabilities", "image_p", "text_p")


class Served(nn.Module):
    """Tensors in; probabilities and p-values out."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.p_values = predictor.model, predictor.p_values

    def forward(
        self, image: Tensor, text: Tensor, has_image: Tensor, has_text: Tensor
    ) -> tuple[Tensor, ...]:
        """Return probabilities (B, C) and p-values (B,) of both modalities."""
        available = {"image": has_image, "text": has_text}
        out = self.model({"image": image, "text": text}, available)
        p = self.p_values(out)
        odd = [p[name].where(available[name], torch.nan) for name in available]
        return (out.logits.softmax(1), *odd)


def example(predictor: Predictor) -> tuple[Tensor, ...]:
    """Some posts, of which two have one modality."""
    noise = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8).numpy()
    pictures = [Image.fromarray(pixels) for pixels in noise]
    texts = ["a first text", "another", None, "and one alone"]
    inputs, available = predictor.prepare([*pictures, None], texts)
    if not isinstance(inputs["text"], Tensor):
        raise SetupError("the run trained a text encoder of transformers: export it with optimum")
    return (*inputs.values(), *available.values())


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/drf_mvsa-001.")],
    output: Annotated[Path | None, typer.Option(help="By default RUN/model.onnx.")] = None,
) -> None:
    """Export the model of a run to ONNX and compare it with PyTorch."""
    for name in ("onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            sys.exit(f"No module named {name!r}. {NEEDS}")
    import onnxruntime

    path = output or run / "model.onnx"
    try:
        predictor = Predictor(run)
        arguments = example(predictor)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    served = Served(predictor).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of torchvision, which is not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            served,
            arguments,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=({0: torch.export.Dim("batch")},) * len(INPUTS),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props["class_names"] = json.dumps(predictor.class_names)
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    more = [torch.cat([x, x]) for x in arguments]  # a batch of another size
    feed = {name: x.numpy() for name, x in zip(INPUTS, more, strict=True)}
    got = [torch.from_numpy(x) for x in session.run(OUTPUTS, feed)]
    with torch.no_grad():
        expected = served(*more)
    print(path)
    for name, a, b in zip(OUTPUTS, got, expected, strict=True):
        gap = (a.nan_to_num(-1) - b.nan_to_num(-1)).abs().max()
        print(f"  {name}: largest difference from PyTorch {gap:.1e}")
    for entry in session.get_inputs():
        print(f"  from {entry.name}: {entry.type}, {entry.shape}")


if __name__ == "__main__":
    typer.run(main)
