"""Tables of posts from anywhere: read with distrust, written whole or not at all."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from main_job.encoders import SetupError
from robustfusion.datasets.reading import BadFileError, _decode

MAX_TEXT = 100_000  # characters; a post of a social network has some hundred
MAX_BYTES = 50_000_000  # of a picture's file
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a CSV or Parquet file as one dictionary a row."""
    try:
        if path.suffix.lower() == ".parquet":
            return list(_pyarrow().parquet.read_table(path).to_pylist())
        csv.field_size_limit(sys.maxsize)  # one cell that is too long is one bad row
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or ())
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two columns have the name {name!r}")
            return list(reader)
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(f"{path} cannot be read as a table ({reason})") from error


def read_picture(cell: str, root: Path, *, confined: bool = True) -> Any:
    """Open the picture that a cell names.

    Args:
        cell: a path, relative to ``root`` or absolute.
        root: the folder that it may not leave, by ``..`` or by a symbolic link.
        confined: False opens files anywhere.

    Raises:
        BadFileError: the reason, the same for all files outside whether they exist or not.
    """
    path = Path(os.path.normpath(root.absolute() / cell))
    if confined:
        # By its letters first: nothing outside is looked at, not even for a symbolic link.
        inside = path.is_relative_to(os.path.normpath(root.absolute()))
        try:
            inside = inside and path.resolve().is_relative_to(root.resolve())
        except (OSError, RuntimeError, ValueError):  # a circle of links, a name too long
            raise BadFileError(f"{path.name} cannot be read") from None
        if not inside:
            raise BadFileError(f"{path.name} lies outside of the folder of pictures")
    try:
        real = path.resolve(strict=True)
        if not real.is_file():  # a FIFO would wait for a writer, a device never ends
            raise BadFileError(f"{path.name} is no regular file")
        with real.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadFileError(f"{path.name} is missing") from None
    except (OSError, RuntimeError) as error:
        raise BadFileError(f"{path.name} cannot be read") from error
    if len(content) > MAX_BYTES:
        raise BadFileError(f"{path.name} has more than {MAX_BYTES // 10**6} MB")
    return _decode(content, path.name, small=False)


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
    if not isinstance(cell, str):
        return cell
    cell = cell[:MAX_TEXT]
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
