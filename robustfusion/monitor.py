r"""Has the data changed? An alarm over a stream whose chance of ever being false is bounded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustfusion._figures import panels

_CELLS = 4096  # of the grid of past p-values: two a gap of 2,048 references, the most we keep
_CHUNK = 256  # rows ranked at once, by a table of 256 x 256
_POINTS = 512  # of the curve that is kept: no figure shows more
_HALF_LIFE = 1000.0  # rows after which the reserve begins to be spent slowly
_ROUNDING = 0.05  # of a rank: float32 holds those of a million references as well
# What is bet on: a share of the rows has p-values that crowd at 0 (or at 1) like p^(power - 1).
# From all rows to a tenth, from hardly bent to steep: each change has a bet that is not far off.
_BETS = tuple(
    (share, power, end) for end in (0, 1) for share in (1.0, 0.3, 0.1) for power in (0.1, 0.3, 0.6)
)


class MonitorState(NamedTuple):
    """What a :class:`DriftMonitor` knows.

    Args:
        alarm: True from the first alarm on.
        alarms: The names that raised it, with the row at which they did.
        evidence: Log10 of the capital of each name; an alarm is raised at ``threshold``.
        maximum: The same at its highest.
        threshold: What evidence is compared with.
        rows: Number of rows seen.
        available: Number of these in which each name had a p-value.
    """

    alarm: bool
    alarms: dict[str, int]
    evidence: dict[str, float]
    maximum: dict[str, float]
    threshold: float
    rows: int
    available: dict[str, int]


class DriftMonitor:
    r"""Raise an alarm when a stream of p-values changes, rarely a false one.

    Feed it with the p-values of each batch that a service sees. While the rows of a name are
    exchangeable (drawn alike, whatever their law) the probability that it EVER alarms, however
    long the stream, is at most ``delta``.

    A p-value of one reference set is no uniform number: 451 reference rows are off by a percent
    for ever, and the rows share that error. So each p-value is only a score, ranked among all that
    came before it. With :math:`c_j` earlier rows in cell j of a fine grid, a row in cell k gets

    .. math:: q = \frac{\sum_{j<k} c_j + U (c_k + 1)}{\sum_j c_j + 1}, \qquad U \sim [0, 1],

    the smoothed conformal p-value of the binned score. If the p-values come from ``references``
    held-out rows, these count as having been seen: n rows leave n + 1 gaps, and by exchangeability
    a new row falls into gap k with probability :math:`(1 + c_k) / (n + 1 + \sum_j c_j)` given the
    gaps of those before it (Pólya's urn), so that

    .. math:: q = \frac{\sum_{j<k} (1 + c_j) + U (1 + c_k)}{n + 1 + \sum_j c_j}.

    In both cases the q of a name are independent and uniform, exactly, at any n. (The second needs
    scores that are hardly ever equal, the first needs nothing: only the order of rows is random.)

    *The bet.* Capital of 1 is staked on q being not uniform, with densities
    :math:`f(q) = 1 - w + w \kappa q^{\kappa-1}` and their mirror images. Nothing is staked at
    first; after n rows :math:`1/(1 + \ln(1 + n/1000))` is still in reserve and what has left it,
    at every row a little, was spread over the bets. Each is fair (:math:`\int f = 1`), so the
    capital is a martingale that is never negative, and by Ville's inequality it ever reaches
    :math:`M/\delta` with a probability of at most :math:`\delta/M`; M names together, however they
    depend on each other, alarm falsely with at most :math:`\delta`. The reserve is what keeps a
    long good stream from making it blind.

    After an alarm: look at :meth:`plot`, mend the cause, then :meth:`reset`: a new test begins,
    with a new ``delta``. If the new data are right and the model is to follow them, calibrate (or
    train) it first.

    Args:
        names: What is monitored: modalities, a pairing, the head's confidence; each with p-values
            of its own (or any score between 0 and 1 of an unchanging model in evaluation mode).
        delta: Probability of ever raising a false alarm.
        references: Number of held-out rows that the p-values were computed from, for all names or
            by name: then also a stream that differs from them at its first row is found. With 0
            the stream is compared with its own past only, whatever the scores are.
        seed: Of the numbers U.

    Shape:
        - ``p_values``: {name: (B,)}; NaN where a row has none

    Raises:
        ValueError: If an argument, a name or a shape does not fit, a value is outside [0, 1], or
            with ``references`` no multiple of 1 / (references + 1).
        TypeError: If p-values are no floating tensors.

    Example:
        >>> import torch
        >>> from robustfusion.monitor import DriftMonitor
        >>> generator = torch.Generator().manual_seed(0)
        >>> monitor = DriftMonitor(["image", "text"], delta=0.01)
        >>> good = {name: torch.rand(500, generator=generator) for name in monitor.names}
        >>> monitor.update(good).alarm
        False
        >>> bad = {"image": good["image"] ** 4, "text": good["text"]}  # images look odd
        >>> list(monitor.update(bad).alarms)
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

    def reset(self) -> None:
        """Forget the stream: a new test begins."""
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
            "rows": torch.zeros((), dtype=torch.long),
            "curve": torch.full((_POINTS, m), torch.nan, **float64),
            "every": torch.ones((), dtype=torch.long),
        }

    def _cell(self, p: Tensor, name: str) -> Tensor:
        """The cell of the grid that each p-value falls into, (B,) long; -1 for NaN."""
        if references := self.references[name]:
            rank = p * (references + 1)
            odd = p[(rank - rank.round()).abs() > _ROUNDING]
            if len(odd):
                raise ValueError(
                    f'p_values["{name}"] must be multiples of 1/{references + 1}, for '
                    f"references={references}; got {float(odd[0]):.6g}"
                )
            p = (rank.round() - 0.5).clamp_min(0.5) / (references + 1)
        return (p * _CELLS).nan_to_num(-1).long().clamp_max(_CELLS - 1)

    @property
    def state(self) -> MonitorState:
        """The state after the last update."""
        alarms, evidence, maximum, available = (
            dict(zip(self.names, self._now[key].tolist(), strict=True))
            for key in ("alarms", "evidence", "maximum", "available")
        )
        alarms = {name: row for name, row in alarms.items() if row}
        rows = int(self._now["rows"])
        return MonitorState(
            bool(alarms), alarms, evidence, maximum, self.threshold, rows, available
        )

    def update(self, p_values: Mapping[str, Tensor]) -> MonitorState:
        """Take the p-values of a batch, in the order of its rows, and return the new state."""
        if set(p_values) != set(self.names):
            raise ValueError(
                f"p_values must have the names {list(self.names)}, got {list(p_values)}; a name "
                f"that this batch has nothing of is torch.full((B,), torch.nan)"
            )
        columns: list[Tensor] = []
        for name in self.names:
            p, where = p_values[name], f'p_values["{name}"]'
            if not isinstance(p, Tensor) or not p.is_floating_point():
                kind = p.dtype if isinstance(p, Tensor) else type(p).__name__
                raise TypeError(f"{where} must be a floating tensor, got {kind}")
            rows = len(columns[0]) if columns else p.numel()
            if p.shape != (rows,):
                raise ValueError(
                    f"{where} must have shape (B,) with B = {rows}, got {tuple(p.shape)}"
                )
            if bool(((p < 0) | (p > 1)).any()):
                raise ValueError(f"{where} must be between 0 and 1, or NaN")
            columns.append(self._cell(p.detach().double().cpu(), name))
        cells = torch.stack(columns, dim=1)
        for start in range(0, len(cells), _CHUNK):
            self._advance(cells[start : start + _CHUNK])
        return self.state

    def _advance(self, cells: Tensor) -> None:
        """Bet on some rows, (B, M)."""
        now = self._now
        curve = torch.stack([self._bet(m, cell) for m, cell in enumerate(cells.T)], dim=1)
        rows = now["rows"] + 1 + torch.arange(len(cells))
        crossed = curve >= self.threshold
        first = rows[crossed.int().argmax(0)].where(crossed.any(0), 0)
        now["alarms"] = now["alarms"].where(now["alarms"] > 0, first)
        now["maximum"] = torch.maximum(now["maximum"], curve.amax(0))
        now["evidence"], now["rows"] = curve[-1], rows[-1]
        old = now["curve"][: int(rows[0] - 1) // int(now["every"])]
        kept = torch.cat([old, curve[rows % now["every"] == 0]])
        while len(kept) > _POINTS:
            kept, now["every"] = kept[1::2], 2 * now["every"]
        now["curve"] = torch.full_like(now["curve"], torch.nan)
        now["curve"][: len(kept)] = kept

    def _bet(self, m: int, cell: Tensor) -> Tensor:
        """Rank the rows of one name and bet on them; its evidence after each row, (B,)."""
        here, now = cell >= 0, self._now
        cell, n = cell[here], int(now["available"][m])
        stakes, evidence = wager(self._rank(m, cell, n), n, now["stakes"][m])
        if len(cell):
            now["stakes"][m] = stakes[-1]
            now["cells"][m] += cell.bincount(minlength=_CELLS)
            now["available"][m] += len(cell)
        return torch.cat([now["evidence"][m][None], evidence])[here.cumsum(0)]

    def _rank(self, m: int, cell: Tensor, n: int) -> Tensor:
        """Smoothed conformal p-values of rows n, n + 1, ... of one name, (B,) in (0, 1]."""
        cells = self._now["cells"][m]
        order = cell[:, None] - cell[None, :]
        below = cells.cumsum(0)[cell] - cells[cell] + (order > 0).tril(-1).sum(1)
        equal = cells[cell] + (order == 0).tril(-1).sum(1)
        # A row's draw depends on the seed, the name's place and the row alone.
        bits = np.random.Philox(key=[self.seed, m]).advance(n // 4)
        u = 1 - torch.from_numpy(np.random.Generator(bits).random(n % 4 + len(cell))[n % 4 :])
        # A reference of n rows leaves n + 1 gaps, and one of these holds the row.
        more = 0 if self.references[self.names[m]] else 1
        return (below + u * (equal + more)) / (cells.sum() + torch.arange(len(cell)) + more)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, as tensors to be saved."""
        return {name: value.clone() for name, value in self._now.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the monitor of this state stopped, which must have been made alike."""
        shapes, given = (
            {name: tuple(value.shape) for name, value in own.items()} for own in (self._now, state)
        )
        if shapes != given:
            raise ValueError(
                f"state must be that of a monitor of {len(self.names)} names: expected {shapes}, "
                f"got {given}"
            )
        for name, value in state.items():
            self._now[name] = value.to("cpu", self._now[name].dtype, copy=True)

    def plot(self, path: str | Path) -> Path:
        """Draw the evidence over the rows; the path's ending says the format."""
        figure, (panel,) = panels(1, 6.0, 3.4)
        rows = torch.arange(1, _POINTS + 1) * self._now["every"]
        for name, curve, alarm in zip(
            self.names, self._now["curve"].T, self._now["alarms"].tolist(), strict=True
        ):
            (line,) = panel.plot(rows, curve, label=name)
            if alarm:
                panel.axvline(alarm, color=line.get_color(), linewidth=0.8)
        panel.axhline(self.threshold, color="0.4", linestyle=":", label="alarm")
        panel.set(xlabel="rows", ylabel="evidence (log10)")
        panel.legend(frameon=False)
        figure.savefig(path)
        return Path(path)

    def __repr__(self) -> str:
        """Return the call that makes this monitor."""
        return (
            f"DriftMonitor({list(self.names)}, delta={self.delta}, references={self.references}, "
            f"seed={self.seed})"
        )


def wager(
    q: Tensor, rows: int, stakes: Tensor, bets: Sequence[tuple[float, float, int]] = _BETS
) -> tuple[Tensor, Tensor]:
    """Bet on uniform numbers, (B,); return the log-stakes (B, E) and log10 of the capital (B,).

    ``rows`` is how many were bet on before, ``stakes`` (E,) what that left.
    """
    seen = torch.arange(rows, rows + len(q) + 1, dtype=torch.float64)
    reserve = 1 / (1 + (1 + seen / _HALF_LIFE).log())
    staked = ((reserve[:-1] - reserve[1:]) / len(bets)).log()
    gain = torch.stack([_log_density(q, *bet) for bet in bets], dim=1)
    total = gain.cumsum(0)
    # stake_n = f(q_n) (stake_(n-1) + staked_n), for all rows at once.
    joined = torch.cat([stakes[None], staked[:, None] - (total - gain)])
    stakes = joined.logcumsumexp(0)[1:] + total
    capital = torch.logaddexp(stakes.logsumexp(1), reserve[1:].log())
    return stakes, capital / math.log(10)


def _log_density(q: Tensor, share: float, power: float, end: int) -> Tensor:
    """Log-density of a bet at ``q``, (B,)."""
    q = (1 - q if end else q).clamp_min(1e-12)  # 1 - q may round to 0, whose log is no gain
    return (1 - share + share * power * q ** (power - 1)).log()
