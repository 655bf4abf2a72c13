"""Columns of numbers and words as one vector a row, a modality in addition to image and text."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from robustfusion._text import is_missing

MAX_WORDS = 32  # words of a column that get an entry of their own
MAX_DEVIATIONS = 10.0  # standard deviations at which a number is cut off
_NUMBERS = 0.9  # share of numbers among the cells of a column of numbers


class TableColumns:
    r"""Columns of a table as one vector a row, which an encoder of yours takes as a modality.

    A column whose cells are numbers is shifted and scaled to mean 0 and standard deviation 1 and
    cut off at ten standard deviations. Any other column is a category: one entry for each of its
    most frequent words, zeros for other words. Each column has one more entry, which is 1 where
    the cell is missing or, in a column of numbers, is none; the number then counts as the mean.

    Args:
        names: the columns, at least one.

    Attributes:
        names: the columns.
        state: what :meth:`fit` found, plain data for JSON; None before.

    Raises:
        ValueError: without a name, for a column that ``fit`` cannot use, or before ``fit``.

    Example:
        >>> from robustfusion.datasets import TableColumns
        >>> rows = [{"age": "20", "city": "Ulm"}, {"age": 30.0, "city": "Bonn"}, {"age": None}]
        >>> columns = TableColumns(["age", "city"]).fit(rows)
        >>> columns.entries
        ('age', 'age missing', 'city Bonn', 'city Ulm', 'city missing')
        >>> columns({"age": "20", "city": "Ulm"})
        tensor([-1.,  0.,  0.,  1.,  0.])
        >>> columns.has_value({"age": ""}), TableColumns.from_state(columns.state).dim
        (False, 5)
    """

    def __init__(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not names or len(set(names)) < len(names):
            raise ValueError(f"names must be a list of different columns, got {names!r}")
        self.names = tuple(names)
        self.state: dict[str, dict[str, Any]] | None = None

    def fit(self, rows: Iterable[Mapping[str, Any]]) -> Self:
        """Learn moments and words from the rows to train on, which are mappings by column."""
        rows = list(rows)
        self.state = {name: _learn(name, [row.get(name) for row in rows]) for name in self.names}
        return self

    @classmethod
    def from_state(cls, state: Mapping[str, Mapping[str, Any]]) -> Self:
        """Return the columns with what an earlier ``fit`` found."""
        columns = cls(list(state))
        columns.state = {name: dict(facts) for name, facts in state.items()}
        return columns

    @property
    def entries(self) -> tuple[str, ...]:
        """The names of the entries of a vector: columns, words, and gaps."""
        named = []
        for name, facts in self._fitted().items():
            words = facts.get("words")
            named += [name] if words is None else [f"{name} {word}" for word in words]
            named.append(f"{name} missing")
        return tuple(named)

    @property
    def dim(self) -> int:
        """Width D of the vector."""
        return len(self.entries)

    def has_value(self, row: Mapping[str, Any]) -> bool:
        """Return whether any cell of the columns holds something."""
        return not all(is_missing(row.get(name)) for name in self.names)

    def __call__(self, row: Mapping[str, Any]) -> Tensor:
        """Return the vector of a row, float32 (D,)."""
        values: list[float] = []
        for name, facts in self._fitted().items():
            cell = row.get(name)
            if "words" in facts:
                word = "" if is_missing(cell) else str(cell).strip()
                values += [float(word == known) for known in facts["words"]]
                values.append(float(not word))
            else:
                number = as_number(cell)
                known = not math.isnan(number)
                z = (number / facts["unit"] - facts["mean"]) / facts["std"] if known else 0.0
                values += [min(max(z, -MAX_DEVIATIONS), MAX_DEVIATIONS), float(not known)]
        return torch.tensor(values)

    def _fitted(self) -> dict[str, dict[str, Any]]:
        if self.state is None:
            raise ValueError("TableColumns must be fitted to the training rows first: call fit")
        return self.state

    def __repr__(self) -> str:
        return f"TableColumns({list(self.names)})"


def as_number(cell: Any) -> float:
    """Return a cell as a finite number, NaN where it is missing or none.

    Example:
        >>> from robustfusion.datasets.table_columns import as_number
        >>> as_number(" 2.5 "), as_number("two"), as_number(True)
        (2.5, nan, nan)
    """
    if is_missing(cell) or isinstance(cell, bool | bytes | list | Mapping):
        return math.nan
    try:
        number = float(str(cell))
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def holds_numbers(cells: Iterable[Any]) -> bool:
    """Return whether nearly all cells that are not missing are numbers, and not all the same."""
    known = [as_number(cell) for cell in cells if not is_missing(cell)]
    numbers = [number for number in known if not math.isnan(number)]
    return len(set(numbers)) > 1 and len(numbers) >= _NUMBERS * len(known)


def _learn(name: str, cells: Sequence[Any]) -> dict[str, Any]:
    """Return the moments of a column of numbers, or the words of another."""
    known = [cell for cell in cells if not is_missing(cell)]
    if not known:
        raise ValueError(f"the column {name!r} is empty in all {len(cells)} rows to train on")
    numbers = [number for cell in known if not math.isnan(number := as_number(cell))]
    if len(numbers) >= _NUMBERS * len(known):
        unit = max(map(abs, numbers)) or 1.0  # keeps squares of huge numbers finite
        scaled = [number / unit for number in numbers]
        mean = math.fsum(scaled) / len(scaled)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in scaled) / len(scaled))
        return {"unit": unit, "mean": mean, "std": std if std > 1e-9 else 1.0}
    words = Counter(str(cell).strip() for cell in known)
    if len(words) > MAX_WORDS and 2 * len(words) > len(known):
        raise ValueError(
            f"the column {name!r} holds {len(words)} different words in {len(known)} rows, so it "
            "is neither a number nor a category: leave it out, or read it as the text"
        )
    frequent = sorted(words, key=lambda word: (-words[word], word))[:MAX_WORDS]
    return {"words": sorted(frequent)}
