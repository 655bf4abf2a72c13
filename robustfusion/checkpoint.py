"""Training states and models on disk: in the field's formats, whole or not at all."""

import hashlib
import io
import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from robustfusion._optional import optional

WEIGHTS, CONFIG, DIGESTS = "model.safetensors", "config.json", "SHA256SUMS"
_MARK = b"robustfusion sha256:"  # between what torch.save wrote and its digest
_Path = str | os.PathLike[str]


def save_checkpoint(path: _Path, state: Any) -> None:
    """Write a training state to one file, at once: the file is the old one or the new one.

    The file is that of :func:`torch.save` with a digest behind; :func:`torch.load` reads it too.

    Args:
        path: The file.
        state: Dense tensors, None, bool, int, float, str, and lists, tuples and dicts (keys str or
            int) of these: what ``state_dict`` of modules, optimizers and schedulers returns.

    Raises:
        TypeError: If the state holds anything else; says where, and writes nothing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from robustfusion.checkpoint import load_checkpoint, save_checkpoint
        >>> path = Path(tempfile.mkdtemp()) / "last.pt"
        >>> layer = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> state = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
        >>> save_checkpoint(path, state)
        >>> load_checkpoint(path)["epoch"]
        3
    """
    buffer = io.BytesIO()
    try:
        torch.save(_plain(state, "state"), buffer)
    except RecursionError as error:
        raise TypeError("state must not be nested hundreds of levels deep") from error
    content = buffer.getvalue()
    _write(Path(path), content + _MARK + hashlib.sha256(content).digest())


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
    except Exception as error:  # as many kinds as there are ways to forge a file
        raise ValueError(f"{path} is no checkpoint: {type(error).__name__}: {error}") from error


def save_model(model: nn.Module, directory: _Path, config: Mapping[str, Any]) -> None:
    """Write ``model.safetensors``, ``config.json`` and the digests of both, ``SHA256SUMS``.

    Args:
        model: Any module.
        directory: Made where needed.
        config: What is needed to build the model again, say its constructor's arguments.

    Raises:
        TypeError: If JSON cannot hold the config, or the model's state holds something other than
            dense tensors; nothing is written then.
        ImportError: Without safetensors.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from robustfusion.checkpoint import load_model, read_config, save_model
        >>> directory = tempfile.mkdtemp()
        >>> save_model(nn.Linear(2, 3), directory, {"in_features": 2, "out_features": 3})
        >>> rebuilt = nn.Linear(**read_config(directory))
        >>> load_model(rebuilt, directory)
        {'in_features': 2, 'out_features': 3}
    """
    state = _plain(model.state_dict(), "model.state_dict()")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"model.state_dict().{name} must be a tensor, got {value!r}")
        state[name] = value.contiguous()
    try:
        weights: bytes = _safetensors().save(state, metadata={"format": "pt"})
        text = (json.dumps(dict(config), allow_nan=False, indent=1) + "\n").encode()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"config must be what JSON holds, weights what safetensors: {error}"
        ) from error
    # Three files cannot be replaced at once: the last tells a mixture of two saves.
    _write(Path(directory) / WEIGHTS, weights)
    _write(Path(directory) / CONFIG, text)
    _write(Path(directory) / DIGESTS, _digest(WEIGHTS, weights) + _digest(CONFIG, text))


def read_config(directory: _Path) -> dict[str, Any]:
    """Return the config that :func:`save_model` was given; errors as of :func:`load_model`."""
    content = _verified(Path(directory), CONFIG)
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{Path(directory) / CONFIG} holds no config: {error}") from error


def read_weights(directory: _Path) -> dict[str, Tensor]:
    """Return the state dict that :func:`save_model` wrote; errors as of :func:`load_model`."""
    load, content = _safetensors().load, _verified(Path(directory), WEIGHTS)
    try:
        return dict(load(content))
    except Exception as error:  # safetensors has an exception class of its own
        raise ValueError(f"{Path(directory) / WEIGHTS} holds no weights: {error}") from error


def load_model(model: nn.Module, directory: _Path) -> dict[str, Any]:
    """Fill a model, built as the saved one was, with what :func:`save_model` wrote.

    Returns the config. The model is changed only when everything fits; no code is run, and
    nothing in the files says what to open.

    Raises:
        FileNotFoundError: Without a file.
        ValueError: If a file is damaged, even by one bit, foreign or of another save, or names,
            shapes or kinds of numbers are not those of the model.
        ImportError: Without safetensors.
    """
    config, weights = read_config(directory), read_weights(directory)
    check_fit(model, weights)
    model.load_state_dict(weights)
    return config


def check_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless the weights are those of such a model."""
    own = model.state_dict()
    if own.keys() != weights.keys():
        lacking, more = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        raise ValueError(
            f"weights of another model: {len(lacking)} missing {lacking[:3]}, {len(more)} more "
            f"{more[:3]}"
        )
    for name, value in own.items():
        found = weights[name]
        if found.shape != value.shape:
            expected, got = tuple(value.shape), tuple(found.shape)
            raise ValueError(f'weights["{name}"] must have shape {expected}, got {got}')
        there, here = found.dtype, value.dtype
        if not (torch.can_cast(there, here) and torch.can_cast(here, there)):
            raise ValueError(f'weights["{name}"] must be {value.dtype}, got {found.dtype}')


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator, for :func:`save_checkpoint`.

    Example:
        >>> import torch
        >>> from robustfusion.checkpoint import random_state, restore_random_state
        >>> state = random_state()
        >>> drawn = torch.rand(3)
        >>> restore_random_state(state)
        >>> torch.equal(torch.rand(3), drawn)
        True
    """
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
        ValueError: If it is none, or was taken on another number of GPUs.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        if len(state["cuda"]) not in (0, here):
            raise ValueError(f"it is of {len(state['cuda'])} GPUs, this machine has {here}")
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"state is not a usable random_state(): {error}") from error


def _plain(value: Any, where: str) -> Any:
    """Copy a state into what ``torch.load`` takes without pickle, the same bytes for the same."""
    if isinstance(value, Tensor):
        if hasattr(value, "full_tensor"):  # a DTensor
            raise TypeError(
                f"{where} is sharded over ranks: use torch.distributed.checkpoint, or save what "
                "get_model_state_dict returns with StateDictOptions(full_state_dict=True)"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = f"{value.layout}, {value.dtype}, on {value.device}"
            raise TypeError(f"{where} must be a dense tensor that holds data, got {kind}")
        return value.detach().cpu().clone()  # a view would bring all that it is a view of
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}.{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        if bad := [key for key in value if type(key) not in (int, str)]:
            raise TypeError(f"{where} must have keys str or int, got {bad[0]!r}")
        return {_plain(k, where): _plain(item, f"{where}.{k}") for k, item in value.items()}
    if isinstance(value, str):
        return sys.intern(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    raise TypeError(f"{where} must be a tensor, number, text or collection, got {type(value)}")


def _digest(name: str, content: bytes) -> bytes:
    """A line as the program sha256sum writes and checks it."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def _verified(directory: Path, name: str) -> bytes:
    content, digests = (directory / name).read_bytes(), directory / DIGESTS
    lines = digests.read_bytes().splitlines(keepends=True) if digests.is_file() else []
    if _digest(name, content) not in lines:
        raise ValueError(
            f"{directory / name} is not what {DIGESTS} there says: damaged, cut off, changed, of "
            "another save, or of another library"
        )
    return content


def _write(path: Path, content: bytes) -> None:
    """Replace a file at once, and have it on the disk before returning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")  # one name: a killed run leaves one
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is on the disk once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _safetensors() -> Any:
    return optional("safetensors.torch", "models on disk need safetensors", "checkpoint")
