"""What a model's output holds, in whichever form it comes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def field(output: Any, name: str) -> Any:
    """Part of an output: an object's attribute, a mapping's entry; a tensor is its own logits."""
    if isinstance(output, Tensor):
        return output if name == "logits" else None
    if isinstance(output, Mapping):
        return output.get(name)
    return getattr(output, name, None)


def logits_of(output: Any, rows: int) -> Tensor:
    """The logits of an output for so many rows.

    Raises:
        ValueError: If it has none, or they have another shape.
    """
    logits = field(output, "logits")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ValueError(
            f"model's output must have logits of shape ({rows}, C), got {found}; a tensor, "
            '.logits and ["logits"] are read'
        )
    return logits


def p_values_of(model: nn.Module, output: Any) -> dict[str, Tensor]:
    """The p-values of an output by modality, from the head or the model, whichever offers them."""
    if field(output, "log_quality"):
        for part in (getattr(model, "head", None), model):
            made = getattr(part, "p_values", None)
            if callable(made):
                return dict(made(output))
    return {}
