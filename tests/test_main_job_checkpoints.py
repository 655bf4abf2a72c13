"""The main job's training states: what comes back, what survives a crash, and hostile files."""

import hashlib
import io
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from main_job.checkpoints import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from saved import Bomb, assert_every_flip_is_found, nested, parts, quantized, sparse, steps
from torch import Tensor, nn


def test_resumed_training_is_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    straight = parts()
    steps(*straight, range(10))

    first = parts()
    steps(*first, range(4))
    names = ("model", "optimizer", "scheduler")
    state = {name: part.state_dict() for name, part in zip(names, first, strict=True)}
    save_checkpoint(tmp_path / "a.pt", {**state, "random": random_state()})
    torch.manual_seed(999)
    second = parts()
    loaded = load_checkpoint(tmp_path / "a.pt")
    for name, part in zip(names, second, strict=True):
        part.load_state_dict(loaded[name])
    restore_random_state(loaded["random"])
    steps(*second, range(4, 10))

    for name, value in straight[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert straight[2].get_last_lr() == second[2].get_last_lr()


def test_every_kind_of_value_comes_back(tmp_path: Path) -> None:
    shared = torch.arange(6).reshape(2, 3)
    state: dict[str, Any] = {
        "none": None,
        "numbers": [True, 3, -0.1, 1e-300, float("inf"), 10**30],
        "tuple": (1, ("a", [])),
        "int keys": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "$tensor": "a user's own key",
        "nested": {"$tuple": [1]},
        "a.b": torch.zeros(2),
        "a": {"b": torch.ones(2)},
        "tied": [shared, shared.t(), shared],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "unicode": "é\n\0",
    }
    save_checkpoint(tmp_path / "x", state)
    found = load_checkpoint(tmp_path / "x")

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and bool(a == b)

    assert same(state, found)
    save_checkpoint(tmp_path / "x", float("nan"))
    assert load_checkpoint(tmp_path / "x") != load_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(
    "value",
    [
        *({1, 2}, b"x", nn.Linear(1, 1), {None: 1}, {(1,): 2}, np.zeros(2), np.int64(3)),
        *(sparse(), quantized(), torch.empty(3, device="meta")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_state_cannot_hold_is_refused_by_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"state\.here\.0 must"):
        save_checkpoint(tmp_path / "x", {"here": [value]})
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="nested"):
        save_checkpoint(tmp_path / "x", nested())
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_one_of_torch(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", {"model": nn.Linear(2, 2).state_dict(), "lr": np.float64(0.1)})
    loaded = torch.load(tmp_path / "x", weights_only=True)
    assert type(loaded["lr"]) is float
    assert loaded["model"]["weight"].shape == (2, 2)


def test_a_view_does_not_bring_what_it_is_a_view_of(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", torch.zeros(1_000_000)[:3])
    assert (tmp_path / "x").stat().st_size < 10_000


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", {"a": [{"loss": 1.0}], "b": (torch.ones(3), "loss")})
    save_checkpoint(tmp_path / "y", load_checkpoint(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_random_states_of_all_generators_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    save_checkpoint(tmp_path / "x", random_state())
    first = draw()
    draw()
    restore_random_state(load_checkpoint(tmp_path / "x"))
    assert draw() == first
    for bad in ({}, {**random_state(), "torch": torch.zeros(3, dtype=torch.uint8)}):
        with pytest.raises(ValueError, match="random_state"):
            restore_random_state(bad)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    save_checkpoint(path, 1)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(path, 2)
    assert load_checkpoint(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from main_job.checkpoints import save_checkpoint\n"
        "for i in range(10**9):\n"
        "    save_checkpoint(sys.argv[1], {'i': i, 'x': torch.full((200_000,), float(i))})\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "x"
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'examples'}"}
    for wait in (1, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        for _ in range(wait):
            process.stdout.readline()
        process.kill()
        process.communicate()
        state = load_checkpoint(path)
        assert bool((state["x"] == state["i"]).all())
    save_checkpoint(path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def signed(content: bytes) -> bytes:
    """Behind any content a digest that is right."""
    return content + b"robustfusion sha256:" + hashlib.sha256(content).digest()


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_foreign_and_damaged_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good"
    save_checkpoint(good, {"a": torch.arange(1000), "b": [1.5]})
    content = good.read_bytes()
    bad = tmp_path / "bad"
    damaged = [
        b"",
        b"{}",
        pickle.dumps(Bomb()),
        pickled({"a": torch.zeros(2)}),
        *[content[:size] for size in (4, 8, 50, len(content) // 2, len(content) - 1)],
        content + b"x",
        b"x" + content,
        content + content,
        safetensors.torch.save({"a": torch.zeros(2)}, {"robustfusion": "[1]"}),
    ]
    for sample in damaged:
        bad.write_bytes(sample)
        with pytest.raises(ValueError, match=r"bad is no whole checkpoint"):
            load_checkpoint(bad)
    forged = [
        b"",
        b"{}",
        pickle.dumps(Bomb()),
        pickled({"a": Bomb()}),
        pickled(nn.Linear(2, 2)),
        pickled(torch.zeros(1000))[:-500],
    ]
    for sample in forged:
        bad.write_bytes(signed(sample))
        with pytest.raises(ValueError, match=r"bad is no checkpoint"):
            load_checkpoint(bad)
    assert not Path("exploded").exists()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none")


def test_any_flipped_bit_of_a_checkpoint_is_found(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"a": torch.arange(20), "b": [1.5, "text"], "c": torch.zeros(3)})
    long = request.config.getoption("--long")
    assert_every_flip_is_found(path, lambda: load_checkpoint(path), long)
