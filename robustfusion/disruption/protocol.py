"""Who is disrupted: the paper's protocol as one declarative object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._validation import check_keys, check_names
from robustfusion.disruption._draws import SampleId, canonical_id, uniforms

Setting: TypeAlias = Literal["C", "D", "C+D", "P"]
Strategy: TypeAlias = Literal["fixed", "random", "independent"]


class Draws(NamedTuple):
    """What is drawn for B samples under one seed, whatever is then done to them."""

    ids: tuple[SampleId, ...]
    samples: NDArray[np.float64]  # (B,)
    modalities: NDArray[np.float64]  # (M, B, 2): who, and corrupted or discarded


def draw(seed: int, ids: tuple[SampleId, ...], modalities: Sequence[str]) -> Draws:
    """The draws of a seed."""
    each = [uniforms(seed, ids, f"plan:{name}", 2) for name in modalities]
    return Draws(ids, uniforms(seed, ids, "sample")[:, 0], np.stack(each))


@dataclass(frozen=True)
class DisruptionPlan:
    """What `Disruption.plan` says about B samples. All masks are bool tensors (B,), on the CPU.

    Example:
        >>> from robustfusion.disruption import Disruption
        >>> plan = Disruption(("image", "text"), "D", disruption_rate=0.5).plan(range(1000))
        >>> plan.counts()["samples"], 400 < plan.counts()["disrupted"] < 600
        (1000, True)
    """

    ids: tuple[SampleId, ...]  #: names of the samples
    corrupted: dict[str, Tensor]  #: for each modality, whose input is to be corrupted
    discarded: dict[str, Tensor]  #: for each modality, whose input is to be discarded
    available: dict[str, Tensor]  #: for each modality, what is left: observed and not discarded
    spared: Tensor  #: drawn, but left alone because no other modality was there

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

    *Settings*: `"C"` corrupts, `"D"` discards, `"C+D"` does either with probability one half;
    `"P"`, not in the paper, leaves a part out: 40-80 % of the tokens of a sequence, or of the
    columns of a vector, in place of the corruption given (of a text its end, of an image a box).
    *Strategies*: `"fixed"` disrupts the modality you name; `"random"` one modality a sample,
    drawn among those observed; at least one observed modality of every sample stays intact.
    `"independent"`, not in the paper, draws every modality by itself, so that all of a sample may
    be corrupted at once; at least one of every sample is not discarded.

    `disruption_rate` is the share of the samples that ARE disrupted (not the share kept). Every
    sample is drawn for itself, from (seed, sample id, modality) and nothing else, neither order
    nor process. So the realised share is the rate up to chance, see `plan(ids).counts()`; a
    sample disrupted at one rate is disrupted in the same way at every higher rate. For fresh
    draws, say every epoch, use `dataclasses.replace(disruption, seed=...)`.

    Args:
        modalities: Names of all modalities, two or more.
        setting: `"C"`, `"D"`, `"C+D"` or `"P"`.
        strategy: `"fixed"`, `"random"` or `"independent"`.
        modality: For `"fixed"`, the modality to disrupt, or several (not all of them).
        disruption_rate: Share of the samples that are disrupted, in [0, 1]; for `"independent"`
            also a mapping with the share of each modality.
        seed: Seed of all draws.

    Raises:
        ValueError: If an argument is out of its range or does not fit the others.

    Example:
        >>> from robustfusion.disruption import Disruption
        >>> disruption = Disruption(("image", "text"), "D", strategy="fixed", modality="text")
        >>> disruption.plan(["post-1", "post-2"]).available
        {'image': tensor([True, True]), 'text': tensor([False, False])}

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """

    modalities: tuple[str, ...]
    setting: Setting = "C+D"
    strategy: Strategy = "random"
    modality: str | tuple[str, ...] | None = None
    disruption_rate: float | Mapping[str, float] = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.modalities, str):
            raise TypeError(f"modalities must be a sequence of names, got {self.modalities!r}")
        names = tuple(self.modalities)
        object.__setattr__(self, "modalities", names)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"modalities must be two or more different names, got {names}")
        for argument, allowed in (("setting", Setting), ("strategy", Strategy)):
            if (value := getattr(self, argument)) not in get_args(allowed):
                raise ValueError(f"{argument} must be one of {get_args(allowed)}, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer):
            raise TypeError(f"seed must be an int, got {self.seed!r}")
        self._check_rate()
        self._check_modality()

    def _check_rate(self) -> None:
        rates: Any = self.disruption_rate
        if isinstance(rates, Mapping):
            if self.strategy != "independent":
                raise ValueError(
                    f'disruption_rate must be one number for strategy="{self.strategy}"'
                )
            check_names(rates, self.modalities, "disruption_rate")
            object.__setattr__(self, "disruption_rate", dict(rates))
        for rate in rates.values() if isinstance(rates, Mapping) else (rates,):
            if isinstance(rate, bool | str) or not isinstance(rate, int | float | np.number):
                raise TypeError(f"disruption_rate must be a number, got {rate!r}")
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"disruption_rate must be in [0, 1], got {rate!r}")

    def _check_modality(self) -> None:
        if self.modality is not None and not isinstance(self.modality, str):
            object.__setattr__(self, "modality", tuple(self.modality))
        if self.strategy != "fixed":
            if self.modality is not None:
                raise ValueError(
                    f'modality must be None for strategy="{self.strategy}", got {self.modality!r}'
                )
            return
        if not self._fixed:
            raise ValueError('modality must name what strategy="fixed" disrupts')
        for name in self._fixed:
            if name not in self.modalities:
                raise ValueError(f"modality must be among {self.modalities}, got {name!r}")
        if set(self._fixed) == set(self.modalities):
            raise ValueError(f"modality must leave one of {self.modalities} intact, got all")

    @property
    def _fixed(self) -> tuple[str, ...]:
        return (self.modality,) if isinstance(self.modality, str) else self.modality or ()

    def plan(
        self, ids: Sequence[SampleId], available: Mapping[str, Tensor] | None = None
    ) -> DisruptionPlan:
        """Say who of the B samples is corrupted and who is discarded.

        `ids` are unique within the data set; `available` is, for each modality that was not always
        observed, a bool tensor (B,).
        """
        names = tuple(canonical_id(sample_id) for sample_id in ids)
        return plan_from(self, draw(self.seed, names, self.modalities), available)


def plan_from(
    disruption: Disruption, draws: Draws, available: Mapping[str, Tensor] | None = None
) -> DisruptionPlan:
    """The plan for draws that were made before: many plans of one seed need them once."""
    names, rate = disruption.modalities, disruption.disruption_rate
    observed = _observed(names, len(draws.ids), available or {})
    place, coin = draws.modalities[..., 0], draws.modalities[..., 1]
    rows = np.arange(len(names))[:, None]
    share = np.array([[rate[name] if isinstance(rate, Mapping) else rate] for name in names])
    if disruption.strategy == "independent":
        chosen = place < share
    elif disruption.strategy == "fixed":
        fixed = np.array([[name in disruption._fixed] for name in names])
        chosen = fixed & (draws.samples < share)
    else:
        first = np.where(observed, place, np.inf).argmin(axis=0)
        chosen = (rows == first) & (draws.samples < share)
    disrupted = chosen & observed
    setting = disruption.setting
    discard = disrupted & (coin >= 0.5 if setting == "C+D" else setting == "D")
    if disruption.strategy == "independent":
        # The last to be drawn at a growing rate is the one that is left.
        spared = discard.any(axis=0) & ~(observed & ~discard).any(axis=0)
        last = np.where(observed, place, -np.inf).argmax(axis=0)
        disrupted &= ~(spared & (rows == last))
    else:
        spared = disrupted.any(axis=0) & ~(observed & ~disrupted).any(axis=0)
        disrupted &= ~spared
    discard &= disrupted

    def masks(which: NDArray[np.bool_]) -> dict[str, Tensor]:
        return {n: torch.from_numpy(row.copy()) for n, row in zip(names, which, strict=True)}

    return DisruptionPlan(
        ids=draws.ids,
        corrupted=masks(disrupted & ~discard),
        discarded=masks(discard),
        available=masks(observed & ~discard),
        spared=torch.from_numpy(spared),
    )


def _observed(
    names: tuple[str, ...], count: int, available: Mapping[str, Tensor]
) -> NDArray[np.bool_]:
    observed = np.ones((len(names), count), dtype=np.bool_)
    check_keys(available, names, "available")
    for name, mask in available.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (count,):
            found = type(mask).__name__
            if isinstance(mask, Tensor):
                found = f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(
                f'available["{name}"] must be a bool tensor of shape ({count},), got {found}'
            )
        observed[names.index(name)] = mask.cpu().numpy()
    return observed
