"""Parquet files whose pictures stay in the file until they are asked for."""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from robustfusion._optional import optional
from robustfusion.datasets.pictures import BadFileError

_GROUPS = 2  # row groups of a column that stay in memory


class ParquetCell(NamedTuple):
    """A cell with binary content: it is read with its row group when it is asked for."""

    file: "ParquetTable"
    column: str
    group: int
    row: int

    def read(self) -> Any:
        """Return the content of the cell."""
        return self.file.read(self)


class ParquetTable:
    """The rows of a Parquet file, opened by each process on its own.

    Memory grows with the columns that are not binary and with the largest row group, not with the
    file: write it in row groups of some hundred pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.__setstate__({"path": path})

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # no worker gets what this process has read

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._lock, self._process, self._file = Lock(), -1, None
        self._columns: dict[tuple[int, str], Any] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as mappings, with a :class:`ParquetCell` for each binary cell."""
        try:
            file = self._open()
            schema = file.schema_arrow
            large = [field.name for field in schema if _is_binary(field.type)]
            small = [name for name in schema.names if name not in large]
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                cells = file.read_row_group(group, columns=small).to_pylist() if small else []
                for row in range(count):
                    yield {
                        name: cells[row][name]
                        if name not in large
                        else ParquetCell(self, name, group, row)
                        for name in schema.names
                    }
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise ValueError(
                f"{self.path.name} cannot be read as Parquet: {error}"[:300]
            ) from error

    def read(self, cell: ParquetCell) -> Any:
        """Return the content of a cell."""
        key = (cell.group, cell.column)
        try:
            with self._lock:
                file = self._open()
                if key not in self._columns:
                    while len(self._columns) >= _GROUPS:
                        del self._columns[next(iter(self._columns))]
                    table = file.read_row_group(cell.group, columns=[cell.column])
                    self._columns[key] = table.column(0)
                return self._columns[key][cell.row].as_py()
        except (OSError, ValueError) as error:
            raise BadFileError(f"{self.path.name} cannot be read: {error}"[:200]) from error

    def _open(self) -> Any:
        if self._process != os.getpid():  # an open file does not survive a fork
            parquet = optional("pyarrow.parquet", "Parquet needs pyarrow", "table")
            self._file, self._process = parquet.ParquetFile(self.path), os.getpid()
            self._columns = {}
        return self._file


def _is_binary(kind: Any) -> bool:
    """Tell whether a type of Arrow is binary, or has such parts."""
    if "binary" in str(kind).partition("<")[0]:
        return True
    return any(_is_binary(kind.field(index).type) for index in range(kind.num_fields))
