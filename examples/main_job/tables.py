"""Write predictions as a table that is complete or absent, and safe in a spreadsheet."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from main_job.encoders import SetupError

MAX_CELL = 100_000  # characters; CSV readers refuse longer cells by default
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs cells that begin so


@contextmanager
def table_writer(path: Path, names: Sequence[str]) -> Iterator[Any]:
    """Yield a function that takes rows; a temporary file is renamed to ``path`` at the end."""
    if path.is_dir():
        raise SetupError(f"{path} is a folder: give the name of a file")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".parquet":
            arrow, rows = _pyarrow(), []
            yield rows.extend
            columns = {name: [row.get(name) for row in rows] for name in names}
            arrow.parquet.write_table(arrow.table(columns), temporary)
        else:
            with temporary.open("x", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow([harmless(name) for name in names])
                yield lambda rows: writer.writerows(
                    [[harmless(row.get(name)) for name in names] for row in rows]
                )
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError(f"{path} cannot be written ({reason})") from error
    finally:
        temporary.unlink(missing_ok=True)


def harmless(cell: Any) -> Any:
    """Return a cell that is safe in a CSV: not a formula, and not too long for readers."""
    if isinstance(cell, bytes | dict | list):  # for example an image inside a Parquet table
        return None
    if not isinstance(cell, str):
        return cell
    cell = cell[:MAX_CELL]
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
