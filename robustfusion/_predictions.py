"""The task of a model, and what the model predicts from an output."""

from collections.abc import Iterator
from typing import Any, get_args

from torch import Tensor, nn

from robustfusion import tasks
from robustfusion._outputs import logits_of


def task_of(model: nn.Module) -> tasks.Task:
    """Return the task of the first module that states one, else "multiclass"."""
    stated: Iterator[Any] = (getattr(module, "task", None) for module in model.modules())
    return next((task for task in stated if task in get_args(tasks.Task)), "multiclass")


def predicted_by(model: nn.Module, output: Any, rows: int) -> Tensor:
    """Return the class (B,), the labels (B, C) as bool, or the numbers (B, C).

    A head, or a model with a head, that states a task decides itself, with its thresholds.
    """
    for part in (model, getattr(model, "head", None)):
        decide = getattr(part, "predict", None)
        if callable(decide) and getattr(part, "task", None) in get_args(tasks.Task):
            predicted: Tensor = decide(output)
            return predicted
    return tasks.predict(logits_of(output, rows), task_of(model))
