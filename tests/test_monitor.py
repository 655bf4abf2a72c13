"""The monitor against a slow plain loop, its bound by simulation, and what it finds."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robustfusion import monitor as module
from robustfusion.monitor import DriftMonitor


def from_references(reference: Tensor, scores: Tensor) -> Tensor:
    """Conformal p-values of scores, low is odd, against one fixed reference set."""
    as_odd = (reference[:, None] <= scores).sum(0)
    return (1 + as_odd) / (1 + len(reference))


def uniforms(seed: int, place: int, count: int) -> list[float]:
    bits = np.random.Philox(key=[seed, place])
    return [1 - u for u in np.random.Generator(bits).random(count)]


def slow_evidence(ranks: list[float], u: list[float], gaps: list[float]) -> list[float]:
    """The definition, one row at a time: rank, bet on it, from each starting row on its own."""
    seen = list(gaps)  # what counts as seen before
    stakes: list[list[float]] = [[] for _ in module._BETS]
    evidence, left = [], 1.0
    for n, (r, draw) in enumerate(zip(ranks, u, strict=True), start=1):
        below, equal = sum(s < r for s in seen), sum(s == r for s in seen)
        more = 0 if gaps else 1
        q = (below + draw * (equal + more)) / (len(seen) + more)
        seen.append(r)
        reserve = 1 / (1 + math.log(1 + n / 1000))
        for bet, (share, power, end) in enumerate(module._BETS):
            x = 1 - q if end else q
            stakes[bet].append((left - reserve) / len(module._BETS))
            gain = 1 - share + share * power * max(x, 1e-12) ** (power - 1)
            stakes[bet] = [stake * gain for stake in stakes[bet]]
        left = reserve
        evidence.append(math.log10(reserve + sum(sum(each) for each in stakes)))
    return evidence


@pytest.mark.parametrize("references", [0, 9])
def test_equals_the_definition(references: int) -> None:
    p = torch.randint(1, 11, (40,)) / 10
    monitor = DriftMonitor(["x"], references=references, seed=3)
    got = [monitor.update({"x": row}).evidence["x"] for row in p[:, None]]
    gaps = [float(k) for k in range(1, 11)] if references else []
    expected = slow_evidence((p * 10).round().tolist(), uniforms(3, 0, 40), gaps)
    assert got == pytest.approx(expected, abs=1e-9)


def test_every_bet_is_fair() -> None:
    q = (torch.arange(4_000_000, dtype=torch.float64) + 0.5) / 4_000_000
    for bet in module._BETS:
        # The pole at 0 of power 0.1 holds a fifth of its mass below the first of these points.
        below = bet[0] * (1 / 4_000_000) ** bet[1]
        mass = float(module._log_density(q, *bet).exp()[1:-1].mean())
        assert mass + below == pytest.approx(1, abs=2e-2)


def false_alarms(streams: int, rows: int, references: int, *, known: bool) -> int:
    alarms = 0
    for seed in range(streams):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(references + rows, generator=generator)
        p = from_references(scores[:references], scores[references:])
        monitor = DriftMonitor(["x"], delta=0.2, references=references if known else 0, seed=seed)
        alarms += monitor.update({"x": p}).alarm
    return alarms


@pytest.mark.parametrize("known", [True, False], ids=["references", "own past"])
def test_false_alarms_stay_below_delta(known: bool) -> None:
    # 0.2 of 150 is 30; more than 45 has a probability of 0.1 %.
    assert false_alarms(150, 1000, references=40, known=known) <= 45


def test_betting_on_the_p_values_themselves_would_break_the_bound() -> None:
    """The trap: a small reference set is off, and rows share that; so the test above can fail."""
    ruined = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(1540, generator=generator)
        p = from_references(scores[:40], scores[40:]).double()
        gains = torch.stack([module._log_density(p, *bet) for bet in module._BETS], 1).cumsum(0)
        capital = (gains.logsumexp(1) - math.log(len(module._BETS))).exp()
        ruined += bool(capital.max() >= 5)
    assert ruined > 25


@pytest.mark.parametrize("end", ["odd", "too usual"])
def test_finds_a_change_of_the_stream(end: str) -> None:
    p = torch.rand(1600)
    p[1000:] = p[1000:] ** 3 if end == "odd" else 1 - (1 - p[1000:]) ** 3
    state = DriftMonitor(["image", "text"]).update({"image": torch.rand(1600), "text": p})
    assert list(state.alarms) == ["text"]
    assert 1000 < state.alarms["text"] < 1200


def test_with_references_a_stream_that_is_bad_from_the_first_row_is_found() -> None:
    scores = torch.rand(450)
    p = from_references(scores[:400], scores[400:] ** 4)
    assert DriftMonitor(["x"], references=400).update({"x": p}).alarm
    assert not DriftMonitor(["x"]).update({"x": p}).alarm


def test_many_good_rows_do_not_make_it_blind() -> None:
    monitor = DriftMonitor(["x"])
    assert not monitor.update({"x": torch.rand(50_000)}).alarm
    assert monitor.update({"x": torch.rand(100) ** 4}).alarm


def test_a_resumed_run_is_the_same_run_however_the_stream_is_cut() -> None:
    p = torch.rand(2600)
    p[::7] = torch.nan
    given = {"a": p, "b": torch.rand(2600) ** 1.2}
    whole = DriftMonitor(["a", "b"], seed=5)
    whole.update(given)
    cut = DriftMonitor(["a", "b"], seed=5)
    for start, stop in ((0, 1), (1, 700), (700, 700), (700, 1501), (1501, 2600)):
        cut.update({name: x[start:stop] for name, x in given.items()})
        again = DriftMonitor(["a", "b"], seed=5)
        again.load_state_dict(pickle.loads(pickle.dumps(cut.state_dict())))
        cut = again
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value, equal_nan=True)
    assert cut.state.available == {"a": int((~p.isnan()).sum()), "b": 2600}


def test_saved_state_is_not_touched_by_later_updates(tmp_path: Path) -> None:
    monitor = DriftMonitor(["x"])
    monitor.update({"x": torch.rand(10)})
    saved = monitor.state_dict()
    torch.save(saved, tmp_path / "monitor.pt")
    monitor.update({"x": torch.rand(10)})
    assert int(saved["samples"]) == 10
    monitor.load_state_dict(torch.load(tmp_path / "monitor.pt"))  # weights_only
    assert monitor.state.samples == 10


def test_memory_is_bounded() -> None:
    monitor = DriftMonitor(["x"])
    size = {name: value.shape for name, value in monitor.state_dict().items()}
    monitor.update({"x": torch.rand(10_000)})
    assert {name: value.shape for name, value in monitor.state_dict().items()} == size


def test_missing_rows_change_nothing() -> None:
    p = torch.rand(100)
    plain, gaps = DriftMonitor(["x"]), DriftMonitor(["x"])
    wide = torch.full((300,), torch.nan)
    wide[::3] = p
    assert gaps.update({"x": wide}).evidence == plain.update({"x": p}).evidence
    assert gaps.update({"x": torch.full((4,), torch.nan)}).samples == 304
    assert gaps.state.available == {"x": 100}


def test_alarm_stays_until_reset() -> None:
    monitor = DriftMonitor(["x"])
    before = monitor.state_dict()
    monitor.update({"x": torch.rand(500)})
    row = monitor.update({"x": torch.rand(100) ** 5}).alarms["x"]
    assert monitor.update({"x": torch.rand(3000)}).alarms == {"x": row}
    monitor.reset()
    assert not monitor.state.alarm
    for name, value in before.items():
        torch.testing.assert_close(monitor.state_dict()[name], value, equal_nan=True)


def test_capital_beyond_all_floats_stays_finite() -> None:
    monitor = DriftMonitor(["x"])
    state = monitor.update({"x": torch.linspace(1, 0, 3000)})  # each row odder than all before
    assert all(map(math.isfinite, (*state.evidence.values(), *state.maximum.values())))
    assert state.maximum["x"] > 400


def test_a_new_normal_is_absorbed() -> None:
    """Ranks follow the stream: the alarm stays, the evidence stops growing."""
    monitor = DriftMonitor(["x"], references=99)
    early = monitor.update({"x": torch.full((2_000,), 0.01)})
    late = monitor.update({"x": torch.full((20_000,), 0.01)})
    assert early.alarms == late.alarms
    assert late.evidence["x"] < early.maximum["x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": []}, "names must be one or more"),
        ({"names": "image"}, "names must be one or more"),
        ({"names": ["a", "a"]}, "different names"),
        ({"names": ["a"], "delta": 0.0}, "delta must be between 0 and 1"),
        ({"names": ["a"], "references": -1}, "references must be whole numbers"),
        ({"names": ["a"], "references": {"b": 3}}, "references must have the names"),
    ],
)
def test_constructor_errors(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DriftMonitor(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("p_values", "words"),
    [
        ({"a": torch.rand(3)}, "p_values must have the names"),
        ({"a": torch.rand(3), "b": torch.rand(2)}, r'p_values\["b"\] must have shape \(B,\)'),
        ({"a": torch.rand(3, 1), "b": torch.rand(3)}, r'p_values\["a"\] must have shape'),
        ({"a": torch.rand(3), "b": torch.rand(3) + 1.5}, r'p_values\["b"\] must be between'),
        ({"a": torch.rand(3), "b": torch.arange(3)}, r'p_values\["b"\] must be a floating'),
        ({"a": torch.rand(3), "b": [0.1, 0.2, 0.3]}, r'p_values\["b"\] must be a floating'),
    ],
)
def test_update_errors_leave_the_state_alone(p_values: dict[str, Tensor], words: str) -> None:
    monitor = DriftMonitor(["a", "b"])
    with pytest.raises((ValueError, TypeError), match=words):
        monitor.update(p_values)
    assert monitor.state.samples == 0


def test_p_values_that_are_not_of_these_references_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 1/101, for references=100"):
        DriftMonitor(["x"], references=100).update({"x": torch.tensor([0.3, 0.4])})


def test_state_of_other_names_is_refused() -> None:
    with pytest.raises(ValueError, match="state must be that of a monitor of 1 names"):
        DriftMonitor(["x"]).load_state_dict(DriftMonitor(["x", "y"]).state_dict())


def test_repr_evaluates_back() -> None:
    monitor = DriftMonitor(["a", "b"], delta=0.05, references={"a": 3, "b": 0}, seed=2)
    assert repr(eval(repr(monitor))) == repr(monitor)
