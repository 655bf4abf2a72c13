"""The plan of a disruption: which inputs it corrupts and which it makes missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._validation import check_keys
from robustfusion.disruption._draws import SampleId, canonical_id, uniforms


class Draws:
    """Everything that is drawn for B samples under one seed, each part when it is first needed.

    The draws do not depend on what a disruption does with them, so all disruptions of one seed
    can share them.
    """

    def __init__(self, seed: int, ids: Sequence[SampleId], modalities: Sequence[str]) -> None:
        self.seed, self.modalities = seed, tuple(modalities)
        self.ids = tuple(canonical_id(sample_id) for sample_id in ids)

    @cached_property
    def samples(self) -> NDArray[np.float64]:
        """One draw a sample, (B,): a sample is disrupted where it is below the rate."""
        return uniforms(self.seed, self.ids, "sample")[:, 0]

    @cached_property
    def _by_modality(self) -> NDArray[np.float64]:
        return np.stack([uniforms(self.seed, self.ids, f"plan:{m}", 2) for m in self.modalities])

    @property
    def order(self) -> NDArray[np.float64]:
        """One draw a modality and sample, (M, B): the smallest of a sample is chosen first."""
        return self._by_modality[..., 0]

    @property
    def coins(self) -> NDArray[np.float64]:
        """One draw a modality and sample, (M, B): corrupted below one half, missing above."""
        return self._by_modality[..., 1]


@dataclass(frozen=True)
class DisruptionPlan:
    """The masks that say which of B samples are disrupted, and how.

    ``Disruption.plan`` makes it. All masks are bool tensors (B,) on the CPU.

    Example:
        >>> from robustfusion.disruption import Disruption
        >>> plan = Disruption(("image", "text"), setting="D", rate=0.5).plan(range(1000))
        >>> plan.counts()["samples"], 400 < plan.counts()["disrupted"] < 600
        (1000, True)
    """

    ids: tuple[SampleId, ...]  #: names of the samples
    corrupted: dict[str, Tensor]  #: for each modality, which inputs are to be corrupted
    missing: dict[str, Tensor]  #: for each modality, which inputs the disruption takes away
    available: dict[str, Tensor]  #: for each modality, the inputs that are left
    spared: Tensor  #: samples that were drawn but stay intact, because nothing else was observed

    @property
    def disrupted(self) -> Tensor:
        """The samples of which some modality is corrupted or made missing, (B,)."""
        masks = [*self.corrupted.values(), *self.missing.values()]
        return torch.stack(masks).any(dim=0)

    def counts(self) -> dict[str, Any]:
        """Return how many samples were disrupted in which way, so that a rate can be checked."""
        disrupted = int(self.disrupted.sum())
        return {
            "samples": len(self.ids),
            "disrupted": disrupted,
            "intact": len(self.ids) - disrupted,
            "spared": int(self.spared.sum()),
            "corrupted": {name: int(mask.sum()) for name, mask in self.corrupted.items()},
            "missing": {name: int(mask.sum()) for name, mask in self.missing.items()},
        }


def observed_masks(
    modalities: Sequence[str], count: int, available: Mapping[str, Tensor]
) -> NDArray[np.bool_]:
    """Return the masks as one array (M, B); a modality without a mask is always observed."""
    observed = np.ones((len(modalities), count), dtype=np.bool_)
    check_keys(available, modalities, "available")
    for name, mask in available.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (count,):
            got = type(mask).__name__
            if isinstance(mask, Tensor):
                got = f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(
                f'available["{name}"] must be a bool tensor of shape ({count},), got {got}'
            )
        observed[list(modalities).index(name)] = mask.cpu().numpy()
    return observed
