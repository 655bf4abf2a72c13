from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustfusion.datasets.encoding as encoding
from robustfusion.datasets import MVSA, Encoding, FeatureCache, encode
from robustfusion.datasets.reading import read_bytes
from robustfusion.disruption import CachedFeatures, Disruption, ImageCorruption, TextCorruption
from robustfusion.disruption.raw_samples import RawSamples

CORRUPTIONS: dict[str, Any] = {"text": TextCorruption(), "image": ImageCorruption()}


class Counting:
    """Encodes a text as its length and its last letter, and counts what it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[Any]) -> Tensor:
        self.seen += texts
        return torch.tensor([[len(text), ord(text[-1])] for text in texts], dtype=torch.float32)


def brightness(images: list[Any]) -> Tensor:
    return torch.tensor([[float(np.asarray(image).mean())] for image in images])


def pixels(images: list[Any]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def tokens(texts: list[str]) -> dict[str, Tensor]:
    ids = torch.zeros(len(texts), 40, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor([ord(letter) for letter in text[:40]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class CountingPosts(MVSA):
    """MVSA that counts how often each post is read."""

    reads: list[int]

    def __getitem__(self, index: int) -> Any:
        self.reads.append(index)
        return super().__getitem__(index)


def test_encode_runs_once(three_posts: Path, tmp_path: Path) -> None:
    dataset, cache, encoder = MVSA(three_posts), FeatureCache(tmp_path / "cache"), Counting()
    encoders: Any = {"text": Encoding(encoder, name="counting"), "image": brightness}
    first = encode(dataset, encoders, cache=cache, batch_size=2)
    assert first.ids == ("1", "2", "3")
    assert first.labels.tolist() == [0, 2, 1]
    assert first.class_names == ("positive", "neutral", "negative")
    expected = torch.tensor([[13.0, 49], [13, 50], [13, 51]])
    assert torch.equal(first.features["text"], expected)
    assert first.available["text"].tolist() == [True] * 3
    assert len(encoder.seen) == 3

    again = encode(dataset.select(["3", "1"]), encoders, cache=cache)
    assert torch.equal(again.features["text"], expected[[2, 0]])
    assert len(encoder.seen) == 3


def test_a_changed_file_is_encoded_again_and_a_copy_is_not(
    three_posts: Path, tmp_path: Path
) -> None:
    cache, encoder = FeatureCache(tmp_path / "cache"), Counting()
    encoders: Any = {"text": Encoding(encoder, name="counting"), "image": brightness}
    encode(MVSA(three_posts), encoders, cache=cache)
    data = three_posts / "data"
    (data / "1.txt").write_text("changed")
    (data / "2.txt").write_bytes((data / "3.txt").read_bytes())
    result = encode(MVSA(three_posts), encoders, cache=cache)
    assert encoder.seen[3:] == ["changed"]
    assert torch.equal(result.features["text"][1], result.features["text"][2])
    encoders["text"] = Encoding(encoder, name="counting, other preprocessing")
    encode(MVSA(three_posts), encoders, cache=cache)
    assert len(encoder.seen) == 6  # two equal texts count once


def test_each_post_is_read_once_whatever_is_made_of_it(three_posts: Path, tmp_path: Path) -> None:
    dataset, cache = CountingPosts(three_posts), FeatureCache(tmp_path)
    dataset.reads = []
    encoders: Any = {
        "text": Encoding(Counting(), name="counting"),
        "image": Encoding(brightness, name="brightness"),
    }
    options: Any = {"corruptions": CORRUPTIONS, "seeds": (0, 1, 5), "cache": cache}
    first = encode(dataset, encoders, batch_size=2, **options)
    assert sorted(dataset.reads) == [0, 1, 2]
    again = encode(dataset, encoders, **options)
    assert len(dataset.reads) == 3
    for name in encoders:
        assert torch.equal(first.features[name], again.features[name])
        for seed in (0, 1, 5):
            assert torch.equal(first.corrupted[name][seed], again.corrupted[name][seed])
    more = encode(dataset, encoders, **{**options, "seeds": (1, 6)})
    assert len(dataset.reads) == 6
    assert sorted(more.corrupted["text"]) == [1, 6]
    other = {**CORRUPTIONS, "text": TextCorruption(severity=1.0)}
    encode(dataset, encoders, **{**options, "corruptions": other})
    assert len(dataset.reads) == 9


def test_each_file_is_read_once(three_posts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = MVSA(three_posts, verify=False)
    opened: list[str] = []

    def counted(path: Path, *arguments: Any) -> bytes:
        opened.append(path.name)
        return read_bytes(path, *arguments)

    monkeypatch.setattr("robustfusion.datasets.post_files.read_bytes", counted)
    encoders: Any = {"text": Counting(), "image": brightness}
    encode(dataset, encoders, corruptions=CORRUPTIONS, seeds=(0, 1, 2))
    assert sorted(opened) == ["1.jpg", "1.txt", "2.jpg", "2.txt", "3.jpg", "3.txt"]


@pytest.mark.parametrize("kind", ["features", "prepared"])
def test_the_same_batches_as_from_raw_samples(three_posts: Path, kind: str) -> None:
    (three_posts / "data" / "2.txt").unlink()
    dataset = MVSA(three_posts, on_bad="missing")
    makers: dict[str, Any] = (
        {"image": brightness, "text": Counting()}
        if kind == "features"
        else {"image": pixels, "text": tokens}
    )
    data = encode(dataset, makers, corruptions=CORRUPTIONS, seeds=(0, 3), batch_size=2)
    raw = RawSamples(dataset, CORRUPTIONS)
    assert data.modalities == ("image", "text")
    assert data.fresh_corruption
    for seed in (0, 3):
        disruption = Disruption(data.modalities, setting="C", seed=seed)
        rows = np.arange(3)
        (ours,), (theirs,) = (list(d.batches(disruption, rows, 8)) for d in (data, raw))
        assert torch.equal(ours["label"], theirs["label"])
        for name, make in makers.items():
            there = theirs["available"][name]
            assert torch.equal(ours["available"][name], there)
            made = make([value or "." for value in theirs["inputs"][name]])
            for key in made if isinstance(made, dict) else (None,):
                want = made if key is None else made[key]
                got = ours["inputs"][name] if key is None else ours["inputs"][name][key]
                assert torch.equal(got[there], want[there])
                assert got[~there].sum() == (key == "attention_mask") * int((~there).sum())


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


def test_a_file_found_bad_late_is_missing_or_named(three_posts: Path, tmp_path: Path) -> None:
    missing = MVSA(three_posts, on_bad="missing", verify=False)
    strict = MVSA(three_posts, verify=False)
    (three_posts / "data" / "2.txt").write_bytes(b"")
    (three_posts / "data" / "3.jpg").write_bytes(b"no picture")
    encoders: Any = {
        "text": Encoding(Counting(), name="text"),
        "image": Encoding(brightness, name="image"),
    }
    for _ in range(2):
        data = encode(missing, encoders, cache=FeatureCache(tmp_path))
        assert data.available["text"].tolist() == [True, False, True]
        assert data.available["image"].tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"post '2': 2\.txt is empty"):
        encode(strict, {"text": Counting(), "image": brightness})


def test_a_network_is_part_of_the_key_and_runs_without_gradients(
    three_posts: Path, tmp_path: Path
) -> None:
    cache, encoder, network = FeatureCache(tmp_path), Counting(), nn.Linear(2, 3).eval()
    encoders: Any = {"text": Encoding(encoder, network, "letters"), "image": brightness}
    first = encode(MVSA(three_posts), encoders, cache=cache)
    assert not first.features["text"].requires_grad
    assert torch.equal(
        encode(MVSA(three_posts), encoders).features["text"], first.features["text"]
    )
    seen = len(encoder.seen)
    encode(MVSA(three_posts), encoders, cache=cache)
    assert len(encoder.seen) == seen
    with torch.no_grad():
        network.bias.add_(1)
    second = encode(MVSA(three_posts), encoders, cache=cache)
    assert torch.allclose(second.features["text"], first.features["text"] + 1)


def test_an_interrupted_run_goes_on(
    three_posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_PIECE", 1)
    seen: list[str] = []

    def failing(texts: list[str]) -> Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.extend(texts)
        return torch.ones(len(texts), 2)

    encoders: Any = {"text": Encoding(failing, name="letters"), "image": brightness}
    cache = FeatureCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        encode(MVSA(three_posts), encoders, cache=cache, batch_size=1)
    counting = Counting()
    encoders["text"] = Encoding(counting, name="letters")
    data = encode(MVSA(three_posts), encoders, cache=cache, batch_size=1)
    assert counting.seen == ["post number 3"]
    assert data.features["text"].tolist() == [[1, 1], [1, 1], [13, 51]]


def test_half_precision_becomes_float32(three_posts: Path) -> None:
    def half(images: list[Any]) -> Tensor:
        return brightness(images).bfloat16()

    result = encode(MVSA(three_posts), {"image": half, "text": Counting()})
    assert result.features["image"].dtype == torch.float32


def test_data_that_is_no_files(tmp_path: Path) -> None:
    class Signals:
        ids, labels, class_names = [7, 8, 9], [0, 1, 0], ("no", "yes")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {
                "inputs": {"audio": torch.full((4,), float(row)), "table": [row, 2.0 * row]},
                "available": {"audio": row != 1},
            }

    data = encode(
        Signals(), {"audio": torch.stack, "table": torch.tensor}, cache=FeatureCache(tmp_path)
    )
    assert data.features["audio"][:, 0].tolist() == [0, 0, 2]
    assert data.available["audio"].tolist() == [True, False, True]
    assert data.ids == (7, 8, 9)
    assert isinstance(data, CachedFeatures)


def test_errors(three_posts: Path, tmp_path: Path) -> None:
    dataset, cache = MVSA(three_posts), FeatureCache(tmp_path / "c")
    fine: Any = {"image": brightness}
    with pytest.raises(ValueError, match=r'encoders\["text"\] must have a name when a cache'):
        encode(dataset, {**fine, "text": Encoding(Counting(), nn.Identity().eval())}, cache=cache)
    with pytest.raises(ValueError, match=r'encoders\["text"\] is in training mode'):
        encode(dataset, {**fine, "text": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r'encoders\["text"\] is in training mode'):
        encode(dataset, {**fine, "text": Encoding(Counting(), nn.Linear(1, 1))})
    with pytest.raises(ValueError, match=r'encoders\["text"\] must return \(3, ...\), got \(2,'):
        encode(dataset, {**fine, "text": lambda texts: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"must return \(3, ...\), got list"):
        encode(dataset, {**fine, "text": lambda texts: texts})
    with pytest.raises(ValueError, match=r"must return \(3, D\) features, got dict"):
        encode(dataset, {**fine, "text": Encoding(tokens, name="tokens")}, cache=cache)
    with pytest.raises(ValueError, match=r'\["text"\] must give rows of one shape, got \(1,\)'):
        encode(
            dataset,
            {**fine, "text": lambda texts: torch.zeros(len(texts), len(texts))},
            batch_size=2,
        )
    with pytest.raises(ValueError, match="corruptions has the key 'audio'"):
        encode(dataset, fine, corruptions={"audio": TextCorruption()})
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        encode(dataset, fine, batch_size=0)
    data = encode(dataset, {**fine, "text": Counting()}, corruptions=CORRUPTIONS, seeds=(0, 1))
    disruption = Disruption(data.modalities, setting="C", seed=2)
    with pytest.raises(ValueError, match=r"nothing for the disruption seed 2"):
        list(data.batches(disruption, np.arange(3), 2))


def test_a_bar_on_terminals_only(three_posts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    encode(MVSA(three_posts), {"text": Counting(), "image": brightness}, progress=True)
    assert capsys.readouterr().err == ""
