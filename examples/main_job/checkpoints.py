"""Training states on disk: a file is replaced at once, and one flipped bit is an error."""

import hashlib
import io
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from robustfusion.checkpoint import dense_copy, replace_file

_MARK = b"robustfusion sha256:"  # stands between what torch.save wrote and its digest
_Path = str | os.PathLike[str]


def save_checkpoint(path: _Path, state: Any) -> None:
    """Write a training state to one file at once: the file is the old one or the new one.

    The file is that of :func:`torch.save` followed by a digest; :func:`torch.load` reads it, too.

    Args:
        path: File.
        state: Dense tensors, None, bool, int, float, str, and lists, tuples and dicts (keys str or
            int) of these: what ``state_dict`` of modules, optimizers and schedulers returns.

    Raises:
        TypeError: If the state holds anything else; names the place, and writes nothing.
    """
    buffer = io.BytesIO()
    try:
        torch.save(_plain(state, "state"), buffer)
    except RecursionError as error:
        raise TypeError("state must not be nested hundreds of levels deep") from error
    content = buffer.getvalue()
    replace_file(Path(path), content + _MARK + hashlib.sha256(content).digest())


def load_checkpoint(path: _Path) -> Any:
    """Read what :func:`save_checkpoint` wrote; tensors come on the CPU, and no code is run.

    Raises:
        ValueError: If the file is damaged, even by one bit, cut off or foreign.
    """
    content, _, digest = Path(path).read_bytes().rpartition(_MARK)
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(f"{path} is no whole checkpoint: damaged, cut off, or another's format")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a forged file can fail in many ways
        raise ValueError(f"{path} is no checkpoint: {type(error).__name__}: {error}") from error


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator, for :func:`save_checkpoint`."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every global random generator to a :func:`random_state`.

    Raises:
        ValueError: If it is no such state, or was taken on another number of GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        if len(state["cuda"]) not in (0, gpus):
            raise ValueError(f"it is of {len(state['cuda'])} GPUs, this machine has {gpus}")
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"state is not a usable random_state(): {error}") from error


def _plain(value: Any, name: str) -> Any:
    """Copy a state into what ``torch.load`` takes without pickle; equal states, equal bytes."""
    if isinstance(value, Tensor):
        return dense_copy(value, name)
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{name}.{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        if bad := [key for key in value if type(key) not in (int, str)]:
            raise TypeError(f"{name} must have keys str or int, got {bad[0]!r}")
        return {_plain(k, name): _plain(item, f"{name}.{k}") for k, item in value.items()}
    if isinstance(value, str):
        return sys.intern(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    raise TypeError(f"{name} must be a tensor, number, text or collection, got {type(value)}")
