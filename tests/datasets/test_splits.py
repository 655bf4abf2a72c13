import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustfusion.datasets import Splits, load_splits, stratified_split

LABELS = ["a"] * 60 + ["b"] * 25 + ["c"] * 15
IDS = [str(number) for number in range(100)]


def parts(splits: Splits) -> list[tuple[str, ...]]:
    return [splits.train, splits.val, splits.open_test("a test of the splits")]


def test_a_split_is_a_partition_with_the_shares_asked_for() -> None:
    splits = stratified_split(LABELS, (0.6, 0.2, 0.2), seed=3, ids=IDS)
    assert sorted(sum(parts(splits), ()), key=int) == IDS
    label_of = dict(zip(IDS, LABELS, strict=True))
    counts = [Counter(label_of[i] for i in ids) for ids in parts(splits)]
    assert counts == [
        {"a": 36, "b": 15, "c": 9},
        {"a": 12, "b": 5, "c": 3},
        {"a": 12, "b": 5, "c": 3},
    ]
    assert splits.source == "stratified_split(fractions=(0.6, 0.2, 0.2), seed=3)"


@given(
    labels=st.lists(st.sampled_from("abc"), min_size=12, max_size=60),
    seed=st.integers(0, 5),
    cut=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.4, 0.0, 0.6)]),
)
def test_each_class_is_within_one_of_its_share(
    labels: list[str], seed: int, cut: tuple[float, float, float]
) -> None:
    ids = [str(number) for number in range(len(labels))]
    try:
        splits = stratified_split(labels, cut, seed=seed, ids=ids)
    except ValueError as error:
        assert "must not be empty" in str(error)  # noqa: PT017
        return
    label_of = dict(zip(ids, labels, strict=True))
    for ids_of_part, share in zip(parts(splits), cut, strict=True):
        counts = Counter(label_of[i] for i in ids_of_part)
        for label, total in Counter(labels).items():
            assert abs(counts[label] - share * total) <= 1


def test_the_order_of_the_posts_does_not_matter_and_the_seed_does() -> None:
    first = stratified_split(LABELS, seed=0, ids=IDS)
    backwards = stratified_split(LABELS[::-1], seed=0, ids=IDS[::-1])
    assert set(first.train) == set(backwards.train)
    assert first.hash == backwards.hash
    assert first.hash != stratified_split(LABELS, seed=1, ids=IDS).hash
    # Frozen: published results name this hash.
    assert first.hash == "7462f9a13450d84f"


def test_groups_stay_together() -> None:
    groups = [number // 4 for number in range(100)]
    splits = stratified_split(LABELS, (0.5, 0.25, 0.25), seed=0, ids=IDS, groups=groups)
    for group in range(25):
        assert len({splits.split_of(str(4 * group + k)) for k in range(4)}) == 1
    assert all(
        abs(size - 100 * f) <= 8
        for size, f in zip(splits.sizes.values(), (0.5, 0.25, 0.25), strict=True)
    )


def test_labels_and_groups_may_be_tensors() -> None:
    labels, groups = [number % 3 for number in range(100)], [number // 2 for number in range(100)]
    plain = stratified_split(labels, seed=0, ids=IDS, groups=groups)
    tensors = (torch.tensor(labels), torch.tensor(groups))
    found = stratified_split(tensors[0], seed=0, ids=IDS, groups=tensors[1])
    assert found.hash == plain.hash


def test_a_split_file_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text('{"train": ["1"], "val": [], "test": ["2"]}', encoding="utf-8-sig")
    assert load_splits(path).sizes == {"train": 1, "val": 0, "test": 1}


def test_the_test_split_wants_a_reason() -> None:
    splits = Splits(["1"], ["2"], ["3"])
    assert not hasattr(splits, "test")
    with pytest.raises(AttributeError, match=r"call splits\.open_test\(reason\)"):
        _ = splits.test
    with pytest.raises(ValueError, match="reason must say"):
        splits.open_test("  ")
    assert splits.openings == []
    assert splits.open_test("Table 1") == ("3",)
    assert splits.openings == ["Table 1"]
    assert "'3'" not in repr(splits)
    assert splits.ids == ("1", "2", "3")
    assert [splits.split_of(i) for i in "1234"] == ["train", "val", "test", None]


def test_published_splits_by_file(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": [1, 2], "dev": ["3"], "test": ["4"]}))
    splits = load_splits(path)
    assert parts(splits) == [("1", "2"), ("3",), ("4",)]
    assert splits.source == "splits.json"
    splits.save(tmp_path / "copy.json")
    assert load_splits(tmp_path / "copy.json").hash == splits.hash
    # The hash sees which split an id is in, not the order.
    assert Splits(["2", "1"], ["3"], ["4"]).hash == splits.hash
    assert Splits(["1", "2"], ["4"], ["3"]).hash != splits.hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "must be a JSON file of splits"),
        ("[]", "must hold an object of lists, got list"),
        ('{"train": ["1"], "test": ["2"]}', "must hold lists under"),
        ('{"train": "1", "val": [], "test": ["2"]}', "must hold lists under"),
        ('{"train": ["1"], "val": [], "test": []}', "must not be empty"),
        ('{"train": ["1"], "dev": [], "val": ["3"], "test": ["2"]}', "must hold lists under"),
        ('{"train": [["1"]], "val": [], "test": ["2"]}', r"ids under 'train', got \['1'\]"),
        ('{"train": ["1"], "val": [], "test": [2.5]}', "ids under 'test', got 2.5"),
        ('{"train": ["1"], "val": ["1"], "test": ["2"]}', "id '1' is in train and again in val"),
    ],
)
def test_bad_split_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_splits(path)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="labels must have one entry for each id: 100 for 99"):
        stratified_split(LABELS, seed=0, ids=IDS[1:])
    with pytest.raises(ValueError, match="groups must have one entry"):
        stratified_split(LABELS, seed=0, ids=IDS, groups=[1])
    with pytest.raises(ValueError, match="three shares that add up to 1"):
        stratified_split(LABELS, (0.8, 0.1, 0.2), seed=0, ids=IDS)
    with pytest.raises(ValueError, match="three shares that add up to 1"):
        stratified_split(LABELS, (float("nan"), 0.1, 0.2), seed=0, ids=IDS)
    with pytest.raises(ValueError, match="ids must be unique: 1 of 100 differ"):
        stratified_split(LABELS, seed=0, ids=["1"] * 100)
    with pytest.raises(TypeError, match="train must hold ids as str, got 1"):
        Splits([1], [], ["2"])  # type: ignore[list-item]


def test_json_nested_beyond_all_measure(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="path must be a JSON file of splits"):
        load_splits(path)
