"""The report: the answers of a model under all conditions as scores, tables and files."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfusion._validation import check_between
from robustfusion.disruption import Disruption
from robustfusion.evaluation import _tables, results
from robustfusion.evaluation._warnings import warnings_about
from robustfusion.evaluation.measurements import Measurements
from robustfusion.evaluation.results import (
    Answers,
    Fingerprint,
    Intervals,
    Quality,
    Recovered,
    Scores,
)

FORMAT = 2
_NAMES = ("modalities", "class_names", "candidates", "seeds")
_QUALITY = ("clean", "corrupted")


@dataclass(frozen=True, eq=False)
class RobustnessReport(Measurements):
    """The scores of a model under all conditions, with intervals and per-sample results.

    :func:`robustness_report` makes it, see the example there; `load` reads a saved one. A score is
    the mean over the disruption seeds. Its interval comes from a bootstrap over the samples, with
    the same draws for every score and every report of the same data. Scores are computed when they
    are first asked for.

    Args:
        name: Name of the model.
        modalities: Names of the M modalities.
        class_names: Names of the C classes, labels or numbers.
        candidates: Names of the K fusion candidates, in the order of ``weights``.
        labels: True classes, int16 (N,), or labels or numbers, float32 (N, C).
        seeds: The disruption seeds.
        fingerprint: Digests of the data and the disruptions.
        answers: The answers by condition key, clean first.
        log_quality: The quality scores by modality, without their AUROC; see `quality`.
        recovered: True and recovered features by ``(target, source)``, for the plot.
        intervals: How the scores are made; see `with_intervals`.
        record: Facts to keep with the report, such as command, commit and machine; see `named`.
        task: Task of the model: "multiclass", "multilabel" or "regression".

    Reference:
        Table 1 and Figure 5 of https://arxiv.org/abs/2511.18751.
    """

    def __getitem__(self, key: str) -> Scores:
        """Return the scores of a condition: "clean", "fixed/image/C", "random/0.4/C+D"."""
        try:
            return self.scores[key]
        except KeyError:
            raise KeyError(f"no condition {key!r}; there are {', '.join(self.answers)}") from None

    def __repr__(self) -> str:
        n, s, c = len(self.labels), len(self.seeds), len(self.answers)
        return f"RobustnessReport({self.name!r}, samples={n}, seeds={s}, conditions={c})"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what makes the scores worthless; empty if nothing looks wrong."""
        return tuple(warnings_about(self))

    def named(self, name: str, **record: Any) -> "RobustnessReport":
        """Return the report under a name for tables and figures, with more facts to keep.

        Raises:
            ValueError: If ``record`` holds what JSON cannot.
        """
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
        """Return the same measurements with other intervals.

        Args:
            level: Level of the confidence intervals.
            replicates: Bootstrap replicates; 0 for no intervals, which is quick.
            seed: Seed of the bootstrap.
            alarm_rate: A sample whose p-value is at most this raises an alarm.

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

    def to_rows(self) -> list[dict[str, str | float]]:
        """Return the scores in long form: one dictionary for each condition and metric."""
        return list(_tables.long_rows(self))

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the rows of `to_rows` as CSV, and write them to `path` if there is one."""
        return _tables.written(_tables.csv_text(self.to_rows(), _tables.COLUMNS), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the report for a reader, and write it to `path` if there is one."""
        return _tables.written(_tables.markdown(self, self.warnings), path)

    def save(self, path: str | Path) -> list[Path]:
        """Write the scores as JSON and the per-sample results as npz, which `load` reads.

        Args:
            path: Without an ending, or with ``.json``: "runs/report" makes ``report.json`` and
                ``report.npz``.

        Returns:
            The files written.
        """
        arrays = {"labels": self.labels}
        for where, (record, names) in self._parts().items():
            arrays |= {f"{where} {name}": getattr(record, name) for name in names}
        document = {
            "format": FORMAT,
            "name": self.name,
            "task": self.task,
            "record": dict(self.record),
            **{name: getattr(self, name) for name in _NAMES},
            "intervals": self.intervals._asdict(),
            "fingerprint": self.fingerprint._asdict(),
            "arrays": _digest(arrays),
            "warnings": self.warnings,
            "conditions": [_entry(answers) for answers in self.answers.values()],
            "quality": list(self.log_quality),
            "recovered": list(self.recovered),
            "scores": self.to_rows(),
        }
        text, packed = _paths(path)
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        text.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return [text, packed]

    def _parts(self) -> dict[str, tuple[Any, Sequence[str]]]:
        """Return the objects that hold arrays, and the names of these, by their prefix in npz."""
        answers = enumerate(self.answers.values())
        quality = {f"quality {name}": (q, _QUALITY) for name, q in self.log_quality.items()}
        points = enumerate(self.recovered.values())
        return {
            **{f"cell {k}": (a, _arrays_of(a)) for k, a in answers},
            **quality,
            **{f"recovered {k}": (r, Recovered._fields) for k, r in points},
        }

    @classmethod
    def load(cls, path: str | Path) -> "RobustnessReport":
        """Read a report that `save` wrote; its scores are computed from the per-sample results.

        Raises:
            ValueError: If it is no report, of another format, or the two files do not belong
                together.
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
            # Opened by hand, because numpy leaves a file open that is not a zip.
            with packed.open("rb") as stream, np.load(stream) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{packed} cannot be read: {error}") from error
        if _digest(arrays) != document["arrays"]:
            raise ValueError(f"{packed} does not hold the results of {text}")

        def part(where: str, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
            present = [name for name in optional if f"{where} {name}" in arrays]
            return {name: arrays[f"{where} {name}"] for name in (*names, *present)}

        answers = {}
        for index, entry in enumerate(document["conditions"]):
            condition = _condition(entry, tuple(document["modalities"]))
            weights = entry["weights"]
            answers[condition.key] = Answers(
                condition,
                tuple(entry["seeds"]),
                weights=None if weights is None else tuple(weights),
                **part(f"cell {index}", results.ARRAYS, results.OPTIONAL),
            )
        quality = {m: Quality(**part(f"quality {m}", _QUALITY)) for m in document["quality"]}
        recovered = {
            (target, source): Recovered(**part(f"recovered {index}", Recovered._fields))
            for index, (target, source) in enumerate(document["recovered"])
        }
        return cls(
            name=document["name"],
            **{name: tuple(document[name]) for name in _NAMES},
            labels=arrays["labels"],
            fingerprint=Fingerprint(**document["fingerprint"]),
            answers=answers,
            log_quality=quality,
            recovered=recovered,
            intervals=Intervals(**document["intervals"]),
            record=document["record"],
            task=document.get("task", "multiclass"),  # older reports are of classes
        )


def _arrays_of(answers: Answers) -> list[str]:
    names = (*results.ARRAYS, *results.OPTIONAL)
    return [name for name in names if getattr(answers, name) is not None]


def _entry(answers: Answers) -> dict[str, Any]:
    names = ("strategy", "setting", "modality", "rate")
    entry = {name: getattr(answers.condition, name) for name in names}
    return {**entry, "seeds": answers.seeds, "weights": answers.weights}


def _condition(entry: Mapping[str, Any], modalities: tuple[str, ...]) -> Disruption:
    rate, modality = entry["rate"], entry["modality"]
    return Disruption(
        modalities,
        setting=entry["setting"],
        strategy=entry["strategy"],
        modality=tuple(modality) if isinstance(modality, list) else modality,
        rate=tuple(rate) if isinstance(rate, list) else rate,
    )


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _paths(path: str | Path) -> tuple[Path, Path]:
    stem = str(path).removesuffix(".json")
    return Path(f"{stem}.json"), Path(f"{stem}.npz")
