"""Rows of a table file, as mappings, whatever the format: CSV, TSV, JSON lines or Parquet."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustfusion.datasets.parquet import ParquetTable
from robustfusion.datasets.text_gate import Gate, decode, read_cells

Row = dict[str, Any]


@dataclass
class Table:
    """The rows of a file, each a mapping or the reason why it is none, and how they were read."""

    rows: list[Row | str]
    columns: tuple[str, ...]
    gate: Gate = field(default_factory=Gate)


def read_table(path: Path, encoding: str | None = None) -> Table:
    """Read all rows of a table; the suffix of the file decides the format."""
    if not path.is_file():
        raise FileNotFoundError(f"path must be a table, {path} is no regular file")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise ValueError(f"path must end in one of {', '.join(_READERS)}, got {path.name}")
    gate = Gate()
    rows = list(_READERS[suffix](path, encoding, gate))
    columns = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
    return Table(rows, tuple(columns), gate)


def _csv(path: Path, encoding: str | None, gate: Gate) -> Iterator[Row | str]:
    lines, broken = decode(path.read_bytes(), path.name, encoding)
    # One huge cell shall be one bad row and not the end of the table. The limit is the largest
    # that fits into a long on Windows.
    before = csv.field_size_limit(2**31 - 1)
    try:
        names, rows = read_cells(lines, broken, gate, tabs=path.suffix.lower() == ".tsv")
        if len(set(names)) < len(names):
            raise ValueError(f"{path.name} must not name a column twice, got {names}")
        for cells in rows:
            if isinstance(cells, str):
                yield cells
            else:
                yield dict(zip(names, map(gate.clean, cells), strict=True))
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path, encoding: str | None, gate: Gate) -> Iterator[Row | str]:
    lines, broken = decode(path.read_bytes(), path.name, encoding)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            gate.lines["blank"] += 1
            continue
        row = (
            _json_row(line.lstrip("\ufeff"))
            if number not in broken
            else f"line {number} is not UTF-8"
        )
        gate.lines["bad rows" if isinstance(row, str) else "rows"] += 1
        yield gate.clean(row)


def _json_row(line: str) -> Row | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"the line is no JSON: {error}"[:200]
    return row if isinstance(row, dict) else f"expected an object, got {line.strip()[:40]}"


def _parquet(path: Path, encoding: str | None, gate: Gate) -> Iterator[Row | str]:
    return map(gate.clean, ParquetTable(path).rows())


_READERS = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}


def near_equal(values: Counter[str]) -> list[str]:
    """Describe values that differ only by case, blanks or a trailing ".0"."""
    groups: dict[str, list[str]] = {}
    for value in values:
        groups.setdefault("".join(value.casefold().split()).removesuffix(".0"), []).append(value)
    return [
        ", ".join(f"{value!r} ({values[value]})" for value in group)
        for group in groups.values()
        if len(group) > 1
    ]
