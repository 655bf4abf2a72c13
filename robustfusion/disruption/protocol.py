"""The paper's robustness protocol as one declarative object."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._validation import check_names
from robustfusion.disruption._draws import SampleId
from robustfusion.disruption.plan import DisruptionPlan, Draws, observed_masks

Setting: TypeAlias = Literal["C", "D", "C+D", "P"]
Strategy: TypeAlias = Literal["clean", "fixed", "random", "independent"]
Rate: TypeAlias = float | tuple[float, ...]


@dataclass(frozen=True)
class Disruption:
    """The protocol of the paper's section 4.1: which inputs are corrupted or made missing.

    It works for any number of modalities. The same object plans a training set and is one
    condition of a :func:`~robustfusion.evaluation.robustness_report`.

    The *setting* says what happens to an input:

    - ``"C"`` corrupts it, ``"D"`` makes it missing, ``"C+D"`` does either with probability one
      half;
    - ``"P"``, which is not in the paper, removes a part of it in place of your corruption: 40-80 %
      of the tokens of a sequence or of the columns of a vector, the end of a text, a box of an
      image.

    The *strategy* says which inputs:

    - ``"fixed"`` disrupts the modality that you name;
    - ``"random"`` disrupts one modality of a sample, drawn among those observed;
    - ``"independent"``, which is not in the paper, draws every modality by itself, so that all
      inputs of a sample may be corrupted at once;
    - ``"clean"`` disrupts nothing.

    With "fixed" and "random" at least one observed modality of every sample stays intact; with
    "independent" at least one stays available.

    The rate is the share of the samples that ARE disrupted (not the share kept). Each sample
    depends on (seed, sample id, modality) alone, and on neither order nor process. So the realized
    share is the rate up to chance, see ``plan(ids).counts()``, and a sample that is disrupted at
    one rate is disrupted in the same way at every higher rate. For fresh draws, say every epoch,
    use ``dataclasses.replace(disruption, seed=...)``.

    Args:
        modalities: Names of all modalities, two or more.
        setting: ``"C"``, ``"D"``, ``"C+D"`` or ``"P"``; None when clean.
        strategy: ``"fixed"``, ``"random"``, ``"independent"`` or ``"clean"``.
        modality: For ``"fixed"``, the modality to disrupt, or several (not all of them).
        rate: Share of the samples that are disrupted, in [0, 1]; for ``"independent"`` also one
            share for each modality, as a mapping or in the order of ``modalities``.
        seed: Seed of all draws.

    Raises:
        ValueError: If an argument is out of its range or does not fit the others.

    Example:
        >>> from robustfusion.disruption import Disruption
        >>> disruption = Disruption(
        ...     ("image", "text"), setting="D", strategy="fixed", modality="text"
        ... )
        >>> disruption.plan(["post-1", "post-2"]).available
        {'image': tensor([True, True]), 'text': tensor([False, False])}
        >>> disruption.key
        'fixed/text/D'

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """

    modalities: tuple[str, ...]
    _: KW_ONLY
    setting: Setting | None = "C+D"
    strategy: Strategy = "random"
    modality: str | tuple[str, ...] | None = None
    rate: Rate | Mapping[str, float] = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.modalities, str):
            raise TypeError(f"modalities must be a sequence of names, got {self.modalities!r}")
        names = tuple(self.modalities)
        object.__setattr__(self, "modalities", names)
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"modalities must be two or more different names, got {names}")
        if self.strategy == "clean":
            object.__setattr__(self, "setting", None)
            object.__setattr__(self, "rate", 0.0)
        elif self.setting not in get_args(Setting):
            raise ValueError(f"setting must be one of {get_args(Setting)}, got {self.setting!r}")
        if self.strategy not in get_args(Strategy):
            raise ValueError(
                f"strategy must be one of {get_args(Strategy)}, got {self.strategy!r}"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer):
            raise TypeError(f"seed must be an int, got {self.seed!r}")
        self._check_rate()
        self._check_modality()

    def _check_rate(self) -> None:
        rate: Any = self.rate
        if isinstance(rate, Mapping | tuple) and self.strategy != "independent":
            raise ValueError(f'rate must be one number for strategy="{self.strategy}"')
        if isinstance(rate, Mapping):
            check_names(rate, self.modalities, "rate")
            rate = tuple(rate[name] for name in self.modalities)
            object.__setattr__(self, "rate", rate)
        if isinstance(rate, tuple) and len(rate) != len(self.modalities):
            raise ValueError(f"rate must hold one share for each of {self.modalities}, got {rate}")
        for share in rate if isinstance(rate, tuple) else (rate,):
            if isinstance(share, bool | str) or not isinstance(share, int | float | np.number):
                raise TypeError(f"rate must be a number, got {share!r}")
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"rate must be in [0, 1], got {share!r}")

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

    @property
    def _rates(self) -> tuple[float, ...]:
        """The rate of each modality."""
        rate: Any = self.rate
        return rate if isinstance(rate, tuple) else (rate,) * len(self.modalities)

    @property
    def rate_text(self) -> str:
        """The rate, or the rates of all modalities, as text."""
        rate: Any = self.rate
        return ", ".join(f"{x:g}" for x in (rate if isinstance(rate, tuple) else (rate,)))

    @property
    def where(self) -> str:
        """The part that is disrupted: ``"image"``, ``"random 0.4"`` or ``"clean"``."""
        if self.strategy == "fixed":
            names = "+".join(self._fixed)
            return names if self.rate == 1 else f"{names} {self.rate_text}"
        return "clean" if self.strategy == "clean" else f"{self.strategy} {self.rate_text}"

    @property
    def key(self) -> str:
        """The name of this condition in a report: ``"fixed/image/C"``, ``"random/0.4/C+D"``."""
        if self.strategy == "clean":
            return "clean"
        text = self.where if self.strategy == "fixed" else self.rate_text.replace(", ", "+")
        return f"{self.strategy}/{text}/{self.setting}"

    @property
    def title(self) -> str:
        """The name of this condition in tables: ``"image C"``, ``"random 0.4 C+D"``."""
        return f"{self.where} {self.setting}" if self.setting else self.where

    @property
    def is_seeded(self) -> bool:
        """False where the seed does not matter: clean, or all of a modality missing."""
        if self.strategy == "fixed" and self.setting == "D":
            return self.rate != 1
        return self.strategy != "clean"

    def plan(
        self, ids: Sequence[SampleId], available: Mapping[str, Tensor] | None = None
    ) -> DisruptionPlan:
        """Return which of the B samples are disrupted, and how.

        Args:
            ids: Names of the samples, unique within the data set.
            available: For each modality that was not always observed, a bool tensor (B,).
        """
        return self.plan_from(Draws(self.seed, ids, self.modalities), available)

    def plan_from(
        self, draws: Draws, available: Mapping[str, Tensor] | None = None
    ) -> DisruptionPlan:
        """Return the plan from draws that several disruptions of one seed share."""
        observed = observed_masks(self.modalities, len(draws.ids), available or {})
        disrupted = self._selected(draws, observed) & observed
        missing = np.zeros_like(disrupted)
        if self.setting == "D":
            missing = disrupted.copy()
        elif self.setting == "C+D":
            missing = disrupted & (draws.coins >= 0.5)
        if self.strategy == "independent":
            spared = missing.any(axis=0) & ~(observed & ~missing).any(axis=0)
            if spared.any():
                # A growing rate selects the modality of the largest draw last, so that one stays.
                last = np.where(observed, draws.order, -np.inf).argmax(axis=0)
                disrupted &= ~(spared & (self._rows == last))
        else:
            spared = disrupted.any(axis=0) & ~(observed & ~disrupted).any(axis=0)
            disrupted &= ~spared
        missing &= disrupted

        def masks(which: NDArray[np.bool_]) -> dict[str, Tensor]:
            pairs = zip(self.modalities, which, strict=True)
            return {name: torch.from_numpy(row.copy()) for name, row in pairs}

        return DisruptionPlan(
            ids=draws.ids,
            corrupted=masks(disrupted & ~missing),
            missing=masks(missing),
            available=masks(observed & ~missing),
            spared=torch.from_numpy(spared),
        )

    @property
    def _rows(self) -> NDArray[np.int64]:
        return np.arange(len(self.modalities))[:, None]

    def _selected(self, draws: Draws, observed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the inputs that the strategy selects, (M, B), observed or not."""
        rates, selected = np.array(self._rates)[:, None], np.ones_like(observed)
        if {*self._rates} <= {0, 1}:  # then nothing has to be drawn, which saves most of the time
            selected &= rates > 0
        elif self.strategy == "independent":
            selected &= draws.order < rates
        else:
            selected &= draws.samples < rates
        if self.strategy == "fixed":
            selected &= np.array([[name in self._fixed] for name in self.modalities])
        elif self.strategy == "random":
            first = np.where(observed, draws.order, np.inf).argmin(axis=0)
            selected &= self._rows == first
        return selected
