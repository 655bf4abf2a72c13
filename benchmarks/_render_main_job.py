"""The record of the main job, from the folder of a finished run, and its figure in the README."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _record import RESULTS

NAME = "main_job"
FIGURE = Path(__file__).parent.parent / "docs" / "pages" / "assets" / "main-job.png"


def keep(run: Path) -> None:
    """Write the record of a run of `examples/drf_mvsa.py` and keep the figure it drew."""
    made = json.loads((run / "run.json").read_text(encoding="utf-8"))
    figure = (run / "accuracy.png").read_bytes()
    train, val, test = made["posts"]["used"]
    commit, *mark = made["commit"].split("-")
    record = {
        "command": made["command"],
        "commit": "-".join([commit[:7], *mark]),
        "date": made["date"],
        "data": f"{train + val + test} made posts: {train} train, {val} val, {test} test",
        "seeds": [made["settings"]["seed"]],
        "machine": {
            "processor": made["machine"]["system"],
            "cores": made["machine"]["processors"],
            "threads": made["machine"]["threads"],
            "python": made["python"],
            "torch": made["versions"]["torch"],
            "robustfusion": made["versions"]["robustfusion"],
        },
        "results": {
            "seconds": made["total_seconds"],
            "test_posts": test,
            "figure_sha256": hashlib.sha256(figure).hexdigest(),
            **_table(run / "table.csv"),
        },
    }
    (RESULTS / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    FIGURE.write_bytes(figure)


def caption(record: Mapping[str, Any]) -> list[str]:
    """The figure and what stands above it in the README."""
    results, machine = record["results"], record["machine"]
    return [
        "What the main job draws: accuracy with 95 % intervals over its "
        f"{results['test_posts']} test posts.",
        f"`{record['command']}` at commit `{record['commit']}`, {results['seconds']:.0f} s on "
        f"{machine['cores']} cores.",
        "",
        "![Accuracy of the main job with and without disruption](docs/pages/assets/main-job.png)",
    ]


def _table(path: Path) -> dict[str, Any]:
    """The majority line, and each model's accuracy with its interval, all in percent."""
    majority, accuracy = 0.0, {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "majority_accuracy":
                majority = _percent(row["value"])
            elif row["metric"] == "accuracy":
                cell = [_percent(row[bound]) for bound in ("value", "low", "high")]
                accuracy.setdefault(row["model"], {})[row["condition"]] = cell
    return {"majority": majority, "accuracy": accuracy}


def _percent(share: str) -> float:
    return round(100 * float(share), 1)
