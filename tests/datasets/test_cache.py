from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustfusion.datasets import MVSA, FeatureCache, encode, module_fingerprint


class Counting:
    """Encodes a text as its length and a first letter, and counts what it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[Any]) -> Tensor:
        self.seen += texts
        return torch.tensor([[len(text), ord(text[-1])] for text in texts], dtype=torch.float32)


KEYS = {"text": FeatureCache.key("text", "counting", "none")}


def brightness(images: list[Any]) -> Tensor:
    return torch.tensor([[float(np.asarray(image).mean())] for image in images])


def test_encode_runs_once(three_posts: Path, tmp_path: Path) -> None:
    dataset, cache, encoder = MVSA(three_posts), FeatureCache(tmp_path / "cache"), Counting()
    first = encode(dataset, {"text": encoder}, cache=cache, keys=KEYS, batch_size=2)
    assert first.ids == ["1", "2", "3"]
    assert first.labels.tolist() == [0, 2, 1]
    expected = torch.tensor([[13.0, 49], [13, 50], [13, 51]])
    assert torch.equal(first.features["text"], expected)
    assert first.available["text"].tolist() == [True] * 3
    assert len(encoder.seen) == 3

    again = encode(dataset.select(["3", "1"]), {"text": encoder}, cache=cache, keys=KEYS)
    assert torch.equal(again.features["text"], expected[[2, 0]])
    assert len(encoder.seen) == 3


def test_a_changed_file_is_encoded_again_and_a_copy_is_not(
    three_posts: Path, tmp_path: Path
) -> None:
    cache, encoder = FeatureCache(tmp_path / "cache"), Counting()
    encode(MVSA(three_posts), {"text": encoder}, cache=cache, keys=KEYS)
    data = three_posts / "data"
    (data / "1.txt").write_text("changed")
    (data / "2.txt").write_bytes((data / "3.txt").read_bytes())
    result = encode(MVSA(three_posts), {"text": encoder}, cache=cache, keys=KEYS)
    assert encoder.seen[3:] == ["changed"]
    assert torch.equal(result.features["text"][1], result.features["text"][2])
    other = {"text": FeatureCache.key("text", "counting", "lower case")}
    encode(MVSA(three_posts), {"text": encoder}, cache=cache, keys=other)
    assert len(encoder.seen) == 6  # two equal texts count once


def test_missing_modalities_are_zeros_that_no_encoder_sees(three_posts: Path) -> None:
    (three_posts / "data" / "2.txt").unlink()
    encoder = Counting()
    dataset = MVSA(three_posts, on_bad="missing")
    result = encode(dataset, {"text": encoder, "image": brightness}, batch_size=1)
    assert encoder.seen == ["post number 1", "post number 3"]
    assert result.available["text"].tolist() == [True, False, True]
    assert result.features["text"][1].tolist() == [0, 0]
    assert result.features["image"].shape == (3, 1)
    assert result.available["image"].all()


def test_a_bad_file_found_late_is_named(three_posts: Path) -> None:
    dataset = MVSA(three_posts, verify=False)
    (three_posts / "data" / "2.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"post '2': 2\.txt is empty"):
        encode(dataset, {"text": Counting()})


def test_an_interrupted_run_keeps_whole_files_only(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.store("k", ["a", "b"], np.ones((2, 3), np.float16))
    (path,) = (tmp_path / "k").iterdir()
    (tmp_path / "k" / "zzz.npz").write_bytes(path.read_bytes()[:-30])
    (tmp_path / "k" / "half.partial").write_bytes(b"PK")
    found = cache.lookup("k", ["a", "b", "c"])
    assert sorted(found) == ["a", "b"]
    assert found["a"].dtype == np.float16
    path.write_bytes(b"")
    assert cache.lookup("k", ["a"]) == {}


def test_a_damaged_file_is_absent_wherever_the_damage_is(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.store("k", ["a", "b"], np.arange(6, dtype=np.float32).reshape(2, 3))
    (path,) = (tmp_path / "k").iterdir()
    whole = path.read_bytes()
    good = cache.lookup("k", ["a", "b"])
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        for name, row in cache.lookup("k", ["a", "b"]).items():
            assert np.array_equal(row, good[name])


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        FeatureCache(tmp_path).store("k", ["a"], np.ones((1, 3)))
    assert list((tmp_path / "k").iterdir()) == []


def test_store_refuses_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features must have shape \(2, D\), got \(1, 3\)"):
        FeatureCache(tmp_path).store("k", ["a", "b"], np.ones((1, 3)))
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


def test_bfloat16_features_become_float32(three_posts: Path) -> None:
    result = encode(MVSA(three_posts), {"image": lambda images: brightness(images).bfloat16()})
    assert result.features["image"].dtype == torch.float32


def test_errors(three_posts: Path, tmp_path: Path) -> None:
    dataset = MVSA(three_posts)
    with pytest.raises(ValueError, match='keys must have an entry for "text"'):
        encode(dataset, {"text": Counting()}, cache=FeatureCache(tmp_path / "c"))
    with pytest.raises(ValueError, match=r'encoders\["text"\] is in training mode'):
        encode(dataset, {"text": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r'encoders\["text"\] must return \(3, D\), got \(3,\)'):
        encode(dataset, {"text": lambda texts: torch.zeros(len(texts))})
    with pytest.raises(ValueError, match=r"must return \(3, D\), got list"):
        encode(dataset, {"text": lambda texts: texts})  # type: ignore[dict-item, return-value]
    with pytest.raises(ValueError, match='named "image" or "text", got \'audio\''):
        encode(dataset, {"audio": Counting()})
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        encode(dataset, {"text": Counting()}, batch_size=0)


def test_progress(three_posts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    encode(MVSA(three_posts), {"text": Counting()})
    assert capsys.readouterr().err == ""
    encode(MVSA(three_posts), {"text": Counting()}, progress=True)
    assert "encode text" in capsys.readouterr().err
