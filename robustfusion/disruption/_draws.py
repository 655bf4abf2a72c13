"""Random draws that depend on (seed, sample id, purpose) alone.

A keyed BLAKE2 digest is the same in every process and order of calls, where Python's `hash` and a
shared generator are not. So a sample gets the same draw in any batch, worker or order.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SampleId: TypeAlias = str | int
Severity: TypeAlias = float | tuple[float, float]


def canonical_id(sample_id: object) -> SampleId:
    """Return `sample_id` as a plain `int` or `str`; numpy and 0-d tensor integers are ints.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import canonical_id
        >>> canonical_id(torch.tensor(7)), canonical_id("7")
        (7, '7')
    """
    if type(sample_id) is str or type(sample_id) is int:  # the usual case, called very often
        return sample_id
    if isinstance(sample_id, Tensor) and not sample_id.ndim:
        sample_id = sample_id.item()
    if isinstance(sample_id, str):
        return str(sample_id)
    if isinstance(sample_id, int | np.integer) and not isinstance(sample_id, bool):
        return int(sample_id)
    raise TypeError(f"a sample id must be a str or an int, got {sample_id!r}")


def _digest(seed: int, sample_id: object, purpose: str, size: int) -> bytes:
    name = canonical_id(sample_id)
    text = str(name)
    tag = "i" if isinstance(name, int) else "s"
    # The length makes the encoding one to one: no id and purpose can collide with another pair.
    message = f"{seed} {tag} {len(text)} {text} {purpose}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(message, digest_size=size, person=b"robustfusion/1").digest()


def uniforms(
    seed: int, ids: Iterable[object], purpose: str, columns: int = 1
) -> NDArray[np.float64]:
    """Return one row of `columns` uniform draws from [0, 1) for each id."""
    data = b"".join(_digest(seed, sample_id, purpose, 8 * columns) for sample_id in ids)
    bits = np.frombuffer(data, dtype="<u8").reshape(-1, columns)
    # A double has 53 significant bits, so with these every value is exact and below 1.
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_generator(seed: int, sample_id: SampleId, modality: str) -> np.random.Generator:
    """Return a fresh generator (PCG64) for one modality of one sample, the same in any process.

    The ids `7` and `"7"` differ.

    Example:
        >>> from robustfusion.disruption import sample_generator
        >>> a = sample_generator(0, "post-17", "image").random()
        >>> a == sample_generator(0, "post-17", "image").random()
        True
        >>> a == sample_generator(0, "post-18", "image").random()
        False
    """
    key = int.from_bytes(_digest(seed, sample_id, f"content:{modality}", 16), "little")
    return np.random.Generator(np.random.PCG64(key))


def check_options(kind: str, kinds: object, severity: object) -> None:
    """Raise unless `kind` is in the Literal and `severity` is a number in [0, 1] or a range."""
    if kind not in get_args(kinds):
        known = ", ".join(map(repr, get_args(kinds)))
        raise ValueError(f"kind must be one of {known}, got {kind!r}")
    check_severity(severity)


def check_severity(severity: object) -> None:
    """Raise unless `severity` is a number in [0, 1] or a range of them."""
    pair = severity if isinstance(severity, tuple) else (severity, severity)
    numbers = all(isinstance(s, int | float) and not isinstance(s, bool) for s in pair)
    if len(pair) != 2 or not numbers or not 0.0 <= pair[0] <= pair[1] <= 1.0:
        raise ValueError(
            f"severity must be a number in [0, 1] or a pair (low, high) of them, got {severity!r}"
        )


def draw_severity(severity: Severity, generator: np.random.Generator) -> float:
    """Return the severity for one sample: uniform in a pair, or the number itself."""
    # A fixed severity makes the draw, too, so that severities are compared on the same noise.
    draw = float(generator.random())
    if isinstance(severity, tuple):
        return severity[0] + (severity[1] - severity[0]) * draw
    return float(severity)


def count_of(share: float, total: int) -> int:
    """Return the number of items that make `share` of `total`, at least one if both are > 0."""
    if share <= 0.0 or total <= 0:
        return 0
    return min(total, max(1, math.floor(share * total + 0.5)))


def choose(total: int, count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of length `total` with exactly `count` True, uniform over all such masks.

    From one generator state a smaller count chooses a subset of a larger one.
    """
    # Raw bits cost a third of `integers`, which counts for fifty thousand pixels of an image.
    bits = generator.bit_generator.random_raw((total + 1) // 2)
    draws: NDArray[np.uint32] = bits.astype("<u8", copy=False).view("<u4")[:total]
    if count <= 0:
        return np.zeros(total, dtype=np.bool_)
    threshold = np.partition(draws, count - 1)[count - 1]
    chosen: NDArray[np.bool_] = draws <= threshold
    surplus = int(np.count_nonzero(chosen)) - count
    if surplus:
        chosen[np.flatnonzero(draws == threshold)[-surplus:]] = False
    return chosen
