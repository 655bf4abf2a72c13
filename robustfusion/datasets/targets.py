"""Targets in the cells of a table: a class, several labels, or numbers."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from robustfusion._text import is_missing
from robustfusion.datasets.table_columns import as_number
from robustfusion.tasks import Task

_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")
UNKNOWN = -1.0  # in a column of a label, as an empty cell


class TargetReader:
    """Reads the target of each row of a table.

    Args:
        columns: the columns of the target.
        task: what they hold.
        separator: what stands between the labels of a cell, "" for one column a label.

    Raises:
        ValueError: if columns, task and separator do not fit; the message names a task that would.
    """

    def __init__(self, columns: Sequence[str], task: Task, separator: str) -> None:
        if task not in get_args(Task):
            raise ValueError(f"task must be one of {get_args(Task)}, got {task!r}")
        if separator and task != "multilabel":
            raise ValueError(f"label_sep is for task='multilabel', got task={task!r}")
        if separator and len(columns) > 1:
            raise ValueError(
                f"label_sep takes one column of labels, got {len(columns)}: {list(columns)}"
            )
        if task == "multiclass" and len(columns) > 1:
            raise ValueError(
                f"label_column names {len(columns)} columns, and task='multiclass' reads one: use "
                "task='multilabel' or 'regression'"
            )
        self.columns, self.task, self.separator = tuple(columns), task, separator
        self.lists = task == "multilabel" and len(columns) == 1  # a cell may hold several labels

    def read(self, row: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the target of a row, and why there is none, "" for nothing.

        The target is a tuple of names, where a cell holds several labels, else one of numbers.
        """
        if self.lists:
            return self._names(row.get(self.columns[0]))
        values = [self._value(row.get(name)) for name in self.columns]
        for name, value in zip(self.columns, values, strict=True):
            if value is None:
                return None, self._refused(name, row[name])
        if all(map(math.isnan, values)):  # type: ignore[arg-type]
            what = "number" if self.task == "regression" else "label"
            return None, f"there is no {what} (column {', '.join(map(repr, self.columns))})"
        return tuple(values), ""

    def finish(self, targets: Sequence[Any]) -> tuple[tuple[str, ...], list[tuple[float, ...]]]:
        """Return the names of the labels or numbers, and the targets as rows of numbers."""
        if not self.lists:
            return self.columns, list(targets)
        if not self.separator and max(map(len, targets)) < 2:
            raise ValueError(
                f"no cell of the column {self.columns[0]!r} is a list of labels: name what stands "
                "between them with label_sep, or use task='multiclass'"
            )
        names = tuple(sorted({name for names in targets for name in names}))
        return names, [tuple(float(name in t) for name in names) for t in map(set, targets)]

    def _names(self, cell: Any) -> tuple[Any, str]:
        if isinstance(cell, list | tuple):  # an empty list says that no label applies
            parts = [str(part).strip() for part in cell if not is_missing(part)]
        elif is_missing(cell):
            return None, f"there is no label (column {self.columns[0]!r})"
        else:
            text = str(cell)
            parts = text.split(self.separator) if self.separator else [text]
            parts = [part.strip() for part in parts]
        return tuple(part for part in parts if part), ""

    def _value(self, cell: Any) -> float | None:
        """Return a cell as a number, NaN where it is missing, None where it is something else."""
        if is_missing(cell):
            return math.nan
        if self.task == "multilabel":
            word = str(cell).strip().casefold()
            if word in _YES or word in _NO:
                return float(word in _YES)
            number = as_number(cell)
            if number == UNKNOWN:
                return math.nan
            return number if 0 <= number <= 1 else None
        number = as_number(cell)
        return None if math.isnan(number) else number

    def _refused(self, name: str, cell: Any) -> str:
        numeric = not math.isnan(as_number(cell))
        if self.task == "regression":
            return f"the column {name!r} holds no number: {str(cell)[:40]!r} (task='multiclass'?)"
        wanted = "0, 1 or a probability"
        advice = " (task='regression'?)" if numeric else ""
        return f"the column {name!r} holds {str(cell)[:40]!r}, not {wanted}{advice}"


def rarest(targets: Sequence[Sequence[float]]) -> list[int]:
    """Return the rarest label of each row, −1 without any: by it, a split keeps rare labels.

    Example:
        >>> from robustfusion.datasets.targets import rarest
        >>> rarest([(1, 1), (1, 0), (0, 0)])
        [1, 0, -1]
    """
    counts = Counter(label for row in targets for label, value in enumerate(row) if value > 0.5)
    return [
        min((c for c, v in enumerate(row) if v > 0.5), key=lambda c: (counts[c], c), default=-1)
        for row in targets
    ]


def bins(targets: Sequence[Sequence[float]], count: int = 5) -> list[int]:
    """Return in which of a few equally large parts each row's first number lies, −1 if unknown."""
    known = sorted(row[0] for row in targets if not math.isnan(row[0]))
    edges = [known[len(known) * part // count] for part in range(1, count)] if known else []
    return [-1 if math.isnan(row[0]) else sum(row[0] >= edge for edge in edges) for row in targets]
