"""Read the output of any model, in whichever form it comes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def read_output(output: Any, name: str) -> Any:
    """Return an attribute or entry of an output, else None; a tensor is its own logits."""
    if isinstance(output, Tensor):
        return output if name == "logits" else None
    if isinstance(output, Mapping):
        return output.get(name)
    return getattr(output, name, None)


def logits_of(output: Any, rows: int) -> Tensor:
    """Return the logits of an output for ``rows`` samples.

    Raises:
        ValueError: If it has none, or they have another shape.
    """
    logits = read_output(output, "logits")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ValueError(
            f"model's output must have logits of shape ({rows}, C), got {got}; a tensor, "
            '.logits and ["logits"] are read'
        )
    return logits


def p_values_of(model: nn.Module, output: Any) -> dict[str, Tensor]:
    """Return the p-values of an output by modality, from the head or the model."""
    if read_output(output, "log_quality"):
        for part in (getattr(model, "head", None), model):
            p_values = getattr(part, "p_values", None)
            if callable(p_values):
                return dict(p_values(output))
    return {}
