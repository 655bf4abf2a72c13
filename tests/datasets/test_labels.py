"""Labels that no reader can use: the error names the column, the count and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from robustfusion.datasets import PostTable


def read(folder: Path, rows: list[dict[str, Any]], **options: Any) -> PostTable:
    path = folder / "posts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{n}", **row}) for n, row in enumerate(rows)))
    return PostTable(path, image_column=None, **options)


def test_a_table_without_labels_is_told_the_road(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"label": None}, {"label": ""}, {"label": " "}]
    with pytest.raises(ValueError, match="no label") as error:
        read(tmp_path, rows)
    for part in ("column 'label'", "3 of 3 rows", "label_column=None reads posts without labels"):
        assert part in str(error.value)
    posts = read(tmp_path, rows, label_column=None)
    assert len(posts) == 3
    assert posts.class_names == ()
    assert "label" not in posts[0]
    with pytest.raises(ValueError, match="3 of 3 posts have no label"):
        _ = posts.labels


@pytest.mark.parametrize("label", [["a"], ["a", "b"], {"a": 1}])
def test_lists_of_labels_are_told(tmp_path: Path, label: Any) -> None:
    with pytest.raises(ValueError, match="the column 'label' holds") as error:
        read(tmp_path, [{"label": label}] * 4)
    assert "4 of 4 rows" in str(error.value)
    assert "one class a row is read" in str(error.value)


def test_an_empty_split_says_what_was_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"label": n % 2, "split": "train"} for n in range(4)]
    rows += [{"label": None, "split": "test"}] * 3
    posts = read(tmp_path, rows)
    with pytest.raises(ValueError, match="no post is in the split test: 3 rows name it") as error:
        _ = posts.splits
    assert "row 5: there is no label (column 'label')" in str(error.value)
    with pytest.raises(ValueError, match="no post is in the split test: 0 rows name it"):
        _ = read(tmp_path, rows[:4]).splits
