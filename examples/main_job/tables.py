"""Predictions as a table: written whole or not at all, and harmless in a spreadsheet."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from main_job.encoders import SetupError

WIDEST = 100_000  # characters of a cell; what reads a CSV takes no more by default
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


@contextmanager
def table_writer(path: Path, names: Sequence[str]) -> Iterator[Any]:
    """Yield a function that takes rows; the table is written beside and renamed at the end."""
    if path.is_dir():
        raise SetupError(f"{path} is a folder: give the name of a file")
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".parquet":
            arrow, kept = _pyarrow(), []
            yield kept.extend
            columns = {name: [row.get(name) for row in kept] for name in names}
            arrow.parquet.write_table(arrow.table(columns), beside)
        else:
            with beside.open("x", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow([harmless(name) for name in names])
                yield lambda rows: writer.writerows(
                    [[harmless(row.get(name)) for name in names] for row in rows]
                )
        beside.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError(f"{path} cannot be written ({reason})") from error
    finally:
        beside.unlink(missing_ok=True)


def harmless(cell: Any) -> Any:
    """Return a cell for a CSV: no formula of a spreadsheet, and no longer than readers take."""
    if isinstance(cell, bytes | dict | list):  # a picture inside a Parquet table, say
        return None
    if not isinstance(cell, str):
        return cell
    cell = cell[:WIDEST]
    return f"'{cell}" if cell.startswith(FORMULA) and not _is_number(cell) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError("Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow
