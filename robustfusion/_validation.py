"""All messages about shapes, dtypes and modality names.

Checks read shapes and dtypes, never values, so that they cost nothing on a device or in a
compiled graph. The one exception is :func:`check_labels`, which reads labels that are on the CPU.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def check_positive(value: int, name: str) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_between(value: float, low: float, high: float, name: str) -> None:
    """Raise unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def check_vectors(x: Tensor, dim: int, name: str, *, batched: bool = False) -> None:
    """Raise unless ``x`` is a floating tensor of shape (..., dim), or (B, dim) if ``batched``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    expected = f"(B, {dim})" if batched else f"(..., {dim})"
    if x.ndim == 0 or x.shape[-1] != dim or (batched and x.ndim != 2):
        hint = (
            ": pool sequences first: robustfusion.MaskedMean, AttentionPooling"
            if x.ndim == 3
            else ""
        )
        raise ValueError(f"{name} must have shape {expected}, got {tuple(x.shape)}{hint}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must have a floating dtype, got {x.dtype}: pass encoder outputs, not ids"
        )


def check_mask(mask: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Raise unless ``mask`` is a bool tensor of exactly ``shape``."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must have dtype torch.bool, got {mask.dtype}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(mask.shape)}")


def check_dims(dims: Mapping[str, int], *, at_least: int = 2) -> dict[str, int]:
    """Return ``dims`` as a dict after checking names and widths."""
    if not isinstance(dims, Mapping):
        raise TypeError(
            f"dims must map modality names to feature widths, got {type(dims).__name__}"
        )
    if len(dims) < at_least:
        raise ValueError(f"dims must name at least {at_least} modalities, got {list(dims)}")
    for name, dim in dims.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"dims: a modality name is a non-empty str without '.', got {name!r}")
        if hasattr(nn.ModuleDict(), name):
            raise ValueError(f"dims: {name!r} is taken, by a method of torch.nn.Module: rename it")
        check_positive(dim, f'dims["{name}"]')
    return dict(dims)


def check_names(
    got: Iterable[str], expected: Iterable[str], argument: str, *, of_samples: bool = False
) -> None:
    """Raise unless both hold the same names; for samples, explain how to leave one out."""
    got, expected = list(got), list(expected)
    missing = [name for name in expected if name not in got]
    unknown = [name for name in got if name not in expected]
    if unknown:
        raise ValueError(f"{argument} has unknown modality {unknown[0]!r}; expected {expected}")
    if missing:
        hint = (
            ". For a missing modality pass a placeholder of the right shape and "
            f'available["{missing[0]}"] = False'
        )
        raise ValueError(
            f"{argument} lacks modality {missing[0]!r}; expected {expected}"
            f"{hint if of_samples else ''}"
        )


def check_keys(got: Iterable[str], known: Iterable[str], argument: str) -> None:
    """Raise if a mapping has the name of an unknown modality."""
    names = tuple(known)
    for name in got:
        if name not in names:
            raise ValueError(f"{argument} has the key {name!r}, not among {names}")


def check_features(
    features: Mapping[str, Tensor], dims: Mapping[str, int], argument: str = "features"
) -> int:
    """Check one (B, D_m) tensor per modality and return the batch size B."""
    if not isinstance(features, Mapping):
        raise TypeError(
            f"{argument} must map modality names to tensors, got {type(features).__name__}"
        )
    check_names(features, dims, argument, of_samples=True)
    first = next(iter(dims))
    for name, dim in dims.items():
        check_vectors(features[name], dim, f'{argument}["{name}"]', batched=True)
        if features[name].shape[0] != features[first].shape[0]:
            raise ValueError(
                f'{argument}["{name}"] has {features[name].shape[0]} rows, but '
                f'{argument}["{first}"] has {features[first].shape[0]}'
            )
    return features[first].shape[0]


def check_available(
    available: Mapping[str, Tensor] | None,
    names: Iterable[str],
    batch: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return one (B,) bool tensor per modality, all True for a modality without a mask."""
    names, masks = list(names), {} if available is None else available
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"available must map modality names to bool tensors, got {type(available).__name__}"
        )
    unknown = [name for name in masks if name not in names]
    if unknown:
        raise ValueError(f"available has unknown modality {unknown[0]!r}; expected {names}")
    for name, mask in masks.items():
        check_mask(mask, (batch,), f'available["{name}"]')
    present = torch.ones(batch, dtype=torch.bool, device=device)
    return {name: masks[name].to(device) if name in masks else present for name in names}


def build_part(factory: Callable[..., M], kind: type, argument: str, *arguments: object) -> M:
    """Call a factory with ``arguments`` and check that the result is a ``kind``."""
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(f"{argument} must be a factory, say a class, got {type(factory).__name__}")
    part = factory(*arguments)
    if not isinstance(part, kind):
        raise TypeError(f"{argument} must make a {kind.__name__}, got {type(part).__name__}")
    return part


def check_labels(labels: Tensor, batch: int, num_classes: int) -> None:
    """Raise unless ``labels`` is a (B,) long tensor; on the CPU also unless in [0, C)."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.long:
        raise TypeError(f"labels must have dtype torch.long, got {labels.dtype}")
    if tuple(labels.shape) != (batch,):
        raise ValueError(f"labels must have shape ({batch},), got {tuple(labels.shape)}")
    # Reading values would make a device wait and break a compiled graph; torch itself reports a
    # bad class index there.
    if labels.device.type == "cpu" and batch > 0 and not torch.compiler.is_compiling():
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"labels must be in [0, {num_classes}), got {low} to {high}")
