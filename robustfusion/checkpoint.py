"""Models and training states on disk: tensors as safetensors, the rest as JSON, never pickle."""

import hashlib
import json
import math
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_KEY = "robustfusion"  # of our JSON text in the header of a safetensors file
_TAGS = ("$tensor", "$tuple", "$items", "$float")


def save_checkpoint(path: str | os.PathLike[str], state: Any) -> None:
    """Write a training state to one file, at once: the file is the old one or the new one.

    The state is made of tensors, None, bool, int, float, str, and lists, tuples and dicts (keys
    str or int) of these: what ``state_dict`` of a module, an optimizer or a scheduler returns.

    Args:
        path: The file, best named ``*.safetensors``.
        state: What :func:`load_checkpoint` is to return.

    Raises:
        TypeError: If the state holds anything else, or a tensor sharded over ranks; says where.
        ImportError: Without safetensors.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.safetensors"
        >>> layer = nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> state = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
        >>> save_checkpoint(path, state)
        >>> load_checkpoint(path)["epoch"]
        3
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "state", tensors)
    _write(Path(path), _serialize(tensors, {"kind": "checkpoint", "state": tree}))


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read what :func:`save_checkpoint` wrote; tensors come on the CPU. No code is run.

    Raises:
        FileNotFoundError: Without the file.
        ValueError: If the file is cut off, foreign, damaged, or of a later format.

    The example is at :func:`save_checkpoint`.
    """
    tensors, header = _read(Path(path), "checkpoint")
    try:
        return _unpack(header["state"], tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def save_model(
    model: nn.Module, directory: str | os.PathLike[str], config: Mapping[str, Any]
) -> None:
    """Write a model's weights and buffers, and what is needed to build it again.

    Args:
        model: Any module.
        directory: Made where needed; gets ``model.safetensors`` and ``config.json``.
        config: Anything JSON can hold, say the constructor's arguments.

    Raises:
        TypeError: If JSON cannot hold the config, or the model's state holds something that is no
            tensor or one sharded over ranks.
        ImportError: Without safetensors.

    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> save_model(nn.Linear(2, 3), directory, {"in_features": 2, "out_features": 3})
        >>> rebuilt = nn.Linear(**read_config(directory))
        >>> load_model(rebuilt, directory)
        {'in_features': 2, 'out_features': 3}
    """
    directory = Path(directory)
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f'model.state_dict()["{name}"] must be a tensor, got {type(value).__name__}'
            )
        tensors[name] = value
    try:
        plain = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"config must be made of what JSON holds: {error}") from error
    content = _serialize(tensors, {"kind": "model"})
    document = {
        "format": FORMAT,
        "config": plain,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()},
    }
    # Two files cannot be replaced at once: the digest tells a mixture of two saves.
    _write(directory / WEIGHTS, content)
    _write(directory / CONFIG, (json.dumps(document, indent=1) + "\n").encode())


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the config that :func:`save_model` was given.

    Raises:
        FileNotFoundError: Without ``config.json``.
        ValueError: If it is no such file, or of a later format.

    The example is at :func:`save_model`.
    """
    config: dict[str, Any] = _document(Path(directory))["config"]
    return config


def load_model(model: nn.Module, directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Fill a model with the weights and buffers that :func:`save_model` wrote. No code is run.

    The model is changed only when everything fits. File names are fixed: nothing in the files
    says what to open.

    Args:
        model: Built as the saved one was.
        directory: Where ``model.safetensors`` and ``config.json`` are.

    Returns:
        The config.

    Raises:
        FileNotFoundError: Without either file.
        ValueError: If a file is damaged or foreign, the two are not of one save, or names, shapes
            or kinds of numbers are not those of the model.

    The example is at :func:`save_model`.
    """
    directory = Path(directory)
    document = _document(directory)
    path = directory / WEIGHTS
    tensors, _ = _read(path, "model", str(document["weights"]["sha256"]))
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    unknown = sorted(set(tensors) - set(own))
    if missing or unknown:
        raise ValueError(
            f"{path} is of another model: it lacks {_few(missing)} and has {_few(unknown)} besides"
        )
    for name, value in own.items():
        found = tensors[name]
        if found.shape != value.shape:
            raise ValueError(
                f'{path}["{name}"] must have shape {tuple(value.shape)}, got {tuple(found.shape)}'
            )
        if _kind(found) != _kind(value):
            raise ValueError(f'{path}["{name}"] must be {value.dtype}, got {found.dtype}')
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    config: dict[str, Any] = document["config"]
    return config


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator, ready for :func:`save_checkpoint`.

    Example:
        >>> state = random_state()
        >>> drawn = torch.rand(3)
        >>> restore_random_state(state)
        >>> torch.equal(torch.rand(3), drawn)
        True
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (str(name), [int(key) for key in keys], position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every global random generator to a :func:`random_state`.

    Raises:
        ValueError: If it is none, or was taken on another number of GPUs.

    The example is at :func:`random_state`.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        if state["cuda"] and len(state["cuda"]) != here:
            raise ValueError(f"it is of {len(state['cuda'])} GPUs, this machine has {here}")
        random.setstate(state["python"])
        name, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state(  # noqa: NPY002
            (name, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss)
        )
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"state is not a usable random_state(): {error}") from error


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Return JSON that stands for a value, its tensors put aside under their places as names."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Tensor):
        name = f"{len(tensors)} {where}"  # numbered: keys may hold dots, so places may coincide
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{where}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        if bad := [key for key in value if type(key) not in (int, str)]:
            raise TypeError(f"{where} must have keys str or int, got {bad[0]!r}")
        pairs = [(key, _pack(item, f"{where}.{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and key not in _TAGS for key, _ in pairs):
            return dict(pairs)
        return {"$items": [[key, item] for key, item in pairs]}
    raise TypeError(f"{where} must be a tensor or what JSON holds, got {type(value).__name__}")


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        tag, content = next(iter(tree.items()))
        if tag == "$tensor":
            return tensors[content]
        if tag == "$float":
            return float(content)
        if tag == "$tuple":
            return tuple(_unpack(item, tensors) for item in content)
        if tag == "$items":
            return {key: _unpack(item, tensors) for key, item in content}
    return {key: _unpack(item, tensors) for key, item in tree.items()}


def _serialize(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    from_tensors = _safetensors().save
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):  # a DTensor
            raise TypeError(
                f"{name.split()[-1]} is sharded over ranks: save the full state, which "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict returns with "
                "StateDictOptions(full_state_dict=True, cpu_offload=True)"
            )
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    content: bytes = from_tensors(plain, metadata={_KEY: text})
    return content


def _read(
    path: Path, kind: str, digest: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and our header of a safetensors file."""
    to_tensors = _safetensors().load
    content = path.read_bytes()
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path} is not the file that {CONFIG} was written with: it is damaged, cut off, or "
            "of another save"
        )
    try:
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        tensors: dict[str, Tensor] = to_tensors(content)
        header = json.loads(metadata[_KEY])
        found = header["format"], header["kind"]
    except Exception as error:  # safetensors has an exception class of its own
        raise ValueError(f"{path} is not a whole {kind} file of robustfusion: {error}") from error
    _check_format(found[0], path)
    if found[1] != kind:
        raise ValueError(f"{path} must hold a {kind}, got {str(found[1])[:40]!r}")
    return tensors, header


def _document(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        document = json.loads(path.read_bytes())
        version, config, digest = (
            document["format"],
            document["config"],
            document["weights"]["sha256"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a config that save_model wrote: {error}") from error
    _check_format(version, path)
    if not isinstance(config, dict) or not isinstance(digest, str):
        raise ValueError(f"{path} is not a config that save_model wrote: wrong types in it")
    checked: dict[str, Any] = document
    return checked


def _check_format(version: Any, path: Path) -> None:
    if type(version) is not int or version < 1:
        raise ValueError(f"{path} has no valid format version: {str(version)[:40]!r}")
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, this version of robustfusion reads up to {FORMAT}: "
            "upgrade it"
        )


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


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating"
    return "bool" if tensor.dtype == torch.bool else "integer"


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "nothing"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            'saving and loading need safetensors: pip install "robustfusion[hf]"'
        ) from error
    return safetensors.torch
