"""Models on disk: what comes back, and what damaged, mixed or hostile files can do."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from saved import (
    Bomb,
    assert_every_flip_is_found,
    batch,
    make_model,
    nested,
    parts,
    quantized,
    sparse,
    steps,
)
from torch import Tensor, nn

from robustfusion.checkpoint import CONFIG, DIGESTS, WEIGHTS, load_model, read_config, save_model


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
    with pytest.raises(ImportError, match=r"robustfusion\[checkpoint\]"):
        save_model(nn.Linear(1, 1), tmp_path, {})
