"""The report: what a model said over the conditions, and the scores made from it."""

import csv
import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfusion._validation import check_between
from robustfusion.disruption import Condition
from robustfusion.evaluation import _tables, results
from robustfusion.evaluation import statistics as stats
from robustfusion.evaluation.results import (
    Cell,
    Fingerprint,
    Intervals,
    Majority,
    Quality,
    Recovered,
)
from robustfusion.evaluation.statistics import Estimate, FloatArray

FORMAT = 2
_NAMES = ("modalities", "class_names", "candidates", "seeds")
_QUALITY = ("clean", "corrupted")


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """How a model does over the conditions, with intervals and per-sample results.

    Made by :func:`robustness_report`, where the example is, or read back with `load`. A score is
    the mean over the disruption seeds; its interval comes from a bootstrap over the samples, with
    the same draws for every score and report of the same data. Scores are made when asked for.

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
    def _replicates(self) -> dict[Any, FloatArray]:
        """Every score by (condition or modality, name): the value, then its replicates."""
        true, made = self.labels.astype(np.int64), self.intervals
        parts: dict[Any, list[FloatArray]] = {}
        once = np.ones((1, len(true)), dtype=np.float32)
        drawn = stats.bootstrap_weights(len(true), made.replicates, made.seed)
        for weights in chain([once], drawn):
            for cell in self.measured:
                by = len(self.class_names), weights, made.alarm_rate
                for name, values in results.cell_scores(cell, true, *by).items():
                    parts.setdefault((cell.condition.key, name), []).append(values)
            for name, quality in self.scored.items():
                parts.setdefault((name, "auroc"), []).append(results.aurocs(quality, weights))
        return {key: np.concatenate(values) for key, values in parts.items()}

    def _interval(self, values: FloatArray) -> Estimate:
        return stats.estimate(values[0], values[1:], self.intervals.level)

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """The conditions by key, clean first."""
        cells, found = {}, self._replicates
        for cell in self.measured:
            key, right = cell.condition.key, cell.predictions == self.labels
            alarms = {
                name: self._interval(found[key, f"alarm {column}"])
                for column, name in enumerate(self.modalities)
                if (key, f"alarm {column}") in found
            }
            by_seed = right.mean(1)
            scores: dict[str, Any] = {
                name: self._interval(found[key, name]) for name in results.SCORES
            }
            cells[key] = dataclasses.replace(
                cell,
                **scores,
                drop=self._interval(found["clean", "accuracy"] - found[key, "accuracy"]),
                alarms={name: rate for name, rate in alarms.items() if not np.isnan(rate.value)},
                aurc=float(stats.risk_coverage(right, cell.confidence)[1].mean()),
                spread=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
            )
        return cells

    @cached_property
    def quality(self) -> dict[str, Quality]:
        """The quality scores by modality; empty for a model without them."""
        return {
            name: quality._replace(
                auroc=self._interval(self._replicates[name, "auroc"]),
                class_means={
                    class_name: results.mean_qualities(quality, self.labels == index)
                    for index, class_name in enumerate(self.class_names)
                },
            )
            for name, quality in self.scored.items()
        }

    @cached_property
    def area(self) -> dict[str, Estimate]:
        """Area under the rate curve by setting: mean accuracy over the rates, clean at rate 0."""
        conditions, areas = [cell.condition for cell in self.measured], {}
        for setting in dict.fromkeys(c.setting for c in conditions if c.strategy == "random"):
            points = results.rate_curve(conditions, str(setting))
            values = np.stack([self._replicates[key, "accuracy"] for _, key in points])
            # The trapezoids, divided by the range of the rates.
            steps = np.diff(np.asarray([rate for rate, _ in points]))
            mean = (values[:-1] + values[1:]).T @ steps / (2 * steps.sum())
            areas[str(setting)] = self._interval(mean)
        return areas

    @cached_property
    def corruption_premium(self) -> dict[str, Estimate]:
        """Accuracy discarded minus accuracy corrupted; above zero: corruption fools the model.

        By modality ("image"), and by rate ("random 0.4").
        """
        found = self._replicates
        pairs = [(c.condition, c.condition._replace(setting="C").key) for c in self.measured]
        return {
            c.place: self._interval(found[c.key, "accuracy"] - found[twin, "accuracy"])
            for c, twin in pairs
            if c.setting == "D" and (twin, "accuracy") in found
        }

    @cached_property
    def majority(self) -> Majority:
        """The line to beat: always answering with the most frequent class."""
        classes = len(self.class_names)
        winner = int(np.bincount(self.labels, minlength=classes).argmax())
        guess = np.full((1, len(self.labels)), winner)
        scores = stats.classification_scores(self.labels, guess, classes)
        return Majority(self.class_names[winner], *(float(s[0, 0]) for s in scores))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What makes the scores worthless, in plain words; empty if nothing looks wrong."""
        return tuple(_tables.remarks(self))

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
        arrays = {"labels": self.labels}
        for where, (record, names) in self._parts().items():
            arrays |= {f"{where} {name}": getattr(record, name) for name in names}
        document = {
            "format": FORMAT,
            "name": self.name,
            "record": dict(self.record),
            **{name: getattr(self, name) for name in _NAMES},
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

    def _parts(self) -> dict[str, tuple[Any, Sequence[str]]]:
        """The records that hold arrays, and the names of these, by their place in the npz."""
        cells = {f"cell {k}": (cell, results.CELL) for k, cell in enumerate(self.measured)}
        scored = {f"quality {name}": (q, _QUALITY) for name, q in self.scored.items()}
        points = enumerate(self.recovered.values())
        return {**cells, **scored, **{f"recovered {k}": (r, Recovered._fields) for k, r in points}}

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

        def part(where: str, names: Sequence[str]) -> dict[str, Any]:
            return {name: arrays[f"{where} {name}"] for name in names}

        cells = []
        for place, entry in enumerate(document["conditions"]):
            seeds, weights, rate = (entry.pop(name) for name in ("seeds", "weights", "rate"))
            cells.append(
                Cell(
                    Condition(**entry, rate=tuple(rate) if isinstance(rate, list) else rate),
                    tuple(seeds),
                    weights=None if weights is None else tuple(weights),
                    **part(f"cell {place}", results.CELL),
                )
            )
        scored = {m: Quality(**part(f"quality {m}", _QUALITY)) for m in document["quality"]}
        recovered = {
            (target, source): Recovered(**part(f"recovered {place}", Recovered._fields))
            for place, (target, source) in enumerate(document["recovered"])
        }
        return cls(
            name=document["name"],
            **{name: tuple(document[name]) for name in _NAMES},
            labels=arrays["labels"],
            fingerprint=Fingerprint(**document["fingerprint"]),
            measured=tuple(cells),
            scored=scored,
            recovered=recovered,
            intervals=Intervals(**document["intervals"]),
            record=document["record"],
        )


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _paths(path: str | Path) -> tuple[Path, Path]:
    stem = str(path).removesuffix(".json")
    return Path(f"{stem}.json"), Path(f"{stem}.npz")


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
