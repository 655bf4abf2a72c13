"""The conditions of the robustness grid: which modality is disrupted, how, and for whom."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from robustfusion.disruption import Disruption

Setting = Literal["C", "D", "C+D"]
SETTINGS: tuple[Setting, ...] = ("C", "D", "C+D")
RATES: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)


class Condition(NamedTuple):
    """One condition of the grid.

    Args:
        strategy: "clean": nothing is disrupted; "fixed": one modality of every sample; "random":
            one random modality of a share `rate` of the samples.
        setting: "C" corrupts, "D" discards, "C+D" does either with probability ½; None when clean.
        modality: the disrupted modality of "fixed"; None otherwise.
        rate: the share of disrupted samples.

    Example:
        >>> Condition("fixed", "C", "image", 1.0).key
        'fixed/image/C'
        >>> Condition("random", "C+D", None, 0.4).title
        'random 0.4 C+D'

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """

    strategy: Literal["clean", "fixed", "random"] = "clean"
    setting: Setting | None = None
    modality: str | None = None
    rate: float = 0.0

    @property
    def key(self) -> str:
        """The name of the condition in `RobustnessReport.cells`."""
        if self.strategy == "clean":
            return "clean"
        return f"{self.strategy}/{self.modality or f'{self.rate:g}'}/{self.setting}"

    @property
    def place(self) -> str:
        """What is disrupted: "image", "random 0.4" or "clean"."""
        if self.strategy == "random":
            return f"random {self.rate:g}"
        return self.modality or "clean"

    @property
    def title(self) -> str:
        """The name of the condition in tables."""
        return f"{self.place} {self.setting}" if self.setting else self.place

    @property
    def is_seeded(self) -> bool:
        """Whether the disruption seed matters: not when clean, nor when all rows are discarded."""
        return not (self.strategy == "clean" or (self.strategy == "fixed" and self.setting == "D"))

    def disruption(self, modalities: Sequence[str], seed: int) -> Disruption:
        """The condition as the disruption that makes it."""
        return Disruption(
            tuple(modalities),
            setting=self.setting or "C+D",
            strategy="fixed" if self.strategy == "fixed" else "random",
            modality=self.modality,
            disruption_rate=self.rate,
            seed=seed,
        )


def robustness_grid(
    modalities: Sequence[str],
    *,
    settings: Sequence[Setting] = SETTINGS,
    rates: Sequence[float] = RATES,
) -> tuple[Condition, ...]:
    """The paper's section 4.1 as a tuple: clean, then modality-fixed, then modality-random.

    Args:
        modalities: the names, at least two.
        settings: which of "C", "D" and "C+D".
        rates: the disruption rates of modality-random, each in (0, 1].

    Returns:
        the conditions: `1 + len(settings) * (len(modalities) + len(rates))` of them.

    Raises:
        ValueError: for fewer than two modalities, an unknown setting, a rate outside (0, 1], or
            what comes twice: rates that agree to six digits do.

    Example:
        >>> [c.key for c in robustness_grid(("image", "text"), settings=("D",), rates=(0.5,))]
        ['clean', 'fixed/image/D', 'fixed/text/D', 'random/0.5/D']

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """
    if len(modalities) < 2:
        raise ValueError(f"modalities must name at least two, got {tuple(modalities)}")
    for setting in settings:
        if setting not in SETTINGS:
            raise ValueError(f"settings must be among {SETTINGS}, got {setting!r}")
    for rate in rates:
        if not 0 < rate <= 1:
            raise ValueError(f"rates must lie in (0, 1], got {rate}")
    fixed = [Condition("fixed", s, m, 1.0) for m in modalities for s in settings]
    random = [Condition("random", s, None, float(r)) for s in settings for r in rates]
    grid = (Condition(), *fixed, *random)
    keys = [condition.key for condition in grid]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"modalities, settings and rates must differ, {twice!r} comes twice")
    return grid
