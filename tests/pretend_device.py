"""A device without float64, pretended on the CPU: as MPS is, and some accelerators are.

    with PretendDevice() as device:
        model, batch = device.put(model), device.put(batch)
        calibrate(model, [batch])

Tensors that were put there answer ``x.device`` with "mps:0", everything computed from them stays
there until ``.cpu()`` or ``.to("cpu")``, and a float64 there raises.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("mps:0")


class OnDevice(Tensor):
    """A tensor of the pretended device."""

    # The mode does everything.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class PretendDevice(TorchFunctionMode):
    """Follow tensors of the pretended device through all functions."""

    def put(self, value: Any) -> Any:
        """Move a module, in place, or nested tensors."""
        if isinstance(value, nn.Module):
            for module in value.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        data = parameter.detach().as_subclass(OnDevice)
                        module._parameters[name] = nn.Parameter(data)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = buffer.as_subclass(OnDevice)
            return value
        if isinstance(value, Mapping):
            return {key: self.put(entry) for key, entry in value.items()}
        return value.as_subclass(OnDevice) if isinstance(value, Tensor) else value

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        seen: list[OnDevice] = []

        def plain(value: Any) -> Any:
            if isinstance(value, OnDevice):
                seen.append(value)
                return value.as_subclass(Tensor)
            return value

        name = getattr(func, "__name__", "")
        if getattr(func, "__self__", None) is Tensor.device:  # asks for the device
            return DEVICE if isinstance(args[0], OnDevice) else args[0].as_subclass(Tensor).device
        if name in ("as_subclass", "__repr__"):
            return func(*args, **kwargs)
        target = (
            [
                value
                for value in (*args, *kwargs.values())
                if isinstance(value, torch.device) or value in ("cpu", "mps", "mps:0")
            ]
            if name != "type"
            else []
        )
        args, kwargs = tree_map(_to_cpu, (tree_map(plain, args), tree_map(plain, kwargs)))
        result = func(*args, **kwargs)
        on_device = bool(seen)
        if name == "cpu" or (target and str(target[0]) == "cpu"):
            on_device = False
        elif target:
            on_device = str(target[0]).startswith("mps")
        if not on_device:
            return result

        def wrap(value: Any) -> Any:
            if isinstance(value, Tensor):
                if value.dtype == torch.float64:
                    raise TypeError(f"this device has no float64: {name}")
                return value if isinstance(value, OnDevice) else value.as_subclass(OnDevice)
            return value

        return tree_map(wrap, result)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "mps":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value in ("mps", "mps:0") else value
