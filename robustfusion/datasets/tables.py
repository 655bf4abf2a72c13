"""Rows of a table file, as mappings, whatever the format: CSV, TSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustfusion._optional import optional

Row = dict[str, Any]


def read_table(path: Path) -> tuple[list[tuple[int, Row | str]], tuple[str, ...]]:
    """Return (row number from 1, row or error message) for each row, and the column names.

    The suffix of the file decides the format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path must be a table, {path} is no regular file")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise ValueError(f"path must end in one of {', '.join(_READERS)}, got {path.name}")
    rows = list(enumerate(_READERS[suffix](path), start=1))
    columns = dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row)
    return rows, tuple(columns)


def _csv(path: Path) -> Iterator[Row | str]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # One huge cell shall be one bad row and not the end of the table. The limit is the largest
    # that fits into a long on Windows.
    before = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            names = next(reader, [])
            if len(set(names)) < len(names):
                raise ValueError(f"{path.name} must not name a column twice, got {names}")
            for cells in reader:
                if len(cells) == len(names):
                    yield dict(zip(names, cells, strict=True))
                elif cells:  # an empty line is no row
                    yield f"expected {len(names)} cells, got {len(cells)}"
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path) -> Iterator[Row | str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"the line is no JSON: {error}"[:200]
                continue
            yield row if isinstance(row, dict) else f"expected an object, got {line.strip()[:40]}"


def _parquet(path: Path) -> Iterator[Row | str]:
    parquet = optional("pyarrow.parquet", "Parquet needs pyarrow", "table")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise ValueError(f"{path.name} cannot be read as Parquet: {error}"[:300]) from error


_READERS = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
