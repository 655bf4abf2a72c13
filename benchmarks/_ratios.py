"""Rows of the speed records: a measurement, its reference, and the goal of their ratio."""

from __future__ import annotations

from typing import Any

from _record import write_record


def row(
    what: str,
    value: float,
    reference: float,
    reference_name: str,
    goal: float | None = None,
    *,
    unit: str = "ms",
    ratio: float | None = None,
) -> dict[str, Any]:
    """A row of a record.

    Args:
        what: name of what was measured.
        value: the measurement, in `unit`: "ms", "bytes" or "count".
        reference: the measurement that it is divided by, or the goal itself.
        reference_name: name of the reference.
        goal: the largest ratio that is good enough.
        unit: of both measurements.
        ratio: of the two, where it is not that of the numbers above.
    """
    ratio = value / reference if ratio is None else ratio
    return {
        "what": what,
        unit: value,
        "reference": reference_name,
        f"reference_{unit}": reference,
        "ratio": ratio,
        "goal": goal,
        "met": None if goal is None else ratio <= goal,
    }


def finish(name: str, rows: list[dict[str, Any]], *, data: str, keep: bool = True) -> None:
    """Print the rows, and write them as a record."""
    for values in rows:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
    if keep:
        write_record(name, {"rows": rows}, data=data, seeds=[0])
