"""Store in a module's state the names and options that give it its meaning, and check them.

Weights of equal shapes may belong to different things: the modalities in another order, another
pooling, another task. PyTorch loads them without a word.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

KEY = "identity"


def register_identity(module: nn.Module, **options: Any) -> None:
    """Save options with a module, and let ``load_state_dict`` refuse the state of other options.

    The options are JSON in a buffer ``identity``, one float for each byte. A float survives the
    averages of weights, of which some truncate integers and others skip them; ASCII is exact in
    every dtype. A state without the buffer, of robustfusion 0.2 or older, loads with a warning.

    Args:
        module: Module whose state depends on the options.
        options: Values that JSON holds, such as the list of modality names in their order.

    Example:
        >>> import torch
        >>> from robustfusion._identity import register_identity
        >>> def build(names):
        ...     layer = torch.nn.Linear(4, 2)
        ...     register_identity(layer, modalities=names)
        ...     return layer
        >>> build(["text", "image"]).load_state_dict(build(["image", "text"]).state_dict())
        Traceback (most recent call last):
        ...
        ValueError: the state belongs to another Linear: its modalities are ["image", "text"], \
those of this one are ["text", "image"]
    """
    module.register_buffer(KEY, encode(options))
    module.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
        partial(_on_load, options=options)
    )


def encode(options: Mapping[str, Any]) -> Tensor:
    """Return options as a float tensor."""
    return torch.tensor(list(json.dumps(options).encode("ascii")), dtype=torch.float32)


def decode(identity: Tensor) -> dict[str, Any]:
    """Return the options that :func:`encode` was called with; unreadable ones give {}."""
    try:
        options = json.loads(bytes(identity.detach().cpu().float().round().byte().tolist()))
    except (ValueError, RuntimeError):
        return {}
    return dict(options) if isinstance(options, dict) else {}


def check_identity(kind: str, options: Mapping[str, Any], identity: Tensor) -> None:
    """Raise ``ValueError`` unless a saved identity is that of these options.

    An option that only one of the two knows is not compared: it is of another version.
    """
    saved = decode(identity)
    if not saved:
        raise ValueError(f"the state of this {kind} has an unreadable identity: it is damaged")
    differences = []
    for name, value in options.items():
        own, other = json.dumps(value), json.dumps(saved.get(name, value))
        if own != other:
            are = "are" if name.endswith("s") else "is"
            those = "those" if are == "are" else "that"
            differences.append(f"its {name} {are} {other}, {those} of this one {are} {own}")
    if differences:
        raise ValueError(f"the state belongs to another {kind}: {'; '.join(differences)}")


def check_identities(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` before anything is loaded if a part of a model has another identity."""
    for path, options in _identities(model):
        if (key := f"{path}.{KEY}".lstrip(".")) in state:
            kind = type(model.get_submodule(path)).__name__
            check_identity(f"{kind} {path!r}" if path else kind, options, state[key])


def is_identity(model: nn.Module, key: str) -> bool:
    """Return whether a key of the state dict of a model is an identity, whose length may vary."""
    path, _, name = key.rpartition(".")
    return name == KEY and path in dict(_identities(model))


def _identities(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the options of each part with an identity."""
    for path, module in model.named_modules():
        if isinstance(identity := getattr(module, KEY, None), Tensor) and not identity.is_meta:
            yield path, decode(identity)


def _on_load(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    *_: Any,
    options: Mapping[str, Any],
) -> None:
    key, kind = prefix + KEY, type(module).__name__
    if key in state:
        check_identity(kind, options, state[key])
    elif any(name.startswith(prefix) for name in state):
        text = ", ".join(f"{name} {json.dumps(value)}" for name, value in options.items())
        warnings.warn(
            f"the state of {kind} does not say what it belongs to, as those of robustfusion 0.2 "
            f"do not; it is taken for one of {text}. Save it again to have this checked",
            stacklevel=2,
        )
    state[key] = encode(options)  # so that its length is the expected one
