"""The monitor against a slow plain loop, its bound by simulation, and what it finds."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustfusion import DRFClassifier, DRFHead, calibrate
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["b", "a"]}, r'names are \["b", "a"\], those of this one are \["a", "b"\]'),
        ({"names": ["a", "c"]}, "names are"),
        ({"names": ["a"]}, "names are"),
        ({"delta": 0.05}, r"delta is 0\.05, that of this one is 0\.01"),
        ({"references": 99}, r"references are \[99, 99\], those of this one are \[0, 0\]"),
        ({"seed": 1}, "seed is 1, that of this one is 0"),
    ],
)
def test_the_state_of_another_monitor_is_refused(options: dict[str, Any], words: str) -> None:
    state = DriftMonitor(**{"names": ["a", "b"], **options}).state_dict()
    monitor = DriftMonitor(["a", "b"])
    monitor.update({"a": torch.rand(3), "b": torch.rand(3)})
    with pytest.raises(ValueError, match=f"state belongs to another DriftMonitor: .*{words}"):
        monitor.load_state_dict(state)
    assert monitor.state.samples == 3


def test_a_state_without_names_is_refused() -> None:
    monitor = DriftMonitor(["x"])
    state = monitor.state_dict()
    del state["identity"]
    with pytest.raises(ValueError, match=r"does not say for which names .* a new monitor"):
        monitor.load_state_dict(state)
    state = {**monitor.state_dict(), "maximum": torch.zeros(2)}
    with pytest.raises(ValueError, match="state must hold tensors of the shapes"):
        monitor.load_state_dict(state)


def test_repr_evaluates_back() -> None:
    monitor = DriftMonitor(["a", "b"], delta=0.05, references={"a": 3, "b": 0}, seed=2)
    assert repr(eval(repr(monitor))) == repr(monitor)


def repeated(streams: int, *, keyed: bool, references: int = 0) -> int:
    """Count the streams with a false alarm in which each sample comes one to five times."""
    alarms = 0
    for seed in range(streams):
        generator = torch.Generator().manual_seed(seed)
        p = torch.rand(150 + references, generator=generator)
        if references:
            p = from_references(p[:references], p[references:])
        times = torch.randint(1, 6, (150,), generator=generator)
        keys = torch.arange(150).repeat_interleave(times)
        monitor = DriftMonitor(["x"], delta=0.2, references=references, seed=seed)
        alarms += monitor.update({"x": p[:150][keys]}, keys if keyed else None).alarm
    return alarms


@pytest.mark.parametrize("references", [0, 60])
def test_groups_that_count_once_keep_the_bound(references: int) -> None:
    # 0.2 of 300 is 60; more than 82 has a probability of 0.1 %.
    assert repeated(300, keyed=True, references=references) <= 82


def test_repeated_samples_without_keys_break_the_bound() -> None:
    assert repeated(60, keyed=False) > 30


def test_of_each_group_the_first_p_value_counts() -> None:
    p = {"a": torch.rand(6), "b": torch.rand(6)}
    p["a"][0] = torch.nan  # so that the second of its group counts
    keys = ["v1", "v1", "v2", None, None, "v1"]
    monitor = DriftMonitor(["a", "b"])
    monitor.update(p, keys)
    assert monitor.state.available == {"a": 4, "b": 4}
    assert monitor.state.samples == 6
    plain = DriftMonitor(["a", "b"])
    expected = {name: torch.full((6,), torch.nan) for name in p}
    for name, rows in (("a", [1, 2, 3, 4]), ("b", [0, 2, 3, 4])):
        expected[name][rows] = p[name][rows]
    assert plain.update(expected).evidence == monitor.state.evidence
    # In another batch, and in a monitor that was resumed.
    again = DriftMonitor(["a", "b"])
    again.load_state_dict(monitor.state_dict())
    for part in (monitor, again):
        part.update({name: torch.rand(2) for name in p}, ["v2", "v3"])
        assert part.state.available == {"a": 5, "b": 5}
    monitor.reset()
    monitor.update(p, keys)
    assert monitor.state.available == {"a": 4, "b": 4}


def test_groups_do_not_depend_on_how_the_stream_is_cut() -> None:
    keys = torch.randint(5000, (9000,))
    p = {"x": torch.rand(9000)}
    whole, cut = DriftMonitor(["x"]), DriftMonitor(["x"])
    whole.update(p, keys)
    for start, stop in ((0, 10), (10, 4500), (4500, 9000)):
        cut.update({"x": p["x"][start:stop]}, keys[start:stop].tolist())
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value)
    assert whole.state.available["x"] < 5000
    assert len(set(module._hashes([1, "1", 1000, "a"], 4))) == 4


def test_keys_that_do_not_fit_are_refused() -> None:
    monitor, p = DriftMonitor(["x"]), {"x": torch.rand(3)}
    with pytest.raises(ValueError, match="keys must have one for each of 3 samples, got 2"):
        monitor.update(p, [1, 2])
    with pytest.raises(TypeError, match="keys must be int, str or None, got float"):
        monitor.update(p, torch.rand(3))
    assert monitor.state.samples == 0


STORED: dict[str, Any] = {
    "half precision": lambda p: p.half(),
    "half and back": lambda p: p.half().float(),
    "bfloat16": lambda p: p.bfloat16(),
    "fewest decimals": lambda p: torch.tensor([float(f"{x:.3f}") for x in p.tolist()]),
    "more decimals": lambda p: torch.tensor([float(f"{x:.4f}") for x in p.tolist()]),
    "six decimals": lambda p: torch.tensor([float(f"{x:.6f}") for x in p.tolist()]),
    "three digits": lambda p: torch.tensor([float(f"{x:.3g}") for x in p.tolist()]),
}


@pytest.mark.parametrize("stored", STORED)
def test_p_values_in_few_digits_are_those_they_were(stored: str) -> None:
    references = 60 if stored == "bfloat16" else 451
    p = torch.arange(1, references + 2) / (references + 1)
    exact, rounded = (DriftMonitor(["x"], references=references) for _ in range(2))
    exact.update({"x": p})
    rounded.update({"x": STORED[stored](p)})
    assert torch.equal(exact.state_dict()["cells"], rounded.state_dict()["cells"])


@pytest.mark.parametrize(
    ("references", "values", "words"),
    [
        (451, [0.12, 0.99], r'p_values\["x"\] must be multiples of 1/452.* 3 decimals or more'),
        (2048, [0.126], r"multiples of 1/2049.* 4 decimals or more"),
        (100, [0.3, 0.4], r"multiples of 1/101"),
        (300, [0.3], r"multiples of 1/301"),
    ],
)
def test_too_few_digits_are_refused(references: int, values: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DriftMonitor(["x"], references=references).update({"x": torch.tensor(values)})


def test_half_precision_that_cannot_tell_references_apart_is_refused() -> None:
    p = (torch.arange(1500, 2049) / 2049).bfloat16()
    with pytest.raises(ValueError, match="not in half precision"):
        DriftMonitor(["x"], references=2048).update({"x": p})


def test_rounded_p_values_keep_the_bound() -> None:
    alarms = 0
    for seed in range(200):
        scores = torch.rand(451 + 300, generator=torch.Generator().manual_seed(seed))
        p = from_references(scores[:451], scores[451:])
        monitor = DriftMonitor(["x"], delta=0.2, references=451, seed=seed)
        alarms += monitor.update({"x": STORED["fewest decimals"](p)}).alarm
    assert alarms <= 60  # 0.2 of 200 is 40


def test_the_monitor_of_a_model_knows_its_references() -> None:
    head = DRFHead({"image": 4, "text": 3}, 2)
    model = DRFClassifier({"image": torch.nn.Identity(), "text": torch.nn.Identity()}, head)
    features = {"image": torch.randn(90, 4), "text": torch.randn(90, 3)}
    available = {"image": torch.arange(90) < 70}
    with pytest.raises(ValueError, match=r"have no references: call robustfusion.calibrate"):
        DriftMonitor.for_model(model)
    model.train()(features)
    batch = {"inputs": features, "available": available, "label": torch.randint(2, (90,))}
    calibrate(model.eval(), [batch])
    for part in (model, head):
        monitor = DriftMonitor.for_model(part, delta=0.05)
        assert monitor.references == {"image": 70, "text": 90}
        assert monitor.delta == 0.05
    with torch.no_grad():
        output = model(features, available)
    assert not monitor.update(head.p_values(output)).alarm
    with pytest.raises(TypeError, match="must have quality estimators, got Linear"):
        DriftMonitor.for_model(torch.nn.Linear(2, 2))
