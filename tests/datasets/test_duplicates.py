from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustfusion.datasets import MVSA, Splits, normalize_text, stratified_split
from robustfusion.datasets.duplicates import connect, near_groups
from robustfusion.datasets.pictures import fingerprint

WriteMVSA = Callable[..., Path]


@pytest.mark.parametrize(
    "text",
    [
        "RT @bob: Great day! http://t.co/1",
        "great day",
        "rt @amy_1 @joe great   DAY... https://t.co/xyz?a=1",
        "Great day www.example.org @bob",
    ],
)
def test_texts_equal_up_to_retweets_handles_and_urls(text: str) -> None:
    assert normalize_text(text) == "great day"


@pytest.mark.parametrize("text", ["great days", "#great day", "art great day", "day great"])
def test_texts_that_differ(text: str) -> None:
    assert normalize_text(text) != "great day"


def test_near_groups_against_pairwise_counting() -> None:
    random = np.random.default_rng(0)
    bases = random.random((6, 256)) < 0.5
    prints = {}
    for number in range(40):
        bits = bases[number % 6].copy()
        bits[random.choice(256, int(random.integers(0, 9)), replace=False)] ^= True
        prints[str(number)] = bits
    pairs = [
        (a, b) for a, b in combinations(prints, 2) if int((prints[a] != prints[b]).sum()) <= 8
    ]
    slow: list[set[str]] = []
    for a, b in pairs:
        touching = [group for group in slow if a in group or b in group]
        slow = [group for group in slow if group not in touching]
        slow.append(set().union({a, b}, *touching))
    fast = near_groups(prints, tolerance=8)
    assert {frozenset(group) for group in fast} == {frozenset(group) for group in slow}
    assert len(fast) >= 6
    assert near_groups({**prints, "flat": None}, tolerance=8) == fast
    assert near_groups({"one": bases[0]}) == []


def test_connect_follows_chains_in_any_order() -> None:
    ids = ["a", "b", "c", "d", "e"]
    groups = connect(ids, [("d", "e"), ("a", "b"), ("e", "b")])
    assert groups == {"a": "a", "b": "a", "c": "c", "d": "a", "e": "a"}


def test_a_fingerprint_survives_scaling_and_recompression(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    coarse = [random.integers(0, 255, (9, 9, 3), np.uint8) for _ in range(2)]
    one, other = (Image.fromarray(c).resize((200, 200), Image.Resampling.BICUBIC) for c in coarse)
    one.resize((120, 120)).save(tmp_path / "small.jpg", quality=50)
    base, far = fingerprint(one), fingerprint(other)
    with Image.open(tmp_path / "small.jpg") as image:
        small = fingerprint(image)
    assert base is not None
    assert far is not None
    assert small is not None
    assert (base != small).sum() <= 8
    assert (base != far).sum() > 60
    assert fingerprint(Image.new("RGB", (50, 50), "navy")) is None


def duplicated(write_mvsa: WriteMVSA) -> MVSA:
    labels = ["positive,positive"] * 4 + ["negative,negative"] * 4
    root = write_mvsa({str(number): label for number, label in enumerate(labels, start=1)})
    data = root / "data"
    (data / "1.txt").write_text("RT @a: the same words http://t.co/1")
    (data / "5.txt").write_text("The same words")
    (data / "2.txt").write_text("@only http://t.co/2")  # nothing of its own: like no other
    (data / "6.txt").write_text("RT @other")
    (data / "7.jpg").write_bytes((data / "3.jpg").read_bytes())
    with Image.open(data / "4.jpg") as image:
        image.resize((40, 40)).save(data / "8.jpg", "JPEG", quality=80)
    return MVSA(root)


def test_report_finds_duplicates_across_splits(write_mvsa: WriteMVSA) -> None:
    dataset = duplicated(write_mvsa)
    report = dataset.report(Splits(["1", "2", "3", "4"], ["6"], ["5", "7", "8", "9"]))
    (text,), (image,), (near,) = (report.groups(k) for k in ("text", "image", "near image"))
    assert (text.ids, text.labels) == (("1", "5"), ("positive", "negative"))
    assert text.splits == ("train", "test")
    assert text.crosses_splits
    assert text.labels_conflict
    assert image.ids == ("3", "7")
    assert near.ids == ("4", "8")
    assert [report.leaked(kind) for kind in ("text", "image", "near image")] == [1, 1, 1]
    assert report.leaked("text", "val") == 0
    assert report.leaked("text", "test", into="val") == 0
    assert report.unknown_split_ids == ("9",)
    page = str(report)
    assert "named by the splits, not in the data set: 1 (9)" in page
    assert "duplicates by text: 1 groups, 2 posts, 1 groups with conflicting labels" in page
    assert "1 of 3 test posts occur in train" in page


def test_without_splits_nothing_is_said_of_them(write_mvsa: WriteMVSA) -> None:
    report = duplicated(write_mvsa).report()
    assert len(report.duplicates) == 3
    assert not any(group.crosses_splits for group in report.duplicates)
    assert "test posts" not in str(report)


def test_duplicate_groups_keep_duplicates_in_one_split(write_mvsa: WriteMVSA) -> None:
    dataset = duplicated(write_mvsa)
    groups = dataset.duplicate_groups()
    assert groups == ["1", "2", "3", "4", "1", "6", "3", "4"]
    for seed in range(5):
        splits = stratified_split(
            dataset.labels, (0.5, 0.0, 0.5), seed=seed, ids=dataset.ids, groups=groups
        )
        assert not any(group.crosses_splits for group in dataset.report(splits).duplicates)
