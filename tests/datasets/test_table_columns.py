"""Columns of a table as a vector: numbers of any size, words, gaps, and what is neither."""

import json
from typing import Any

import pytest
import torch

from robustfusion.datasets import TableColumns


def test_numbers_of_any_size_stay_finite() -> None:
    rows: list[dict[str, Any]] = [{"x": x} for x in (1e300, -1e300, 5e299, "n/a", None, 0)] * 5
    columns = TableColumns(["x"])
    with pytest.raises(ValueError, match="must be fitted"):
        columns.dim  # noqa: B018
    columns.fit([row for row in rows if row["x"] != "n/a"])
    vectors = torch.stack([columns(row) for row in rows])
    assert vectors.isfinite().all()
    assert vectors[3].tolist() == vectors[4].tolist() == [0, 1]
    assert columns({"x": "-inf"}).tolist() == [0, 1]
    assert columns({"x": 1e308}).tolist() == [10, 0]


def test_a_constant_column_and_few_words_that_are_no_numbers() -> None:
    rows = [{"x": 7, "y": n if n else "many"} for n in range(20)]
    columns = TableColumns(["x", "y"]).fit(rows)
    assert columns.entries == ("x", "x missing", "y", "y missing")
    assert columns({"x": 7, "y": "many"}).tolist() == [0, 0, 0, 1]


def test_what_is_neither_number_nor_word() -> None:
    rows = [{"note": f"text number {n}"} for n in range(80)]
    with pytest.raises(ValueError, match="'note' holds 80 different words in 80 rows"):
        TableColumns(["note"]).fit(rows)
    with pytest.raises(ValueError, match="'gone' is empty in all 80 rows"):
        TableColumns(["gone"]).fit(rows)
    for names in ("price", [], ["a", "a"]):
        with pytest.raises(ValueError, match="names must be"):
            TableColumns(names)


def test_the_state_is_plain_and_whole() -> None:
    rows = [{"x": n, "w": "ab"[n % 2], "flag": bool(n % 2)} for n in range(9)]
    columns = TableColumns(["x", "w", "flag"]).fit(rows)
    assert columns.state is not None
    again = TableColumns.from_state(json.loads(json.dumps(columns.state)))
    assert again.entries == columns.entries
    assert all(torch.equal(again(row), columns(row)) for row in rows)
    assert "flag True" in again.entries
