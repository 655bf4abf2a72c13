"""The conditions of a robustness report: which modality is disrupted, how, and for whom."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from robustfusion.disruption.protocol import Disruption, Setting

SETTINGS: tuple[Setting, ...] = ("C", "D", "C+D")
RATES: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
Rate: TypeAlias = float | tuple[float, ...]


class Condition(NamedTuple):
    """One condition of a report.

    Args:
        strategy: "clean": nothing is disrupted; "fixed": one modality of every sample; "random":
            one random modality of a share `rate` of the samples; "independent": every modality by
            itself, each of a share of the samples.
        setting: As of :class:`~robustfusion.disruption.Disruption`; None when clean.
        modality: The disrupted modality of "fixed"; None otherwise.
        rate: The share of disrupted samples; for "independent" also one for each modality, in
            their order.

    Example:
        >>> from robustfusion.disruption import Condition
        >>> Condition("fixed", "C", "image", 1.0).key
        'fixed/image/C'
        >>> Condition("independent", "C", None, (0.8, 0.2)).title
        'independent 0.8, 0.2 C'

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751 for all but "independent".
    """

    strategy: Literal["clean", "fixed", "random", "independent"] = "clean"
    setting: Setting | None = None
    modality: str | None = None
    rate: Rate = 0.0

    @property
    def rate_text(self) -> str:
        """The rate or rates in words."""
        rates = self.rate if isinstance(self.rate, tuple) else (self.rate,)
        return ", ".join(f"{rate:g}" for rate in rates)

    @property
    def key(self) -> str:
        """The name of the condition in a report."""
        if self.strategy == "clean":
            return "clean"
        where = self.modality or self.rate_text.replace(", ", "+")
        return f"{self.strategy}/{where}/{self.setting}"

    @property
    def place(self) -> str:
        """What is disrupted: "image", "random 0.4" or "clean"."""
        if self.strategy in ("random", "independent"):
            return f"{self.strategy} {self.rate_text}"
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
        rates = self.rate
        rate = dict(zip(modalities, rates, strict=True)) if isinstance(rates, tuple) else rates
        return Disruption(
            tuple(modalities),
            self.setting or "C+D",
            "random" if self.strategy == "clean" else self.strategy,
            self.modality,
            rate,
            seed,
        )


def robustness_grid(
    modalities: Sequence[str],
    *,
    settings: Sequence[Setting] = SETTINGS,
    rates: Sequence[float] = RATES,
    independent: Sequence[Rate] = (),
) -> tuple[Condition, ...]:
    """The paper's section 4.1 as a tuple: clean, then modality-fixed, then modality-random.

    Args:
        modalities: The names, at least two.
        settings: Which of "C", "D", "C+D" and "P".
        rates: The disruption rates of modality-random, each in (0, 1].
        independent: Rates at which every modality is disrupted by itself, so that several of one
            sample may be poor at once: numbers in (0, 1], or tuples of one in [0, 1] for each
            modality.

    Raises:
        ValueError: For fewer than two modalities, an unknown setting, a rate out of its range, or
            what comes twice: rates that agree to six digits do.

    Example:
        >>> from robustfusion.disruption import robustness_grid
        >>> [c.key for c in robustness_grid(("image", "text"), settings=("D",), rates=(0.5,))]
        ['clean', 'fixed/image/D', 'fixed/text/D', 'random/0.5/D']
    """
    if len(modalities) < 2:
        raise ValueError(f"modalities must name at least two, got {tuple(modalities)}")
    for setting in settings:
        if setting not in get_args(Setting):
            raise ValueError(f"settings must be among {get_args(Setting)}, got {setting!r}")
    for rate in rates:
        if not 0 < rate <= 1:
            raise ValueError(f"rates must lie in (0, 1], got {rate}")
    for each in independent:
        if isinstance(each, Sequence) and len(each) != len(modalities):
            raise ValueError(f"independent must hold as many rates as modalities, got {each}")
    fixed = [Condition("fixed", s, m, 1.0) for m in modalities for s in settings]
    random = [Condition("random", s, None, float(r)) for s in settings for r in rates]
    free = [
        Condition("independent", s, None, tuple(r) if isinstance(r, Sequence) else float(r))
        for s in settings
        for r in independent
    ]
    return checked_conditions((Condition(), *fixed, *random, *free), modalities)


def checked_conditions(
    conditions: Sequence[Condition], modalities: Sequence[str]
) -> tuple[Condition, ...]:
    """The conditions, the clean one first, once it is sure that they fit these modalities."""
    grid = (Condition(), *(c for c in conditions if c.strategy != "clean"))
    for condition in grid:
        condition.disruption(modalities, 0)
    keys = [condition.key for condition in grid]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"modalities, settings and rates must differ, {twice!r} comes twice")
    return grid
