import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustfusion.datasets import MVSA
from robustfusion.datasets.labels import SENTIMENTS, combine
from robustfusion.disruption import collate

WriteMVSA = Callable[..., Path]


def slow_vote(votes: list[str]) -> str | None:
    """An independent reading of the rule: the label that two of three annotators share."""
    for first in range(len(votes)):
        for second in range(first + 1, len(votes)):
            if votes[first] == votes[second]:
                return votes[first]
    return votes[0] if len(votes) == 1 else None


JOINT = {  # the table of Xu and Mao, by hand: (text, image) -> label
    ("positive", "positive"): "positive",
    ("positive", "neutral"): "positive",
    ("positive", "negative"): None,
    ("neutral", "positive"): "positive",
    ("neutral", "neutral"): "neutral",
    ("neutral", "negative"): "negative",
    ("negative", "positive"): None,
    ("negative", "neutral"): "negative",
    ("negative", "negative"): "negative",
}


@pytest.mark.parametrize("pair", list(product(SENTIMENTS, SENTIMENTS)))
def test_rules(pair: tuple[str, str]) -> None:
    assert combine(*pair, "joint") == JOINT[pair]
    assert combine(*pair, "equal") == (pair[0] if pair[0] == pair[1] else None)


def test_single_reads_every_pair_of_labels(write_mvsa: WriteMVSA) -> None:
    pairs = {str(number): pair for number, pair in enumerate(JOINT, start=1)}
    root = write_mvsa({post_id: ",".join(pair) for post_id, pair in pairs.items()})
    joint, equal = MVSA(root), MVSA(root, label_rule="equal")
    assert {p.id: p.label_name for p in joint.posts} == {
        post_id: JOINT[pair] for post_id, pair in pairs.items() if JOINT[pair]
    }
    assert equal.ids == ["1", "5", "9"]
    assert [equal.class_names[label] for label in equal.labels] == list(SENTIMENTS)
    report = joint.report()
    assert report.rows == 9
    assert report.posts + len(report.problems) == 9
    assert {p.id for p in report.problems if p.kind == "label rule"} == {"3", "7"}
    assert "dropped by the joint rule" in str(report)
    assert "dropped by the equal rule" in str(equal.report())


def test_multiple_takes_the_majority_of_each_side(write_mvsa: WriteMVSA) -> None:
    triples = list(product(SENTIMENTS, repeat=3))
    rows = {}
    expected = {}
    for number, (texts, images) in enumerate(product(triples[1::2], triples[::5]), start=1):
        rows[str(number)] = "\t".join(f"{t},{i}" for t, i in zip(texts, images, strict=True))
        text, image = slow_vote(list(texts)), slow_vote(list(images))
        label = JOINT[text, image] if text and image else None
        if label:
            expected[str(number)] = label
    dataset = MVSA(write_mvsa(rows))
    assert {p.id: p.label_name for p in dataset.posts} == expected
    report = dataset.report()
    assert report.name.startswith("MVSA-Multiple")
    assert report.rows == len(rows) == report.posts + len(report.problems)
    assert any("no majority for the text" in p.reason for p in report.problems)
    assert any("no majority for the image" in p.reason for p in report.problems)


def test_sample(three_posts: Path) -> None:
    dataset = MVSA(three_posts)
    sample = dataset[1]
    image = sample["inputs"].pop("image")
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (48, 48))
    assert sample == {
        "id": "2",
        "inputs": {"text": "post number 2"},
        "available": {"image": True, "text": True},
        "label": 2,
        "label_name": "negative",
    }
    assert repr(dataset) == "MVSA-Single, label_rule='joint', on_bad='skip': 3 posts"


def test_transform_and_collate(three_posts: Path) -> None:
    (three_posts / "data" / "1.jpg").unlink()
    dataset = MVSA(three_posts, on_bad="missing", image_transform=lambda image: image.size)
    batch = collate([dataset[index] for index in range(3)])
    assert batch["id"] == ["1", "2", "3"]
    assert batch["inputs"]["image"] == [(64, 64), (48, 48), (48, 48)]
    assert batch["inputs"]["text"][0] == "post number 1"
    assert torch.equal(batch["available"]["image"], torch.tensor([False, True, True]))
    assert batch["available"]["text"].dtype == torch.bool
    assert torch.equal(batch["label"], torch.tensor([0, 2, 1]))


def test_a_missing_image_is_a_black_placeholder(three_posts: Path) -> None:
    (three_posts / "data" / "1.jpg").write_bytes(b"not an image")
    sample = MVSA(three_posts, on_bad="missing")[0]
    assert sample["available"] == {"image": False, "text": True}
    assert sample["inputs"]["image"].getextrema() == ((0, 0),) * 3


def test_available_says_what_the_samples_say(three_posts: Path) -> None:
    (three_posts / "data" / "2.jpg").unlink()
    (three_posts / "data" / "3.txt").unlink()
    for verify in (True, False):
        dataset = MVSA(three_posts, on_bad="missing", verify=verify).select(["3", "1", "2"])
        for modality, mask in dataset.available.items():
            assert mask.dtype == torch.bool
            samples = [dataset[index] for index in range(3)]
            assert mask.tolist() == [sample["available"][modality] for sample in samples]
    assert dataset.available["image"].tolist() == [True, True, False]


def test_select(three_posts: Path) -> None:
    dataset = MVSA(three_posts)
    chosen = dataset.select(["3", "1"])
    assert chosen.ids == ["3", "1"]
    assert chosen.labels == [1, 0]
    assert chosen[0]["id"] == "3"
    assert len(dataset) == 3
    with pytest.raises(ValueError, match=r"1 ids are not in the data set, \['9'\]"):
        dataset.select(["1", "9"])
    assert dataset.select(["1", "9"], absent="ignore").ids == ["1"]


def test_lazy_decoding(three_posts: Path) -> None:
    dataset = MVSA(three_posts, verify=False)
    (three_posts / "data" / "2.jpg").write_bytes(b"broken since")
    assert dataset[0]["id"] == "1"
    with pytest.raises(ValueError, match=r"post '2': 2.jpg cannot be decoded"):
        dataset[1]
    late = MVSA(three_posts, verify=False, on_bad="missing")
    assert late[1]["available"] == {"image": False, "text": True}
    assert "not checked" in str(dataset.report())
    (three_posts / "data" / "2.txt").unlink()
    with pytest.raises(ValueError, match="neither image nor text"):
        late[1]


def test_verify_false_still_finds_absent_files(three_posts: Path) -> None:
    (three_posts / "data" / "2.jpg").unlink()
    assert MVSA(three_posts, verify=False).ids == ["1", "3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"label_rule": "both"}, "label_rule must be"), ({"on_bad": "drop"}, "on_bad must be")],
)
def test_unknown_options(three_posts: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MVSA(three_posts, **options)  # type: ignore[arg-type]


def test_missing_folders(tmp_path: Path, three_posts: Path) -> None:
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        MVSA(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="root must hold the folder 'data'"):
        MVSA(tmp_path / "empty")
    (three_posts / "labelResultAll.txt").unlink()
    with pytest.raises(FileNotFoundError, match="label file"):
        MVSA(three_posts)


def test_report_counts_classes_and_unlabelled_files(three_posts: Path) -> None:
    (three_posts / "data" / "77.txt").write_text("nobody labelled me")
    report = MVSA(three_posts).report()
    assert Counter(report.class_counts) == Counter(positive=1, neutral=1, negative=1)
    assert report.files_without_row == ("77",)
    assert "files without a label row: 1 (77)" in str(report)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_digests_do_not_depend_on_verification(three_posts: Path, modality: str) -> None:
    (three_posts / "data" / "2.jpg").write_bytes(b"no image")
    (three_posts / "data" / "3.txt").write_bytes(b"")
    early = MVSA(three_posts, on_bad="missing")
    late = MVSA(three_posts, on_bad="missing", verify=False)
    for index in range(3):
        digest = late.content_digest(index, modality)
        if (index, modality) == (1, "image"):  # read, and not decoded
            assert digest == hashlib.sha256(b"no image").hexdigest()
        else:
            assert digest == early.content_digest(index, modality)
    assert early.content_digest(1, "image") is early.content_digest(2, "text") is None


def test_without_pillow_the_extra_is_named(
    three_posts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "robustfusion\[data\]"'):
        MVSA(three_posts)
