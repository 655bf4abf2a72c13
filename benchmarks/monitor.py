"""False alarms of the drift monitor, and how soon it finds a change.

    python benchmarks/monitor.py --mvsa MVSA    # a folder with features.npz

`uniform`: streams of independent scores against one set of reference rows, fresh for each stream,
for the monitor and for two simpler ways: betting on the p-values as they are, and on p-values with
a margin for the error of the references (Dvoretzky, Kiefer and Wolfowitz).

`posts`: a neighbor estimator for each modality and a pairing score learn from 2,048 of the
training posts. Streams and their reference rows are drawn anew for each seed from the 901 held-out
posts: with replacement, and with normal noise of a tenth of each coordinate's deviation, so that
all are independent draws from one distribution. Good streams have 10,000 posts; others change
after 2,000.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write_record
from torch import Tensor

from robustfusion import NeighborQualityEstimator
from robustfusion.monitor import _BETS, DriftMonitor, wager

sys.path.append(str(Path(__file__).parents[1] / "examples" / "gallery"))
from pairing import PairingScore

NAMES = ("image", "text", "pairing")
DELTA = 0.01
ROWS, GOOD, BAD = 10_000, 2_000, 5_000
QUEUE, REFERENCES = 2_048, 451
SHARES = (0.1, 0.3, 1.0)
CHANGES = ("image masked", "text masked", "texts exchanged")
Stream = dict[str, Tensor]


def draw_uniform(streams: int, references: int) -> dict[str, Any]:
    """The share of streams of good rows in which each way alarms."""
    deltas = (0.1, 0.01)
    maxima: dict[str, list[float]] = {}
    margin: dict[float, list[bool]] = {}
    for seed in range(streams):
        generator = torch.Generator().manual_seed(seed)
        reference = torch.rand(references, generator=generator).sort().values
        scores = torch.rand(ROWS, generator=generator)
        p = (1 + torch.searchsorted(reference, scores)).double() / (1 + references)
        for way, known in (("compared with the references", references), ("own past", 0)):
            monitor = DriftMonitor(["x"], references=known, seed=seed)
            maxima.setdefault(way, []).append(monitor.update({"x": p}).maximum["x"])
        evidence = wager(p, 0, torch.full((len(_BETS),), -torch.inf, dtype=torch.float64))[1]
        maxima.setdefault("p-values as they are", []).append(float(evidence.max()))
        for d in deltas:  # the margin depends on delta
            alarmed = with_margin({"x": p}, references, d) is not None
            margin.setdefault(d, []).append(alarmed)
    alarms = {
        way: {f"{d:g}": float(np.mean(np.asarray(values) >= -math.log10(d))) for d in deltas}
        for way, values in maxima.items()
    }
    return alarms | {"with a margin": {f"{d:g}": float(np.mean(margin[d])) for d in deltas}}


def with_margin(stream: Stream, references: int, delta: float) -> int | None:
    """The row at which a bet on small p-values alarms that are raised by the reference's error.

    Half of delta is for the band of Dvoretzky, Kiefer and Wolfowitz, half for the bet.
    """
    share = delta / (2 * len(stream))
    band = math.sqrt(math.log(1 / share) / (2 * references))
    bets = [bet for bet in _BETS if bet[2] == 0]
    unstaked = torch.full((len(bets),), -torch.inf, dtype=torch.float64)
    first = []
    for p in stream.values():
        evidence = wager((p.double() + band).clamp_max(1), 0, unstaked, bets)[1]
        over = torch.nonzero(evidence >= -math.log10(share))
        first += [int(over[0]) + 1] if len(over) else []
    return min(first, default=None)


class Posts:
    """Held-out posts to draw from, and what was learned from training posts."""

    def __init__(self, pack: Path, seed: int = 0) -> None:
        with np.load(pack / "features.npz") as file:
            split = file["split"]
            self.clean = {m: _float(file[f"{m}_clean"]) for m in NAMES[:2]}
            self.masked = {m: _float(file[f"{m}_corrupt"][0]) for m in NAMES[:2]}
        rng = np.random.default_rng(seed)
        queue = torch.from_numpy(rng.permutation(np.flatnonzero(split == "train"))[:QUEUE])
        self.pool = torch.from_numpy(np.flatnonzero(split != "train"))
        self.deviation = {m: x[queue].std(0) for m, x in self.clean.items()}
        self.quality = {
            m: NeighborQualityEstimator(x.shape[1], capacity=QUEUE).fit(x[queue])
            for m, x in self.clean.items()
        }
        self.pairing = PairingScore(*(x.shape[1] for x in self.clean.values()))
        self.pairing.fit(*(x[queue] for x in self.clean.values()))

    def draw(self, count: int, generator: torch.Generator, change: str = "") -> Stream:
        """Features of some posts."""
        rows = self.pool[torch.randint(len(self.pool), (count,), generator=generator)]
        features = {}
        for name, clean in self.clean.items():
            x = (self.masked[name] if change == f"{name} masked" else clean)[rows]
            noise = torch.randn(x.shape, generator=generator)
            features[name] = x + 0.1 * self.deviation[name] * noise
        if change == "texts exchanged":
            features["text"] = features["text"].roll(1, 0)
        return features

    def calibrate(self, generator: torch.Generator) -> None:
        """New reference rows."""
        held_out = self.draw(REFERENCES, generator)
        for name, estimator in self.quality.items():
            estimator.calibrate(held_out[name])
        self.pairing.calibrate(*held_out.values())

    def p_values(self, features: Stream) -> Stream:
        """P-values of each modality and of the pairing."""
        p_values = {
            name: torch.cat([self.quality[name].p_value(part) for part in x.split(1000)])
            for name, x in features.items()
        }
        return p_values | {"pairing": self.pairing.p_value(*features.values())}


def _float(x: Any) -> Tensor:
    return torch.from_numpy(x.astype(np.float32))


def watch(stream: Stream, references: int, seed: int) -> tuple[DriftMonitor, dict[str, int]]:
    """Run one stream past a monitor; the rows at which its names alarmed."""
    monitor = DriftMonitor(NAMES, delta=DELTA, references=references, seed=seed)
    return monitor, monitor.update(stream).alarms


def mix(good: Stream, bad: Stream, share: float, generator: torch.Generator) -> Stream:
    """Good rows, then a share of bad ones among them."""
    is_bad = torch.rand(BAD, generator=generator) < share
    return {
        name: torch.cat([p[:GOOD], bad[name].where(is_bad, p[GOOD : GOOD + BAD])])
        for name, p in good.items()
    }


@torch.no_grad()
def draw_posts(pack: Path, seeds: int) -> dict[str, Any]:
    """False alarms of good streams, and delays after each change."""
    posts = Posts(pack)
    ways = {"references": REFERENCES, "own past": 0}
    false: dict[str, int] = dict.fromkeys(ways, 0)
    maxima: dict[str, list[float]] = {way: [] for way in ways}
    delays: dict[str, list[int | None]] = {}
    by: dict[str, dict[str, int]] = {}
    early: dict[str, int] = {}
    at_5: dict[str, list[float]] = {}
    example: dict[str, Any] = {}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(1000 + seed)
        posts.calibrate(generator)
        good = posts.p_values(posts.draw(ROWS, generator))
        for name, p in good.items():
            at_5.setdefault(f"good posts, {name}", []).append(_share(p))
        for way, references in ways.items():
            monitor, alarms = watch(good, references, seed)
            false[way] += bool(alarms)
            maxima[way].append(max(monitor.state.maximum.values()))
        for change in CHANGES:
            bad = posts.p_values(posts.draw(BAD, generator, change))
            for name, p in bad.items():
                at_5.setdefault(f"{change}, {name}", []).append(_share(p))
            for share in SHARES:
                stream = mix(good, bad, share, generator)
                row = with_margin(stream, REFERENCES, DELTA)
                key = f"with a margin/{change}/{share:g}"
                delays.setdefault(key, []).append(None if row is None else row - GOOD)
                early[key] = early.get(key, 0) + (row is not None and row <= GOOD)
                by[key] = {}
                for way, references in ways.items():
                    monitor, alarms = watch(stream, references, seed)
                    key = f"{way}/{change}/{share:g}"
                    first = min(alarms.values(), default=None)
                    early[key] = early.get(key, 0) + (first is not None and first <= GOOD)
                    delays.setdefault(key, []).append(None if first is None else first - GOOD)
                    counts = by.setdefault(key, {})
                    for name, row in alarms.items():
                        counts[name] = counts.get(name, 0) + (row == first)
                    if seed == 0 and change == CHANGES[0] and way == "references":
                        example[f"{share:g}"] = _curve(monitor)
        print(f"seed {seed}: {false}", flush=True)
    return {
        "streams": seeds,
        "false_alarms": false,
        "highest_evidence": {way: max(values) for way, values in maxima.items()},
        "alarm_at_5_percent": {key: float(np.mean(v)) for key, v in at_5.items()},
        "delays": {
            key: {
                "median": _quantile(values, 0.5),
                "latest": _quantile(values, 1.0),
                "found": sum(v is not None for v in values),
                "before_the_change": early[key],
                "first": by[key],
            }
            for key, values in delays.items()
        },
        "example": example,
    }


def _share(p: Tensor) -> float:
    return float((p <= 0.05).float().mean())


def _quantile(values: list[int | None], share: float) -> int | None:
    """The upper quantile; None if the change in that stream was not found."""
    ordered = sorted(math.inf if v is None else v for v in values)
    value = ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]
    return None if value == math.inf else int(value)


def _curve(monitor: DriftMonitor) -> dict[str, Any]:
    state = monitor.state_dict()
    rows = int(state["rows"]) // int(state["every"])
    curve = state["curve"][:rows:4, 0]  # column 0: image
    return {"every": 4 * int(state["every"]), "image": [round(float(v), 2) for v in curve]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="folder with features.npz")
    parser.add_argument("--streams", type=int, default=1000, help="of uniform scores")
    parser.add_argument("--seeds", type=int, default=20, help="streams of posts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    posts = draw_posts(arguments.mvsa, arguments.seeds)
    uniform = {f"{n}": draw_uniform(arguments.streams, n) for n in (60, 451)}
    write_record(
        "monitor",
        {"delta": DELTA, "posts": posts, "uniform": uniform, "uniform_streams": arguments.streams},
        data="MVSA-Single, EfficientNet-Lite0 and MiniLM features; uniform numbers",
        seeds=list(range(arguments.seeds)),
    )


if __name__ == "__main__":
    main()
