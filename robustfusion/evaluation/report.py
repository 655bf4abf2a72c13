"""The report: what a model said over the conditions, and the scores made from it."""

import csv
import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfusion._validation import check_between
from robustfusion.disruption import Condition
from robustfusion.evaluation import _remarks, _tables
from robustfusion.evaluation.results import (
    Cell,
    Fingerprint,
    Intervals,
    Majority,
    Quality,
    Recovered,
    Summary,
    summarize,
)
from robustfusion.evaluation.statistics import Estimate

FORMAT = 2
_CELL_ARRAYS = ("predictions", "confidence", "log_likelihood", "p_values", "counts")


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """How a model does over the conditions, with intervals and per-sample results.

    Made by :func:`robustness_report`, or read back with `load`. A score is the mean over the
    disruption seeds; its interval comes from a bootstrap over the samples, with the same draws
    for every score and report of the same data. Scores are made when they are first asked for.

    Args:
        name: Of the model.
        modalities: Their names, M.
        class_names: C.
        candidates: Names of the K fusion candidates, in the order of ``weights``.
        labels: True classes, int16 (N,).
        seeds: The disruption seeds.
        fingerprint: Of the data and the disruptions.
        measured: The conditions, clean first, without scores.
        scored: The quality scores by modality, without theirs.
        recovered: True and recovered features by ``(target, source)``, for the plot.
        intervals: How the scores are made; see `with_intervals`.
        record: Whatever the caller wants kept: command, commit, machine; see `named`.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import robustness_grid
        >>> from robustfusion.evaluation import CachedFeatures, robustness_report
        >>> class Sum(torch.nn.Module):
        ...     def forward(self, features, available):
        ...         kept = [torch.where(available[m][:, None], x, 0) for m, x in features.items()]
        ...         return kept[0] + kept[1]
        >>> labels = torch.arange(30) % 3
        >>> clean = torch.nn.functional.one_hot(labels, 3).float()
        >>> data = CachedFeatures({"image": clean, "text": 2 * clean}, labels)
        >>> grid = robustness_grid(data.modalities, settings=("D",), rates=(0.5, 1.0))
        >>> report = robustness_report(Sum(), data, grid).with_intervals(replicates=200)
        >>> report["fixed/text/D"].accuracy.value
        1.0
        >>> print(report.to_markdown().splitlines()[0])
        # Robustness of Sum

    Reference:
        Table 1 and Figure 5 of https://arxiv.org/abs/2511.18751.
    """

    name: str
    modalities: tuple[str, ...]
    class_names: tuple[str, ...]
    candidates: tuple[str, ...]
    labels: NDArray[np.int16]
    seeds: tuple[int, ...]
    fingerprint: Fingerprint
    measured: tuple[Cell, ...]
    scored: Mapping[str, Quality] = field(default_factory=dict)
    recovered: Mapping[tuple[str, str], Recovered] = field(default_factory=dict)
    intervals: Intervals = field(default_factory=Intervals)
    record: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Cell:
        """The cell of a condition: "clean", "fixed/image/C", "random/0.4/C+D"."""
        try:
            return self.cells[key]
        except KeyError:
            raise KeyError(f"no condition {key!r}; there are {', '.join(self.cells)}") from None

    def __repr__(self) -> str:
        n, s = len(self.labels), len(self.seeds)
        cells = len(self.measured)
        return f"RobustnessReport({self.name!r}, samples={n}, seeds={s}, cells={cells})"

    def named(self, name: str, **record: Any) -> "RobustnessReport":
        """The same under a name for tables and figures, with a record of what JSON can hold."""
        try:
            json.dumps(record, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"record must be what JSON can hold: {error}") from error
        return dataclasses.replace(self, name=name, record={**self.record, **record})

    def with_intervals(
        self,
        *,
        level: float = 0.95,
        replicates: int = 1000,
        seed: int = 0,
        alarm_rate: float = 0.05,
    ) -> "RobustnessReport":
        """The same measurements, summarized in another way.

        Args:
            level: Of the confidence intervals.
            replicates: Bootstrap replicates; 0 for no intervals, which is quick.
            seed: Of the bootstrap.
            alarm_rate: A row whose p-value is at most this raises an alarm.

        Raises:
            ValueError: If an argument is out of its range.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}")
        if replicates < 0:
            raise ValueError(f"replicates must not be negative, got {replicates}")
        check_between(alarm_rate, 0, 1, "alarm_rate")
        options = Intervals(level, replicates, seed, alarm_rate)
        return dataclasses.replace(self, intervals=options)

    @cached_property
    def _summary(self) -> Summary:
        """All scores; the properties below are its parts."""
        names = (self.modalities, self.class_names)
        return summarize(self.measured, self.scored, self.labels, names, self.intervals)

    @property
    def cells(self) -> dict[str, Cell]:
        """The conditions by key, clean first."""
        return self._summary.cells

    @property
    def quality(self) -> dict[str, Quality]:
        """The quality scores by modality; empty for a model without them."""
        return self._summary.quality

    @property
    def area(self) -> dict[str, Estimate]:
        """Area under the rate curve by setting: mean accuracy over the rates, clean at rate 0."""
        return self._summary.area

    @property
    def corruption_premium(self) -> dict[str, Estimate]:
        """Accuracy discarded minus accuracy corrupted; above zero: corruption fools the model.

        By modality ("image"), and by rate ("random 0.4").
        """
        return self._summary.corruption_premium

    @property
    def majority(self) -> Majority:
        """The line to beat: always answering with the most frequent class."""
        return self._summary.majority

    @property
    def remarks(self) -> tuple[str, ...]:
        """What makes the scores worthless, in plain words; empty if nothing looks wrong."""
        return tuple(_remarks.remarks(self))

    def to_rows(self) -> list[dict[str, str | float]]:
        """The scores in long form: one dictionary for each condition and metric."""
        return list(_tables.long_rows(self))

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows of `to_rows` as CSV, also written to `path` where given."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, _tables.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_rows())
        return _written(stream.getvalue(), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The report for a reader, also written to `path` where given."""
        return _written(_tables.markdown(self), path)

    def save(self, path: str | Path) -> list[Path]:
        """Write the scores as JSON and, beside it, the per-sample results as npz.

        Args:
            path: Without an ending, or with ``.json``: "runs/report" makes ``report.json`` and
                ``report.npz``.

        Returns:
            the files written; `load` reads them.
        """
        arrays: dict[str, NDArray[Any]] = {"labels": self.labels}
        for place, cell in enumerate(self.measured):
            arrays |= {f"cell {place} {name}": getattr(cell, name) for name in _CELL_ARRAYS}
        for name, quality in self.scored.items():
            arrays[f"quality {name} clean"] = quality.clean
            arrays[f"quality {name} corrupted"] = quality.corrupted
        for place, points in enumerate(self.recovered.values()):
            arrays |= {f"recovered {place} {k}": v for k, v in points._asdict().items()}
        document = {
            "format": FORMAT,
            "name": self.name,
            "record": dict(self.record),
            "modalities": self.modalities,
            "class_names": self.class_names,
            "candidates": self.candidates,
            "seeds": self.seeds,
            "intervals": self.intervals._asdict(),
            "fingerprint": self.fingerprint._asdict(),
            "arrays": _digest(arrays),
            "remarks": self.remarks,
            "conditions": [
                {**c.condition._asdict(), "seeds": c.seeds, "weights": c.weights}
                for c in self.measured
            ],
            "quality": list(self.scored),
            "recovered": list(self.recovered),
            "scores": self.to_rows(),
        }
        text, packed = _paths(path)
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        text.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return [text, packed]

    @classmethod
    def load(cls, path: str | Path) -> "RobustnessReport":
        """The report that `save` wrote; its scores are made anew from the per-sample results.

        Raises:
            ValueError: If it is not a report, of another format, or the two files are not of one.
        """
        text, packed = _paths(path)
        document = json.loads(text.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or "format" not in document:
            raise ValueError(f"{text} is not a robustness report")
        if document["format"] != FORMAT:
            raise ValueError(
                f"{text} has report format {document['format']}, expected {FORMAT}: measure anew"
            )
        try:
            # Opened here, because numpy leaves a file open that is no zip.
            with packed.open("rb") as stream, np.load(stream) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{packed} cannot be read: {error}") from error
        if _digest(arrays) != document["arrays"]:
            raise ValueError(f"{packed} does not hold the results of {text}")
        cells = []
        for place, entry in enumerate(document["conditions"]):
            weights, rate = entry.pop("weights"), entry["rate"]
            own = {name: arrays[f"cell {place} {name}"] for name in _CELL_ARRAYS}
            cells.append(
                Cell(
                    seeds=tuple(entry.pop("seeds")),
                    condition=Condition(
                        **{**entry, "rate": tuple(rate) if isinstance(rate, list) else rate}
                    ),
                    weights=None if weights is None else tuple(weights),
                    **own,
                )
            )
        return cls(
            name=document["name"],
            modalities=tuple(document["modalities"]),
            class_names=tuple(document["class_names"]),
            candidates=tuple(document["candidates"]),
            labels=arrays["labels"],
            seeds=tuple(document["seeds"]),
            fingerprint=Fingerprint(**document["fingerprint"]),
            measured=tuple(cells),
            scored={
                name: Quality(*(arrays[f"quality {name} {k}"] for k in ("clean", "corrupted")))
                for name in document["quality"]
            },
            recovered={
                (target, source): Recovered(
                    *(arrays[f"recovered {place} {k}"] for k in Recovered._fields)
                )
                for place, (target, source) in enumerate(document["recovered"])
            },
            intervals=Intervals(**document["intervals"]),
            record=document["record"],
        )


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        values = arrays[name]
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _paths(path: str | Path) -> tuple[Path, Path]:
    stem = str(path).removesuffix(".json")
    return Path(f"{stem}.json"), Path(f"{stem}.npz")


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
