"""A report as JSON: metadata and scores in the open, per-sample arrays packed."""

import base64
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfusion.evaluation.grid import Condition
from robustfusion.evaluation.results import (
    CellSamples,
    Context,
    Fingerprint,
    QualitySamples,
    Recovered,
    Summary,
)

FORMAT = 1


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib": data}


def _unpack(packed: Mapping[str, Any]) -> NDArray[Any]:
    data = zlib.decompress(base64.b64decode(packed["zlib"]))
    dtype = np.dtype(packed["dtype"])
    flat = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    return flat.reshape(packed["shape"])


def _plain(value: Any) -> Any:
    """NaN and infinities have no JSON: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dump(
    context: Context,
    summary: Summary,
    recovered: Mapping[tuple[str, str], Recovered],
    rows: list[dict[str, str | float]],
) -> str:
    """The JSON text."""
    cells = [
        {
            "condition": cell.samples.condition._asdict(),
            "seeds": cell.samples.seeds,
            "weights": cell.samples.weights,
            "predictions": _pack(cell.samples.predictions),
            "confidence": _pack(cell.samples.confidence),
            "counts": _pack(cell.samples.counts),
        }
        for cell in summary.cells.values()
    ]
    document = {
        "format": FORMAT,
        "name": context.name,
        "modalities": context.modalities,
        "class_names": context.class_names,
        "candidates": context.candidates,
        "seeds": context.seeds,
        "level": context.level,
        "replicates": context.replicates,
        "bootstrap_seed": context.bootstrap_seed,
        "fingerprint": vars(context.fingerprint),
        "record": dict(context.record),
        "majority": summary.majority._asdict(),
        "scores": [{k: _plain(v) for k, v in row.items()} for row in rows],
        "labels": _pack(context.labels),
        "cells": cells,
        "quality": {
            name: {k: _pack(v) for k, v in scored.samples._asdict().items()}
            for name, scored in summary.qualities.items()
        },
        "recovered": [
            {
                "target": target,
                "source": source,
                **{k: _pack(v) for k, v in points._asdict().items()},
            }
            for (target, source), points in recovered.items()
        ],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def load(
    text: str,
) -> tuple[
    Context,
    list[CellSamples],
    dict[str, QualitySamples],
    dict[tuple[str, str], Recovered],
]:
    """What `dump` was given, less the scores.

    Raises:
        ValueError: if the text is not a report, or of a later format.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or "cells" not in document:
        raise ValueError("source is not a robustness report")
    if document.get("format") != FORMAT:
        raise ValueError(f"source has report format {document.get('format')}, expected {FORMAT}")
    context = Context(
        name=document["name"],
        modalities=tuple(document["modalities"]),
        class_names=tuple(document["class_names"]),
        candidates=tuple(document["candidates"]),
        labels=_unpack(document["labels"]),
        seeds=tuple(document["seeds"]),
        level=document["level"],
        replicates=document["replicates"],
        bootstrap_seed=document["bootstrap_seed"],
        fingerprint=Fingerprint(**document["fingerprint"]),
        record=document["record"],
    )
    cells = [
        CellSamples(
            condition=Condition(**cell["condition"]),
            seeds=tuple(cell["seeds"]),
            predictions=_unpack(cell["predictions"]),
            confidence=_unpack(cell["confidence"]),
            counts=_unpack(cell["counts"]),
            weights=None if cell["weights"] is None else tuple(cell["weights"]),
        )
        for cell in document["cells"]
    ]
    qualities = {
        name: QualitySamples(**{k: _unpack(v) for k, v in scored.items()})
        for name, scored in document["quality"].items()
    }
    recovered = {
        (points.pop("target"), points.pop("source")): Recovered(
            **{k: _unpack(v) for k, v in points.items()}
        )
        for points in document["recovered"]
    }
    return context, cells, qualities, recovered
