"""Nested inputs, tensors in mappings in mappings, are walked here and nowhere else."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a nested mapping that is not a mapping, in order."""
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from leaves(entry)
    else:
        yield value


def map_leaves(change: Callable[..., Any], value: Any, *others: Any) -> Any:
    """The same nesting, each leaf changed; ``others`` of the same nesting give more arguments."""
    if isinstance(value, Mapping):
        return {
            key: map_leaves(change, entry, *(other[key] for other in others))
            for key, entry in value.items()
        }
    return change(value, *others)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nesting, each tensor changed and everything else left as it is."""
    return map_leaves(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, value)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of a nested mapping, in order."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))
