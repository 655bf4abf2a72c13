import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustfusion.datasets import FeatureCache, module_fingerprint

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    made = FeatureCache(tmp_path)
    made.store("k", ["a", "b"], ROWS)
    return made


def the_file(cache: FeatureCache) -> Path:
    (path,) = (cache.directory / "k").glob("*.npz")
    return path


def test_rows_come_back_in_their_type(cache: FeatureCache) -> None:
    cache.store("k", ["c"], np.ones((1, 3), np.float32))
    found = cache.lookup("k", ["b", "c", "d"])
    assert sorted(found) == ["b", "c"]
    assert np.array_equal(found["b"], ROWS[1])
    cache.store("half", ["a"], np.ones((1, 3), np.float16))
    assert cache.lookup("half", ["a"])["a"].dtype == np.float16
    assert cache.lookup("nothing", ["a"]) == {}
    assert cache.lookup("k", []) == {}


def test_a_stream_goes_file_by_file(cache: FeatureCache) -> None:
    for number in range(3):
        cache.store("k", [f"{number}/{row}" for row in range(4)], np.full((4, 3), number, "f4"))
    blocks = list(cache.stream("k", ["a", "0/1", "0/3", "2/0", "gone"]))
    assert sorted(len(names) for names, _ in blocks) == [1, 1, 2]
    for names, rows in blocks:
        for name, row in zip(names, rows, strict=True):
            assert np.array_equal(row, ROWS[0] if name == "a" else np.full(3, int(name[0])))
    assert list(cache.stream("k", [])) == list(cache.stream("other", ["a"])) == []


def test_an_interrupted_run_keeps_whole_files_only(cache: FeatureCache) -> None:
    path = the_file(cache)
    (path.parent / "zzz.npz").write_bytes(path.read_bytes()[:-30])
    (path.parent / "half.npz.0.partial").write_bytes(b"PK")
    assert sorted(cache.lookup("k", ["a", "b", "c"])) == ["a", "b"]
    path.write_bytes(path.read_bytes()[:-4])
    assert cache.lookup("k", ["a", "b"]) == {}


def test_files_of_an_earlier_layout_are_absent(cache: FeatureCache) -> None:
    with np.load(the_file(cache)) as file:
        np.save(the_file(cache).with_suffix(".npy"), file["rows"])
        np.save(the_file(cache).with_suffix(".index.npy"), file["names"])
    the_file(cache).unlink()
    assert cache.lookup("k", ["a", "b"]) == {}


def test_a_damaged_file_is_absent_wherever_the_damage_is(cache: FeatureCache) -> None:
    path = the_file(cache)
    whole, lost = path.read_bytes(), 0
    for place in range(len(whole)):
        for mask in (1, 255):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            found = cache.lookup("k", ["a", "b"])
            lost += len(found) < 2
            for name, row in found.items():
                assert row.dtype == np.float32
                assert np.array_equal(row, ROWS["ab".index(name)])
    assert lost > len(whole)  # more than half of the changes; others hit unused bytes of the zip


def rewrite(cache: FeatureCache, **changed: Any) -> None:
    """Change parts of the file, checksums included."""
    with np.load(the_file(cache)) as file:
        parts: dict[str, Any] = {name: file[name] for name in file.files}
    np.savez(the_file(cache), **{**parts, **changed})


OTHER_ROWS: dict[str, Any] = {
    "0-d": np.float32(1),
    "1-d": np.ones(2, np.float32),
    "3-d": np.ones((2, 3, 1), np.float32),
    "fewer rows": ROWS[:1],
    "more rows": np.concatenate([ROWS, ROWS]),
    "NaN": np.full((2, 3), np.nan, np.float32),
    "integers": ROWS.astype(np.int32),
    "strings": np.array([["x"] * 3] * 2),
}


@pytest.mark.parametrize("kind", OTHER_ROWS)
def test_rows_that_do_not_fit_are_absent(cache: FeatureCache, kind: str) -> None:
    rewrite(cache, rows=OTHER_ROWS[kind])
    assert cache.lookup("k", ["a", "b"]) == {}


@pytest.mark.parametrize(
    "names",
    [
        np.zeros((2, 16), np.uint8),
        np.zeros((1, 3), np.uint8),
        np.array(["a", "b"]),
        np.array([["a"], ["b"]]),
        np.array([b"a", None], dtype=object),
    ],
    ids=lambda names: str(names.dtype),
)
def test_names_that_do_not_fit_are_absent(cache: FeatureCache, names: Any) -> None:
    rewrite(cache, names=names)
    assert cache.lookup("k", ["a", "b"]) == {}


def test_rows_that_are_not_finite_or_of_another_width_are_absent(cache: FeatureCache) -> None:
    cache.store("k", ["c", "d"], np.array([[1, np.inf, 1], [1, 2, 3]], np.float32))
    cache.store("k", ["e"], np.ones((1, 5), np.float32))
    assert sorted(cache.lookup("k", ["a", "b", "c", "d", "e"])) == ["a", "b", "d"]


def test_a_lookup_reads_rows_only_of_files_that_hold_a_wanted_one(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        cache.store("k", [f"{number}/{row}" for row in range(4)], np.ones((4, 3), np.float32))
    read: list[str] = []
    get = np.lib.npyio.NpzFile.__getitem__

    def seen(file: Any, part: str) -> Any:
        read.append(part)
        return get(file, part)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", seen)
    assert len(cache.lookup("k", ["3/0", "3/1", "a"])) == 3
    assert read.count("rows") == 2


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        FeatureCache(tmp_path).store("k", ["a"], np.ones((1, 3)))
    assert list((tmp_path / "k").iterdir()) == []


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        FeatureCache(tmp_path).store("k", ["a"], np.ones((1, 3)))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "k").iterdir()} == {0o640}


@pytest.mark.parametrize("key", ["../escape", "..", ".", "", "a/b", "/tmp/a", "a\0b", "a\n"])
def test_keys_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    cache = FeatureCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="key must be made of letters"):
        cache.store(key, ["a"], np.ones((1, 3)))
    with pytest.raises(ValueError, match="key must be made of letters"):
        cache.lookup(key, ["a"])
    assert list(tmp_path.iterdir()) == []


def test_store_refuses_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features must have shape \(2, D\), got \(1, 3\)"):
        FeatureCache(tmp_path).store("k", ["a", "b"], np.ones((1, 3)))
    with pytest.raises(TypeError, match="features must be floating numbers, got int64"):
        FeatureCache(tmp_path).store("k", ["a"], np.ones((1, 3), np.int64))
    FeatureCache(tmp_path).store("k", [], np.ones((0, 3)))
    assert list(tmp_path.iterdir()) == []


def test_keys_tell_encoders_weights_and_preprocessing_apart() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    keys = {
        FeatureCache.key("image", "a", "b"),
        FeatureCache.key("text", "a", "b"),
        FeatureCache.key("image", "ab", ""),
        FeatureCache.key("image", "a", "c"),
        FeatureCache.key("image", one, "b"),
        FeatureCache.key("image", other, "b"),
    }
    assert len(keys) == 6
    other.load_state_dict(one.state_dict())
    assert module_fingerprint(one) == module_fingerprint(other)
    assert module_fingerprint(nn.BatchNorm1d(2)) != module_fingerprint(nn.BatchNorm1d(2, eps=1.0))
