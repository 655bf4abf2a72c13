"""Detect that incoming data have changed: the chance of ever being wrong is bounded."""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from robustfusion._identity import check_identity, encode

# The grid on which past p-values are counted. Estimators keep at most 2,048 references, which
# leaves two cells to a gap between them.
_CELLS = 4096
_CHUNK = 256  # samples ranked at once, by a table of 256 x 256
_HALF_LIFE = 1000.0  # samples after which the reserve begins to be spent slowly
_GROUPS = 4096  # latest groups of samples that are remembered for each name
# Largest distance of a p-value from a multiple of 1 / (references + 1), in such multiples. In
# float32 those of a million references are closer than that.
_ROUNDING = 0.05
# Each bet is that a share of the samples has p-values with the density power * p^(power - 1), near
# 0 or, mirrored, near 1. From all samples to a tenth of them, from a slight bend to a steep one:
# some bet comes close to any change.
_BETS = tuple(
    (share, power, end) for end in (0, 1) for share in (1.0, 0.3, 0.1) for power in (0.1, 0.3, 0.6)
)


class MonitorState(NamedTuple):
    """The findings of a :class:`DriftMonitor` so far.

    Args:
        alarm: True from the first alarm on.
        alarms: The names that raised it, with the number of the sample at which they did.
        evidence: Log10 of the capital of each name; an alarm is raised at ``threshold``.
        maximum: The highest evidence so far.
        threshold: Evidence at which a name alarms.
        samples: Number of samples seen.
        available: Number of these that each name was judged by: those with a p-value, and of
            each group the first of them.
    """

    alarm: bool
    alarms: dict[str, int]
    evidence: dict[str, float]
    maximum: dict[str, float]
    threshold: float
    samples: int
    available: dict[str, int]


class DriftMonitor:
    r"""Raise an alarm when a stream of p-values changes, and hardly ever a false one.

    Feed it with the p-values of each batch that a service sees. While the samples of a name are
    exchangeable (drawn alike, whatever their law) the probability that it EVER alarms, however
    long the stream, is at most ``delta``. Frames of a video, retries of a request and posts of a
    session are not exchangeable: thin them first, or pass ``keys`` to :meth:`update`, so that each
    group counts once. The references must then be one sample a group, too.

    A p-value of one reference set is not exactly uniform: with 451 references it is off by a
    percent for ever, and all samples share that error. So each p-value is only a score, ranked
    among all that came before it. With :math:`c_j` earlier samples in cell j of a fine grid, a
    sample in cell k gets

    .. math:: q = \frac{\sum_{j<k} c_j + U (c_k + 1)}{\sum_j c_j + 1}, \qquad U \sim [0, 1],

    the smoothed conformal p-value of the binned score. If the p-values come from ``references``
    held-out samples, these count as having been seen: n of them leave n + 1 gaps, and by
    exchangeability a new sample falls into gap k with probability
    :math:`(1 + c_k) / (n + 1 + \sum_j c_j)` given the gaps of those before it (Pólya's urn), so

    .. math:: q = \frac{\sum_{j<k} (1 + c_j) + U (1 + c_k)}{n + 1 + \sum_j c_j}.

    In both cases the q of a name are independent and uniform, exactly, at any n. (The second needs
    scores that are hardly ever equal, the first needs nothing: only the order of samples is
    random.)

    *The bet.* Capital of 1 is staked on q being not uniform, with densities
    :math:`f(q) = 1 - w + w \kappa q^{\kappa-1}` and their mirror images. Nothing is staked at
    first; after n samples :math:`1/(1 + \ln(1 + n/1000))` is still in reserve, and what has left
    the reserve, a little at every sample, was divided among the bets. Each is fair
    (:math:`\int f = 1`), so the capital is a martingale that is never negative, and by Ville's
    inequality it ever reaches :math:`M/\delta` with a probability of at most :math:`\delta/M`; M
    names together, however they depend on each other, alarm falsely with at most
    :math:`\delta`. Thanks to the reserve it still finds a change after a long unchanged stream.

    After an alarm find the cause, fix it, then :meth:`reset`: a new test begins, with a new
    ``delta``. If the new data are right and the model is to follow them, calibrate (or train) it
    first.

    Args:
        names: Streams to monitor: modalities, or the head's confidence; each with p-values of its
            own (or any score between 0 and 1 of an unchanging model in evaluation mode).
        delta: Probability of ever raising a false alarm.
        references: Number of held-out samples that the p-values were computed from, for all names
            or by name: then a stream that differs from them at its first sample is detected, too.
            With 0 the stream is compared with its own past only, whatever the scores are. The
            p-values may be rounded or in half precision as long as that leaves them distinct.
        seed: Seed of the numbers U.

    Shape:
        - ``p_values``: {name: (B,)}; NaN where a sample has none; ``keys``: B of them

    Raises:
        ValueError: If an argument, a name or a shape does not fit, a value is outside [0, 1], or
            with ``references`` no multiple of 1 / (references + 1).
        TypeError: If p-values are no floating tensors.

    Example:
        >>> import torch
        >>> from robustfusion.monitor import DriftMonitor
        >>> generator = torch.Generator().manual_seed(0)
        >>> monitor = DriftMonitor(["image", "text"], delta=0.01)
        >>> intact = {name: torch.rand(500, generator=generator) for name in monitor.names}
        >>> monitor.update(intact).alarm
        False
        >>> damaged = {"image": intact["image"] ** 4, "text": intact["text"]}
        >>> list(monitor.update(damaged).alarms)
        ['image']

    Reference:
        Vovk, Gammerman and Shafer, Algorithmic learning in a random world, 2nd ed., 2022, ch. 8.
        Vovk et al., Retrain or not retrain: conformal test martingales for change-point
        detection, COPA 2021, https://arxiv.org/abs/2102.10439.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        delta: float = 0.01,
        references: int | Mapping[str, int] = 0,
        seed: int = 0,
    ) -> None:
        if isinstance(names, str) or not names or len(set(names)) < len(names):
            raise ValueError(f"names must be one or more different names, got {names!r}")
        if not 0 < delta < 1:
            raise ValueError(f"delta must be between 0 and 1, got {delta}")
        self.names = tuple(names)
        self.delta = delta
        if not isinstance(references, Mapping):
            references = dict.fromkeys(self.names, references)
        if set(references) != set(self.names):
            raise ValueError(
                f"references must have the names {list(self.names)}, got {list(references)}"
            )
        if any(type(n) is not int or n < 0 for n in references.values()):
            raise ValueError(f"references must be whole numbers of at least 0, got {references}")
        self.references = dict(references)
        self.seed = seed
        self.threshold = math.log10(len(self.names) / delta)
        self.reset()

    @classmethod
    def for_model(cls, model: nn.Module, *, delta: float = 0.01, seed: int = 0) -> Self:
        """Create the monitor of a calibrated head, or of a classifier with such a head.

        Raises:
            ValueError: If it was not calibrated.
            TypeError: If it has no quality estimators.

        Example:
            >>> import torch
            >>> from robustfusion import DRFHead, calibrate
            >>> from robustfusion.monitor import DriftMonitor
            >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
            >>> features = {"image": torch.randn(60, 8), "text": torch.randn(60, 4)}
            >>> _ = head(features)  # training stores features
            >>> batch = {"inputs": features, "available": {}, "label": torch.randint(3, (60,))}
            >>> report = calibrate(head.eval(), [batch])
            >>> DriftMonitor.for_model(head).references
            {'image': 60, 'text': 60}
        """
        estimators: Any = getattr(getattr(model, "head", model), "estimators", None)
        if not isinstance(estimators, Mapping | nn.ModuleDict):
            raise TypeError(f"model must have quality estimators, got {type(model).__name__}")
        counts: dict[str, Any] = {name: part.reference_count for name, part in estimators.items()}
        references = {name: int(count) for name, count in counts.items()}
        if empty := [name for name, count in references.items() if not count]:
            raise ValueError(f"{empty} have no references: call robustfusion.calibrate first")
        return cls(list(references), delta=delta, references=references, seed=seed)

    def reset(self) -> None:
        """Forget the stream and begin a new test."""
        m = len(self.names)
        none = torch.zeros(_CELLS, dtype=torch.long)
        gaps = {name: torch.arange(1, n + 2) / (n + 1) for name, n in self.references.items() if n}
        seen = {name: self._cell(p, name).bincount(minlength=_CELLS) for name, p in gaps.items()}
        float64: dict[str, Any] = {"dtype": torch.float64}
        self._now = {
            "cells": torch.stack([seen.get(name, none) for name in self.names]),
            "stakes": torch.full((m, len(_BETS)), -torch.inf, **float64),
            "evidence": torch.zeros(m, **float64),
            "maximum": torch.zeros(m, **float64),
            "available": torch.zeros(m, dtype=torch.long),
            "alarms": torch.zeros(m, dtype=torch.long),
            "samples": torch.zeros((), dtype=torch.long),
            "groups": torch.full((m, _GROUPS), -1, dtype=torch.long),
        }

    def _cell(self, p: Tensor, name: str) -> Tensor:
        """Return the cell of the grid that each p-value falls into, (B,) long; -1 for NaN."""
        if references := self.references[name]:
            rank = _ranks(p, references, f'p_values["{name}"]')
            p = (rank - 0.5).clamp_min(0.5) / (references + 1)
        return (p * _CELLS).nan_to_num(-1).long().clamp_max(_CELLS - 1)

    @property
    def state(self) -> MonitorState:
        """The findings after the last update."""
        alarms, evidence, maximum, available = (
            dict(zip(self.names, self._now[key].tolist(), strict=True))
            for key in ("alarms", "evidence", "maximum", "available")
        )
        alarms = {name: sample for name, sample in alarms.items() if sample}
        samples = int(self._now["samples"])
        return MonitorState(
            bool(alarms), alarms, evidence, maximum, self.threshold, samples, available
        )

    def update(
        self,
        p_values: Mapping[str, Tensor],
        keys: Tensor | Sequence[int | str | None] | None = None,
    ) -> MonitorState:
        """Take the p-values of a batch, in the order of its samples; return the new findings.

        Args:
            p_values: By name, (B,), NaN where a sample has none.
            keys: The group of each sample, such as its video, request or session; ``None`` for a
                sample without a group. Of each group only the first sample with a p-value counts,
                as long as at most 4,096 other groups came in between.
        """
        if set(p_values) != set(self.names):
            raise ValueError(
                f"p_values must have the names {list(self.names)}, got {list(p_values)}; for a "
                "name that no sample of this batch has, pass torch.full((B,), torch.nan)"
            )
        columns: list[Tensor] = []
        for name in self.names:
            p, argument = p_values[name], f'p_values["{name}"]'
            if not isinstance(p, Tensor) or not p.is_floating_point():
                kind = p.dtype if isinstance(p, Tensor) else type(p).__name__
                raise TypeError(f"{argument} must be a floating tensor, got {kind}")
            size = len(columns[0]) if columns else p.numel()
            if p.shape != (size,):
                raise ValueError(
                    f"{argument} must have shape (B,) with B = {size}, got {tuple(p.shape)}"
                )
            if bool(((p < 0) | (p > 1)).any()):
                raise ValueError(f"{argument} must be between 0 and 1, or NaN")
            columns.append(self._cell(p.detach().cpu().double(), name))
        cells = torch.stack(columns, dim=1)
        if keys is not None:
            hashes = _hashes(keys, len(cells))
            for m in range(len(self.names)):
                cells[~self._first_of_group(m, hashes, cells[:, m] >= 0), m] = -1
        for start in range(0, len(cells), _CHUNK):
            self._advance(cells[start : start + _CHUNK])
        return self.state

    def _first_of_group(self, m: int, keys: list[int | None], available: Tensor) -> Tensor:
        """Return which samples are the first of their group with a p-value, (B,) bool."""
        groups = dict.fromkeys(key for key in self._now["groups"][m].tolist() if key >= 0)
        first = []
        for key, counts in zip(keys, available.tolist(), strict=True):
            first.append(counts and key not in groups)
            if first[-1] and key is not None:
                groups[key] = None
                if len(groups) > _GROUPS:
                    del groups[next(iter(groups))]
        self._now["groups"][m, : len(groups)] = torch.tensor(list(groups), dtype=torch.long)
        return torch.tensor(first, dtype=torch.bool)

    def _advance(self, cells: Tensor) -> None:
        """Bet on some samples, (B, M)."""
        now = self._now
        evidence = torch.stack([self._bet(m, cell) for m, cell in enumerate(cells.T)], dim=1)
        samples = now["samples"] + 1 + torch.arange(len(cells))
        crossed = evidence >= self.threshold
        first = samples[crossed.int().argmax(0)].where(crossed.any(0), 0)
        now["alarms"] = now["alarms"].where(now["alarms"] > 0, first)
        now["maximum"] = torch.maximum(now["maximum"], evidence.amax(0))
        now["evidence"], now["samples"] = evidence[-1], samples[-1]

    def _bet(self, m: int, cell: Tensor) -> Tensor:
        """Rank the samples of one name and bet on them; return its evidence after each, (B,)."""
        available, now = cell >= 0, self._now
        cell, n = cell[available], int(now["available"][m])
        stakes, evidence = wager(self._rank(m, cell, n), n, now["stakes"][m])
        if len(cell):
            now["stakes"][m] = stakes[-1]
            now["cells"][m] += cell.bincount(minlength=_CELLS)
            now["available"][m] += len(cell)
        return torch.cat([now["evidence"][m][None], evidence])[available.cumsum(0)]

    def _rank(self, m: int, cell: Tensor, n: int) -> Tensor:
        """Return smoothed conformal p-values of samples n, n + 1, ... of a name, (B,) > 0."""
        cells = self._now["cells"][m]
        order = cell[:, None] - cell[None, :]
        below = cells.cumsum(0)[cell] - cells[cell] + (order > 0).tril(-1).sum(1)
        equal = cells[cell] + (order == 0).tril(-1).sum(1)
        # The draw of a sample depends only on the seed, the index of the name, and n.
        bits = np.random.Philox(key=[self.seed, m]).advance(n // 4)
        u = 1 - torch.from_numpy(np.random.Generator(bits).random(n % 4 + len(cell))[n % 4 :])
        # The n + 1 gaps between n references already count one each.
        more = 0 if self.references[self.names[m]] else 1
        return (below + u * (equal + more)) / (cells.sum() + torch.arange(len(cell)) + more)

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next update depends on, as tensors to be saved."""
        return {
            **{name: value.clone() for name, value in self._now.items()},
            "identity": encode(self._options()),
        }

    def _options(self) -> dict[str, Any]:
        return {
            "names": self.names,
            "delta": self.delta,
            "references": [self.references[name] for name in self.names],
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of a monitor with the same arguments.

        Raises:
            ValueError: If the state is that of other names, another order of them, another
                ``delta``, ``references`` or ``seed``, or of robustfusion 0.2 or older.
        """
        if "identity" not in state:
            raise ValueError(
                "state does not say for which names it was saved, as those of robustfusion 0.2 do "
                "not: begin a new test with a new monitor"
            )
        check_identity("DriftMonitor", self._options(), state["identity"])
        expected, got = (
            {name: tuple(part[name].shape) for name in sorted(part) if name != "identity"}
            for part in (self._now, state)
        )
        if expected != got:
            raise ValueError(f"state must hold tensors of the shapes {expected}, got {got}")
        for name, value in self._now.items():
            self._now[name] = state[name].to("cpu", value.dtype, copy=True)

    def __repr__(self) -> str:
        """Return the call that creates this monitor."""
        return (
            f"DriftMonitor({list(self.names)}, delta={self.delta}, references={self.references}, "
            f"seed={self.seed})"
        )


def _ranks(p: Tensor, references: int, argument: str) -> Tensor:
    """Return which multiple of 1 / (references + 1) each p-value is, also after rounding.

    Raises:
        ValueError: If one is no multiple, or lost the digits that say which.
    """
    steps = references + 1
    rank = p * steps
    nearest = rank.round()
    error = (rank - nearest).abs()
    fits = p.isnan() | (error <= _ROUNDING)
    decimals = len(str(steps))  # so many leave neighboring multiples distinct
    for digits in (decimals, decimals + 1):
        scaled = p * 10**digits
        is_rounded = (scaled - scaled.round()).abs() <= 1e-6 * scaled + 1e-9
        fits |= is_rounded & (error <= 0.5 * steps / 10**digits * (1 + 1e-6))
    rest = p[~fits]
    for dtype in (torch.bfloat16, torch.float16):  # the coarsest that all of them fit into
        if bool((rest.to(dtype) == rest).all()):
            before, same, after = (
                ((nearest + shift) / steps).float().to(dtype).double() for shift in (-1, 0, 1)
            )
            fits |= (same == p) & (before != p) & (after != p)
            break
    if not fits.all():
        raise ValueError(
            f"{argument} must be multiples of 1/{steps}, for references={references}; got "
            f"{float(p[~fits][0]):.6g}. If they are, store them with {decimals} decimals or more, "
            "and not in half precision"
        )
    return nearest


def _hashes(keys: Tensor | Sequence[int | str | None], samples: int) -> list[int | None]:
    """Return each key as a non-negative 63-bit integer, the same in every process."""
    values = keys.tolist() if isinstance(keys, Tensor) else list(keys)
    if len(values) != samples:
        raise ValueError(f"keys must have one for each of {samples} samples, got {len(values)}")
    for value in values:
        if not (value is None or isinstance(value, int | str)):
            raise TypeError(f"keys must be int, str or None, got {type(value).__name__}")
    return [
        value
        if value is None
        else int.from_bytes(blake2b(repr(value).encode(), digest_size=8).digest(), "big") >> 1
        for value in values
    ]


def wager(
    q: Tensor, count: int, stakes: Tensor, bets: Sequence[tuple[float, float, int]] = _BETS
) -> tuple[Tensor, Tensor]:
    """Bet on uniform numbers, (B,); return the log-stakes (B, E) and log10 of the capital (B,).

    ``count`` is how many were bet on before, and ``stakes`` (E,) are the log-stakes after these.
    """
    seen = torch.arange(count, count + len(q) + 1, dtype=torch.float64)
    reserve = 1 / (1 + (1 + seen / _HALF_LIFE).log())
    staked = ((reserve[:-1] - reserve[1:]) / len(bets)).log()
    gain = torch.stack([_log_density(q, *bet) for bet in bets], dim=1)
    total = gain.cumsum(0)
    # stake_n = f(q_n) (stake_(n-1) + staked_n), for all samples at once.
    joined = torch.cat([stakes[None], staked[:, None] - (total - gain)])
    stakes = joined.logcumsumexp(0)[1:] + total
    capital = torch.logaddexp(stakes.logsumexp(1), reserve[1:].log())
    return stakes, capital / math.log(10)


def _log_density(q: Tensor, share: float, power: float, end: int) -> Tensor:
    """Return the log-density of a bet at ``q``, (B,)."""
    q = (1 - q if end else q).clamp_min(1e-12)  # 1 - q may round to 0, whose log is not finite
    return (1 - share + share * power * q ** (power - 1)).log()
