"""Checkpoints: what comes back, what survives a crash, and what hostile files can do."""

import hashlib
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from robustfusion import DRFClassifier, DRFHead
from robustfusion.checkpoint import (
    CONFIG,
    DIGESTS,
    WEIGHTS,
    load_checkpoint,
    load_model,
    random_state,
    read_config,
    restore_random_state,
    save_checkpoint,
    save_model,
)


def make_model(width: int = 6, seed: int = 0) -> DRFClassifier:
    torch.manual_seed(seed)
    encoders = {"image": nn.Linear(12, width), "text": nn.EmbeddingBag(50, 4)}
    head = DRFHead({"image": width, "text": 4}, 3, hidden_features=8)
    return DRFClassifier(encoders, head)


def batch(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "image": torch.randn(8, 12, generator=generator),
        "text": torch.randint(50, (8, 5), generator=generator),
    }
    return inputs, torch.randint(3, (8,), generator=generator)


def steps(model: Any, optimizer: Any, scheduler: Any, seeds: range) -> None:
    model.train()
    for seed in seeds:
        inputs, labels = batch(seed)
        optimizer.zero_grad()
        model.loss(model(inputs), labels).backward()
        optimizer.step()
        scheduler.step()


def parts() -> tuple[Any, Any, Any]:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95))
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


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


def sparse() -> Tensor:
    return torch.eye(3).to_sparse()


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of these tensors
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def nested() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


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
        "import sys, torch; from robustfusion.checkpoint import save_checkpoint\n"
        "for i in range(10**9):\n"
        "    save_checkpoint(sys.argv[1], {'i': i, 'x': torch.full((200_000,), float(i))})\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "x"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
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


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


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


def flips(size: int, long: bool) -> Iterator[tuple[int, int]]:
    """Every bit in a long run, else one in each of some two hundred regions and at both ends."""
    places = range(size) if long else sorted({*range(0, size, max(1, size // 200)), *ends(size)})
    for place in places:
        yield from ((place, bit) for bit in (range(8) if long else (place % 8,)))


def ends(size: int) -> set[int]:
    return {*range(16), *range(size - 80, size)} & set(range(size))


def assert_every_flip_is_found(path: Path, load: Callable[[], Any], long: bool) -> None:
    content = path.read_bytes()
    load()
    for place, bit in flips(len(content), long):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=re.escape(path.name)):
            load()
    path.write_bytes(content)
    load()


def test_any_flipped_bit_of_a_checkpoint_is_found(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"a": torch.arange(20), "b": [1.5, "text"], "c": torch.zeros(3)})
    long = request.config.getoption("--long")
    assert_every_flip_is_found(path, lambda: load_checkpoint(path), long)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, DIGESTS])
def test_any_flipped_bit_of_a_model_is_found(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    save_model(nn.Linear(3, 2), tmp_path, {"in": 3, "rate": 1e-05, "name": "é", "none": None})
    model = nn.Linear(3, 2)

    def load() -> None:
        before = model.weight.clone()
        try:
            load_model(model, tmp_path)
        except ValueError as error:
            assert torch.equal(model.weight, before)
            raise ValueError(f"{name}: {error}") from error

    assert_every_flip_is_found(tmp_path / name, load, request.config.getoption("--long"))


def test_a_model_comes_back_with_its_buffers(tmp_path: Path) -> None:
    model, optimizer, scheduler = parts()
    steps(model, optimizer, scheduler, range(3))
    save_model(model, tmp_path / "new" / "m", {"width": 6, "names": ["image", "text"]})
    assert {p.name for p in (tmp_path / "new" / "m").iterdir()} == {CONFIG, WEIGHTS, DIGESTS}
    config = read_config(tmp_path / "new" / "m")
    assert config == {"width": 6, "names": ["image", "text"]}
    other = make_model(config["width"], seed=5)
    before = [value.data_ptr() for value in other.state_dict().values()]
    assert load_model(other, tmp_path / "new" / "m") == config
    assert before == [value.data_ptr() for value in other.state_dict().values()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    inputs, _ = batch(50)
    assert torch.equal(model.eval()(inputs).logits, other.eval()(inputs).logits)


def test_a_model_that_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    save_model(make_model(6), tmp_path, {})
    wide = make_model(7)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(ValueError, match=r"encoders\.image\.weight.* must have shape \(7, 12\)"):
        load_model(wide, tmp_path)
    assert all(torch.equal(before[n], v) for n, v in wide.state_dict().items())
    with pytest.raises(ValueError, match=r"2 missing \['bias', 'weight'\], \d+ more \['enc"):
        load_model(nn.Linear(2, 2), tmp_path)
    module = nn.BatchNorm1d(3)
    save_model(module, tmp_path, {})
    broken = nn.BatchNorm1d(3)
    broken.num_batches_tracked = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"num_batches_tracked.* must be torch.float32"):
        load_model(broken, tmp_path)


def test_two_saves_are_never_mixed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        save_model(make_model(seed=seed), tmp_path / name, {"seed": seed})
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(ValueError, match="another save"):
        load_model(make_model(), tmp_path / "a")


def sign(folder: Path, **files: str) -> None:
    """Write files as save_model would have, digests included."""
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    lines = (
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (WEIGHTS, CONFIG)
    )
    (folder / DIGESTS).write_text("".join(lines))


@pytest.mark.parametrize(
    "text", ["", "null", "[]x", "[1]", "3", '"ab"', "{", "[" * 100_000, "1" * 5_000]
)
def test_hostile_configs_are_refused(tmp_path: Path, text: str) -> None:
    save_model(nn.Linear(2, 2), tmp_path, {})
    sign(tmp_path, config=text)
    for load in (read_config, lambda folder: load_model(nn.Linear(2, 2), folder)):
        with pytest.raises(ValueError, match=CONFIG):
            load(tmp_path)


def test_without_digests_nothing_is_read(tmp_path: Path) -> None:
    save_model(nn.Linear(2, 2), tmp_path, {})
    (tmp_path / DIGESTS).unlink()
    with pytest.raises(ValueError, match="another library"):
        load_model(nn.Linear(2, 2), tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(FileNotFoundError):
        load_model(nn.Linear(2, 2), tmp_path)


def test_the_digests_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    save_model(nn.Linear(2, 2), tmp_path, {})
    subprocess.run(["sha256sum", "--check", "--strict", DIGESTS], cwd=tmp_path, check=True)


def test_forged_weights_are_refused(tmp_path: Path) -> None:
    save_model(nn.Linear(2, 2), tmp_path, {})
    for content in (b"", b"\xff" * 8 + b"{}", pickle.dumps(Bomb()), b"\x02" + b"\0" * 7 + b"[]"):
        (tmp_path / WEIGHTS).write_bytes(content)
        sign(tmp_path)
        with pytest.raises(ValueError, match=f"{WEIGHTS} holds no weights"):
            load_model(nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("make", [sparse, quantized, lambda: torch.empty(3, device="meta")])
def test_a_model_with_other_tensors_is_not_saved(
    tmp_path: Path, make: Callable[[], Tensor]
) -> None:
    model = nn.Module()
    model.register_buffer("odd", make())
    with pytest.raises(TypeError, match=r"model\.state_dict\(\)\.odd must be a dense tensor"):
        save_model(model, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_config_must_be_json(tmp_path: Path) -> None:
    for config in ({"a": torch.zeros(2)}, {"a": float("nan")}, {"a": nested()}):
        with pytest.raises(TypeError, match="config must"):
            save_model(nn.Linear(2, 2), tmp_path, config)
    assert list(tmp_path.iterdir()) == []


def test_without_safetensors_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    save_checkpoint(tmp_path / "x", 1)
    assert load_checkpoint(tmp_path / "x") == 1
    with pytest.raises(ImportError, match=r"robustfusion\[checkpoint\]"):
        save_model(nn.Linear(1, 1), tmp_path, {})
