"""Damage of a random kind, as augmentation in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustfusion.disruption._draws import Severity, check_severity
from robustfusion.disruption.damage import PAIRED_KINDS, corruption_of


@dataclass(frozen=True, kw_only=True)
class RandomDamage:
    """Damage an input by a kind and a severity that are drawn anew for each sample.

    It is a corruption like :class:`ImageCorruption`, for any kind of input: pass it to
    :class:`DisruptedDataset` to train on damage. The kinds ``"swapped"`` and ``"mean"`` need a
    second sample and are left out.

    Args:
        kinds: Names, such as ``IMAGE_DAMAGE``.
        severity: A number, or a range (low, high) from which each sample draws uniformly.

    Raises:
        ValueError: If no kind is left, a kind does not fit the input, or the severity is not in
            [0, 1].

    Example:
        >>> import torch
        >>> from robustfusion.disruption import DisruptedDataset, Disruption, RandomDamage
        >>> posts = [{"inputs": {"image": torch.ones(3, 4, 4), "text": "so very good"}}]
        >>> names = ("image", "text")
        >>> augmentation = Disruption(names, setting="C", strategy="fixed", modality="text")
        >>> damages = {"text": RandomDamage(kinds=("mask", "blank", "repeat"), severity=1.0)}
        >>> sample = DisruptedDataset(posts, augmentation, damages)[0]
        >>> sample["corrupted"]["text"], sample["inputs"]["text"] != "so very good"
        (True, True)
    """

    kinds: Sequence[str]
    severity: Severity = (0.02, 1.0)

    def __post_init__(self) -> None:
        check_severity(self.severity)
        kinds = tuple(kind for kind in self.kinds if kind not in PAIRED_KINDS)
        if isinstance(self.kinds, str) or not kinds:
            raise ValueError(f"kinds must be names of kinds of damage, got {self.kinds!r}")
        object.__setattr__(self, "kinds", kinds)

    def __call__(self, value: Any, generator: np.random.Generator) -> Any:
        """Return a damaged copy of an image, a text or features; randomness from `generator`."""
        kind = self.kinds[int(generator.integers(len(self.kinds)))]
        return corruption_of(value, "input", kind, self.severity)(value, generator)
