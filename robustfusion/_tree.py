"""Walk nested inputs: mappings of mappings of tensors."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(value: Any) -> Iterator[Any]:
    """Yield everything in a nested mapping that is not a mapping, in order."""
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from leaves(entry)
    else:
        yield value


def map_leaves(change: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Change each leaf; ``others`` are nested alike and provide more arguments of ``change``."""
    if isinstance(value, Mapping):
        return {
            key: map_leaves(change, entry, *(other[key] for other in others))
            for key, entry in value.items()
        }
    return change(value, *others)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change each tensor and leave everything else as it is."""
    return map_leaves(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, value)


def tensors(value: Any) -> Iterator[Tensor]:
    """Return an iterator over every tensor of a nested mapping, in order."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))
