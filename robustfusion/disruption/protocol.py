"""Who is disrupted: the paper's protocol as one declarative object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion.disruption._draws import SampleId, canonical_id, uniforms

Setting: TypeAlias = Literal["C", "D", "C+D"]
Strategy: TypeAlias = Literal["fixed", "random"]


@dataclass(frozen=True)
class DisruptionPlan:
    """What `Disruption.plan` says about B samples. All masks are bool tensors (B,), on the CPU.

    Attributes:
        ids: Names of the samples.
        corrupted: For each modality, the samples whose input is to be corrupted.
        discarded: For each modality, the samples whose input is to be discarded.
        available: For each modality, what is left to a model: observed and not discarded.
        spared: Samples that were drawn, but left alone because no other modality was there.

    Example:
        >>> from robustfusion.disruption import Disruption
        >>> disruption = Disruption(("image", "text"), setting="D", disruption_rate=0.5)
        >>> plan = disruption.plan([f"post-{i}" for i in range(1000)])
        >>> both = plan.available["image"] & plan.available["text"]
        >>> bool((plan.disrupted == ~both).all()), plan.counts()["samples"]
        (True, 1000)
        >>> 400 < plan.counts()["disrupted"] < 600
        True

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """

    ids: tuple[SampleId, ...]
    corrupted: dict[str, Tensor]
    discarded: dict[str, Tensor]
    available: dict[str, Tensor]
    spared: Tensor

    @property
    def disrupted(self) -> Tensor:
        """The samples of which some modality is corrupted or discarded, (B,)."""
        masks = [*self.corrupted.values(), *self.discarded.values()]
        return torch.stack(masks).any(dim=0)

    def counts(self) -> dict[str, Any]:
        """Return the realised counts, so that no rate has to be taken on trust."""
        disrupted = int(self.disrupted.sum())
        return {
            "samples": len(self.ids),
            "disrupted": disrupted,
            "intact": len(self.ids) - disrupted,
            "spared": int(self.spared.sum()),
            "corrupted": {name: int(mask.sum()) for name, mask in self.corrupted.items()},
            "discarded": {name: int(mask.sum()) for name, mask in self.discarded.items()},
        }


@dataclass(frozen=True)
class Disruption:
    """The robustness protocol of the paper's section 4.1, for any number of modalities.

    *Settings*: `"C"` corrupts, `"D"` discards, `"C+D"` does either with probability one half.
    *Strategies*: `"fixed"` disrupts the modality you name; `"random"` one modality a sample,
    drawn among those observed. At least one observed modality of every sample stays intact.

    `disruption_rate` is the share of the samples that ARE disrupted (not the share kept). Every
    sample is drawn for itself, from (seed, sample id, modality) and nothing else: not from order,
    batch, worker, process or any global random state. So the realised share is the rate up to
    chance; `plan(ids).counts()` says what it is. A sample disrupted at one rate is disrupted in
    the same way at every higher rate. For fresh draws (say every epoch, or for error bars) use
    `dataclasses.replace(disruption, seed=...)`.

    Args:
        modalities: Names of all modalities, two or more.
        setting: `"C"`, `"D"` or `"C+D"`.
        strategy: `"fixed"` or `"random"`.
        modality: For `"fixed"`, the modality to disrupt, or several (not all of them).
        disruption_rate: Share of the samples that are disrupted, in [0, 1].
        seed: Seed of all draws.

    Raises:
        ValueError: If an argument is out of its range or does not fit the others.

    Example:
        >>> from robustfusion.disruption import Disruption
        >>> disruption = Disruption(
        ...     ("image", "text"), setting="D", strategy="fixed", modality="text"
        ... )
        >>> plan = disruption.plan(["post-1", "post-2"])
        >>> plan.available["image"], plan.available["text"]
        (tensor([True, True]), tensor([False, False]))
        >>> plan.counts()["discarded"]
        {'image': 0, 'text': 2}

    Reference:
        "Robust Multimodal Sentiment Analysis of Image-Text Pairs by Distribution-Based Feature
        Recovery and Fusion", section 4.1.
    """

    modalities: tuple[str, ...]
    setting: Setting = "C+D"
    strategy: Strategy = "random"
    modality: str | tuple[str, ...] | None = None
    disruption_rate: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.modalities, str):
            raise TypeError(f"modalities must be a sequence of names, got {self.modalities!r}")
        names = tuple(self.modalities)
        object.__setattr__(self, "modalities", names)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"modalities must be two or more different names, got {names}")
        for argument, allowed in (("setting", Setting), ("strategy", Strategy)):
            if getattr(self, argument) not in get_args(allowed):
                raise ValueError(
                    f"{argument} must be one of {get_args(allowed)}, "
                    f"got {getattr(self, argument)!r}"
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer):
            raise TypeError(f"seed must be an int, got {self.seed!r}")
        if isinstance(self.disruption_rate, bool | str) or not isinstance(
            self.disruption_rate, int | float | np.number
        ):
            raise TypeError(f"disruption_rate must be a number, got {self.disruption_rate!r}")
        if not 0.0 <= self.disruption_rate <= 1.0:
            raise ValueError(f"disruption_rate must be in [0, 1], got {self.disruption_rate!r}")
        self._check_modality()

    def _check_modality(self) -> None:
        if self.modality is not None and not isinstance(self.modality, str):
            object.__setattr__(self, "modality", tuple(self.modality))
        if self.strategy == "random":
            if self.modality is not None:
                raise ValueError(
                    f'modality must be None for strategy="random", got {self.modality!r}'
                )
            return
        if not self._fixed:
            raise ValueError('modality must name what strategy="fixed" disrupts')
        unknown = [name for name in self._fixed if name not in self.modalities]
        if unknown:
            raise ValueError(f"modality must be among {self.modalities}, got {unknown[0]!r}")
        if set(self._fixed) == set(self.modalities):
            raise ValueError(f"modality must leave one of {self.modalities} intact, got all")

    @property
    def _fixed(self) -> tuple[str, ...]:
        if self.modality is None:
            return ()
        return (self.modality,) if isinstance(self.modality, str) else self.modality

    def plan(
        self, ids: Sequence[SampleId], available: Mapping[str, Tensor] | None = None
    ) -> DisruptionPlan:
        """Say who is corrupted and who is discarded.

        Args:
            ids: Names of the B samples, `str` or `int`; unique within the data set.
            available: For each modality, a bool tensor (B,), True where it was observed in the
                first place; a modality that is not named was always observed.
        """
        names = tuple(canonical_id(sample_id) for sample_id in ids)
        observed = self._observed(len(names), available)
        drawn = uniforms(self.seed, names, "sample")[:, 0] < self.disruption_rate
        draws = np.stack([uniforms(self.seed, names, f"plan:{m}", 2) for m in self.modalities])
        if self.strategy == "fixed":
            chosen = np.array([[name in self._fixed] for name in self.modalities])
        else:
            first = np.where(observed, draws[..., 0], np.inf).argmin(axis=0)
            chosen = np.arange(len(self.modalities))[:, None] == first
        disrupted = chosen & observed & drawn
        spared = disrupted.any(axis=0) & ~(observed & ~disrupted).any(axis=0)
        disrupted &= ~spared
        if self.setting == "C+D":
            corrupt = draws[..., 1] < 0.5
        else:
            corrupt = np.full_like(disrupted, self.setting == "C")
        return DisruptionPlan(
            ids=names,
            corrupted=self._masks(disrupted & corrupt),
            discarded=self._masks(disrupted & ~corrupt),
            available=self._masks(observed & ~(disrupted & ~corrupt)),
            spared=torch.from_numpy(spared),
        )

    def _masks(self, rows: NDArray[np.bool_]) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(row.copy())
            for name, row in zip(self.modalities, rows, strict=True)
        }

    def _observed(self, count: int, available: Mapping[str, Tensor] | None) -> NDArray[np.bool_]:
        observed = np.ones((len(self.modalities), count), dtype=np.bool_)
        for name, mask in (available or {}).items():
            if name not in self.modalities:
                raise ValueError(f"available has the key {name!r}, not among {self.modalities}")
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (count,):
                found = (
                    f"{mask.dtype} of shape {tuple(mask.shape)}"
                    if isinstance(mask, Tensor)
                    else type(mask).__name__
                )
                raise ValueError(
                    f'available["{name}"] must be a bool tensor of shape ({count},), got {found}'
                )
            observed[self.modalities.index(name)] = mask.cpu().numpy()
        return observed
