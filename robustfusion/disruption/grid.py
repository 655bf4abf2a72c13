"""The conditions of a robustness report as one tuple."""

from collections.abc import Sequence
from typing import get_args

from robustfusion.disruption.protocol import Disruption, Rate, Setting

SETTINGS: tuple[Setting, ...] = ("C", "D", "C+D")
RATES: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)


def robustness_grid(
    modalities: Sequence[str],
    *,
    settings: Sequence[Setting] = SETTINGS,
    rates: Sequence[float] = RATES,
    independent: Sequence[Rate] = (),
) -> tuple[Disruption, ...]:
    """Return the paper's section 4.1: clean, then modality-fixed, then modality-random.

    Args:
        modalities: The names, at least two.
        settings: Which of "C", "D", "C+D" and "P" to include.
        rates: The rates of the modality-random conditions, each in (0, 1].
        independent: Rates at which every modality is disrupted by itself, so that several inputs
            of one sample may be damaged at once: numbers in (0, 1], or tuples with one number in
            [0, 1] for each modality.

    Raises:
        ValueError: For fewer than two modalities, an unknown setting, a rate out of its range, or
            two conditions with one name; rates that agree to six digits have one name.

    Example:
        >>> from robustfusion.disruption import robustness_grid
        >>> [c.key for c in robustness_grid(("image", "text"), settings=("D",), rates=(0.5,))]
        ['clean', 'fixed/image/D', 'fixed/text/D', 'random/0.5/D']
    """
    names = tuple(modalities)
    if len(names) < 2:
        raise ValueError(f"modalities must name at least two, got {names}")
    for setting in settings:
        if setting not in get_args(Setting):
            raise ValueError(f"settings must be among {get_args(Setting)}, got {setting!r}")
    for rate in rates:
        if not 0 < rate <= 1:
            raise ValueError(f"rates must lie in (0, 1], got {rate}")
    for shares in independent:
        if isinstance(shares, Sequence) and len(shares) != len(names):
            raise ValueError(f"independent must hold as many rates as modalities, got {shares}")
    fixed = [
        Disruption(names, setting=s, strategy="fixed", modality=m) for m in names for s in settings
    ]
    random = [Disruption(names, setting=s, rate=float(r)) for s in settings for r in rates]
    free = [
        Disruption(names, setting=s, strategy="independent", rate=_plain(r))
        for s in settings
        for r in independent
    ]
    return checked_conditions((*fixed, *random, *free), names)


def checked_conditions(
    conditions: Sequence[Disruption], modalities: Sequence[str]
) -> tuple[Disruption, ...]:
    """Return the conditions, the clean one first, after checking that they fit the modalities."""
    names = tuple(modalities)
    grid = (
        Disruption(names, strategy="clean"),
        *(condition for condition in conditions if condition.strategy != "clean"),
    )
    for condition in grid:
        if condition.modalities != names:
            raise ValueError(
                f"conditions must be of the modalities {names}, got {condition.modalities}"
            )
    keys = [condition.key for condition in grid]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"modalities, settings and rates must differ, {twice!r} comes twice")
    return grid


def _plain(rate: Rate) -> Rate:
    return tuple(rate) if isinstance(rate, Sequence) else float(rate)
