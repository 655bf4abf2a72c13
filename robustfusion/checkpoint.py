"""Save a model to a folder and load it: two files in standard formats, checked bit by bit."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustfusion._files import replace_file
from robustfusion._identity import check_identities, is_identity
from robustfusion._optional import optional

WEIGHTS, CONFIG, DIGESTS = "model.safetensors", "config.json", "SHA256SUMS"
_Path = str | os.PathLike[str]


def save_model(model: nn.Module, directory: _Path, config: Mapping[str, Any]) -> None:
    """Write ``model.safetensors``, ``config.json`` and the digests of both, ``SHA256SUMS``.

    Args:
        model: Any module.
        directory: Folder; it is created where needed.
        config: Whatever is needed to build the model again, for example the arguments of its
            constructor.

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
    state = {
        name: dense_copy(value, f"model.state_dict().{name}").contiguous()
        for name, value in model.state_dict().items()
    }
    try:
        weights: bytes = _safetensors().save(state, metadata={"format": "pt"})
        text = (json.dumps(dict(config), allow_nan=False, indent=1) + "\n").encode()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"config must be what JSON holds, weights what safetensors: {error}"
        ) from error
    # Three files cannot be replaced at once: the digests, written last, expose a mixture.
    replace_file(Path(directory) / WEIGHTS, weights)
    replace_file(Path(directory) / CONFIG, text)
    digests = _digest(WEIGHTS, weights) + _digest(CONFIG, text)
    replace_file(Path(directory) / DIGESTS, digests)


def load_model(model: nn.Module, directory: _Path) -> dict[str, Any]:
    """Load the weights that :func:`save_model` wrote into a model built like the saved one.

    The model is changed only when everything fits; no code is run, and nothing in the files says
    what to open.

    Args:
        model: Model of the same architecture.
        directory: Folder that :func:`save_model` wrote.

    Returns:
        The config.

    Raises:
        FileNotFoundError: Without a file.
        ValueError: If a file is damaged, even by one bit, foreign or of another save, or names,
            shapes or kinds of numbers are not those of the model, or its parts belong to other
            modalities, another order of them, or other options.
        ImportError: Without safetensors.
    """
    config, weights = read_config(directory), read_weights(directory)
    check_fit(model, weights)
    model.load_state_dict(weights)
    return config


def read_config(directory: _Path) -> dict[str, Any]:
    """Return the config that :func:`save_model` wrote; raises as :func:`load_model` does."""
    content = _verified(Path(directory), CONFIG)
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{Path(directory) / CONFIG} holds no config: {error}") from error


def read_weights(directory: _Path) -> dict[str, Tensor]:
    """Return the state dict that :func:`save_model` wrote; raises as :func:`load_model` does."""
    load, content = _safetensors().load, _verified(Path(directory), WEIGHTS)
    try:
        return dict(load(content))
    except Exception as error:  # safetensors raises an exception class of its own
        raise ValueError(f"{Path(directory) / WEIGHTS} holds no weights: {error}") from error


def check_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless names, shapes, numbers and identities fit the model."""
    check_identities(model, weights)
    own, weights = (
        {name: value for name, value in part.items() if not is_identity(model, name)}
        for part in (model.state_dict(), weights)
    )
    own = {name: value for name, value in own.items() if name in weights or not _optional(name)}
    if own.keys() != weights.keys():
        lacking, more = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        raise ValueError(
            f"weights of another model: {len(lacking)} missing {lacking[:3]}, {len(more)} more "
            f"{more[:3]}"
        )
    for name, expected in own.items():
        got = weights[name]
        if got.shape != expected.shape:
            raise ValueError(
                f'weights["{name}"] must have shape {tuple(expected.shape)}, got '
                f"{tuple(got.shape)}"
            )
        both_ways = (got.dtype, expected.dtype), (expected.dtype, got.dtype)
        if not all(torch.can_cast(*pair) for pair in both_ways):
            raise ValueError(f'weights["{name}"] must be {expected.dtype}, got {got.dtype}')


def _optional(name: str) -> bool:
    """Return whether states of robustfusion 0.2 lack this buffer of an estimator."""
    return name.rpartition(".")[2] == "marks"


def dense_copy(value: Any, name: str) -> Tensor:
    """Return a copy on the CPU of a dense tensor; raise ``TypeError`` for anything else."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {value!r}")
    if hasattr(value, "full_tensor"):  # a DTensor
        raise TypeError(
            f"{name} is sharded over ranks: use torch.distributed.checkpoint, or save what "
            "get_model_state_dict returns with StateDictOptions(full_state_dict=True)"
        )
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        kind = f"{value.layout}, {value.dtype}, on {value.device}"
        raise TypeError(f"{name} must be a dense tensor that holds data, got {kind}")
    return value.detach().cpu().clone()  # a view would be saved with everything it is a view of


def _digest(name: str, content: bytes) -> bytes:
    """Return a line as the program sha256sum writes and checks it."""
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


def _safetensors() -> Any:
    return optional("safetensors.torch", "models on disk need safetensors", "checkpoint")
