"""Typed containers and the small network that several heads share."""

import inspect
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Generic

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

M = TypeVar("M", bound=nn.Module, default=nn.Module)


class ModuleDict(nn.ModuleDict, Generic[M]):
    """An ``nn.ModuleDict`` whose values have one known type."""

    if TYPE_CHECKING:

        def __init__(self, modules: Mapping[str, M]) -> None: ...
        def __getitem__(self, key: str) -> M: ...
        def __iter__(self) -> Iterator[str]: ...
        def items(self) -> ItemsView[str, M]: ...
        def values(self) -> ValuesView[M]: ...


class ModuleList(nn.ModuleList, Generic[M]):
    """An ``nn.ModuleList`` whose values have one known type."""

    if TYPE_CHECKING:

        def __getitem__(self, index: int) -> M: ...  # type: ignore[override]
        def __iter__(self) -> Iterator[M]: ...


def mlp(*widths: int, dropout: float = 0.0, activate_last: bool = False) -> nn.Sequential:
    """Stack linear layers of these widths with ReLU (and dropout) between them, or after each."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*(layers if activate_last else layers[:-2]))


class StackedLinear(nn.Module):
    """Apply one linear layer per modality in one product, (M, B, in) -> (M, B, out)."""

    def __init__(self, modalities: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = fan_in**-0.5  # the initialization of nn.Linear
        self.weight = nn.Parameter(
            torch.empty(modalities, fan_in, fan_out).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(modalities, 1, fan_out).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """Apply to each modality its own layer."""
        return torch.baddbmm(self.bias, rows, self.weight)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode and afterwards restore the mode of each module.

    Modes are restored one by one: a frozen encoder inside a training model stays in evaluation
    mode.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def keep_rows(features: Tensor, available: Tensor) -> Tensor:
    """Set the unavailable rows of (B, ...) to zero. Call it before a network, never after it.

    ``where(mask, net(x), 0)`` would still carry a NaN of a masked row into the gradients of the
    network's weights; ``net(where(mask, x, 0))`` does not.
    """
    mask = available.reshape(-1, *[1] * (features.ndim - 1))
    return features.where(mask, features.new_zeros(()))


def arguments_of(module: nn.Module) -> str:
    """Return those constructor arguments that the module stores, for ``extra_repr``."""
    attributes, names = vars(module), inspect.signature(type(module)).parameters
    return ", ".join(f"{name}={attributes[name]!r}" for name in names if name in attributes)
