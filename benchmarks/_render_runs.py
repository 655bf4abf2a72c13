"""Records of runs of `examples/drf_mvsa.py`: the main job, its seeds, and trained encoders."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _pages import ASSETS, condition, source, table
from _record import RESULTS, read_record, relative

NAME, SEEDS, END_TO_END, PAPER = "main_job", "main_job_seeds", "end_to_end", "end_to_end_paper"
FIGURES = {NAME: ASSETS / "main-job.png", END_TO_END: ASSETS / "end-to-end.png"}
_SETTINGS = ("image_encoder", "text_encoder", "frozen", "recipe", "epochs")
# Points of accuracy that the paper loses on MVSA-Single when one modality is disrupted (Table 1).
PAPER_DROPS = {
    "fixed/image/C": 2.0,
    "fixed/image/D": 3.1,
    "fixed/image/C+D": 2.7,
    "fixed/text/C": 7.1,
    "fixed/text/D": 8.4,
    "fixed/text/C+D": 8.0,
}
GOALS = {
    "clean": "intact, minus the baseline's",
    "corrupted": "corrupted minus missing, the worse of both modalities",
    "every cell": "minus the baseline's, the worst line above",
}


def keep(name: str, run: Path) -> None:
    """Write the record of a finished run and keep the figure it drew."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if name == END_TO_END and facts["settings"]["recipe"] == "paper":
        name = PAPER
    figure = (run / "accuracy.png").read_bytes()
    train, val, test = facts["posts"]["used"]
    commit, *mark = facts["commit"].split("-")
    origin = "generated" if facts["settings"]["data"] is None else "real"
    record = {
        "command": shlex.join(relative(shlex.split(facts["command"]))),
        "commit": "-".join([commit[:7], *mark]),
        "date": facts["date"],
        "data": f"{train + val + test} {origin} posts: {train} train, {val} val, {test} test",
        "seeds": [facts["settings"]["seed"]],
        "machine": {
            "processor": facts["machine"]["system"],
            "cores": facts["machine"]["processors"],
            "threads": facts["machine"]["threads"],
            "python": facts["python"],
            "torch": facts["versions"]["torch"],
            "robustfusion": facts["versions"]["robustfusion"],
        },
        "results": {
            "seconds": facts["total_seconds"],
            "test_posts": test,
            "settings": {name: facts["settings"][name] for name in _SETTINGS},
            "figure_sha256": hashlib.sha256(figure).hexdigest(),
            **_scores(run / "table.csv"),
        },
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if name in FIGURES:
        FIGURES[name].write_bytes(figure)


def caption(record: Mapping[str, Any]) -> list[str]:
    """The main job's figure, and the sentence above it."""
    results, machine = record["results"], record["machine"]
    return [
        "What the main job draws: accuracy with 95 % intervals over its "
        f"{results['test_posts']} test posts.",
        f"`{record['command']}` at commit `{record['commit']}`, {results['seconds']:.0f} s on "
        f"{machine['cores']} cores.",
        "",
        "![Accuracy of the main job with and without disruption](../assets/main-job.png)",
    ]


def seeds_lines(record: Mapping[str, Any]) -> list[str]:
    """Means over seeds, their intervals, and which goals they meet."""
    results = record["results"]
    ours, theirs = results["names"]
    body = []
    for title, cell in results["cells"].items():
        first, second = cell["means"]
        gap = _gap(cell["difference"])
        body.append([condition(title), f"{second:.1f}", f"{first:.1f}", gap])
    harm = results["corrupted_minus_missing"]
    goals = []
    for name, words in GOALS.items():
        goal = results["promises"][name]
        met = "yes" if goal["met"] else "**no**"
        goals.append([words, f"{goal['allowed']:+.1f}", f"{goal['least']:+.2f}", met])
    return [
        f"Seeds {', '.join(map(str, record['seeds']))}; "
        f"`{record['command'].split(' --')[0]}` at commit `{results['commit_of_runs'][:7]}`.",
        "",
        *table(["", theirs, ours, "difference"], body),
        "",
        f"{ours}, corrupted minus missing: "
        f"{', '.join(f'{modality} {_gap(values)}' for modality, values in harm.items())}.",
        "",
        *table(["goal", "at least", "measured", "met"], goals, left=(0, 3)),
    ]


def _gap(values: list[float]) -> str:
    mean, low, high = values
    return f"{mean:+.1f} <small>[{low:+.1f}, {high:+.1f}]</small>"


def _scores(path: Path) -> dict[str, Any]:
    """Majority line and accuracies in percent, AUROC of the quality; with their intervals."""
    majority = 0.0
    accuracy: dict[str, dict[str, list[float]]] = {}
    auroc: dict[str, dict[str, list[float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            bounds = [float(row[key]) for key in ("value", "low", "high") if row[key]]
            if row["metric"] == "majority_accuracy":
                majority = round(100 * bounds[0], 1)
            elif row["metric"] == "accuracy":
                cell = [round(100 * bound, 1) for bound in bounds]
                accuracy.setdefault(row["model"], {})[row["condition"]] = cell
            elif row["metric"] == "quality_auroc":
                cell = [round(bound, 3) for bound in bounds]
                auroc.setdefault(row["model"], {})[row["modality"]] = cell
    return {"majority": majority, "accuracy": accuracy, "quality_auroc": auroc}


def main_job() -> dict[str, list[str]]:
    """The blocks on the main job."""
    return {"figure": caption(read_record(NAME)), "seeds": seeds_lines(read_record(SEEDS))}


def blocks() -> dict[str, list[str]]:
    """The blocks on trained encoders."""
    record = read_record(END_TO_END)
    settings = record["results"]["settings"]
    encoders = " and ".join(
        f"{settings[f'{m}_encoder']} ({'frozen' if m in settings['frozen'] else 'trained'})"
        for m in ("image", "text")
    )
    data = (
        f"Encoders: {encoders}. Data: {record['data']}. The majority class has "
        f"{record['results']['majority']:.1f} %."
    )
    paper = read_record(PAPER)
    return {
        "data": [data],
        "default head": run_lines(record, "DRFHead"),
        "paper's head": run_lines(paper, "PaperDRFHead"),
    }


def run_lines(record: Mapping[str, Any], name: str) -> list[str]:
    """Accuracies of one run, and the AUROC of its quality."""
    results = record["results"]
    (ours, first), (theirs, second) = results["accuracy"].items()
    body = []
    for key, (value, low, high) in first.items():
        if not key.startswith(("clean", "fixed")):
            continue
        other, *bounds = second[key]
        drop = "" if key == "clean" else f"{first['clean'][0] - value:.1f}"
        body.append(
            [
                condition(key),
                f"{value:.1f} <small>[{low:.1f}, {high:.1f}]</small>",
                f"{other:.1f} <small>[{bounds[0]:.1f}, {bounds[1]:.1f}]</small>",
                drop,
                f"{PAPER_DROPS[key]:.1f}" if key in PAPER_DROPS else "",
            ]
        )
    aurocs = [
        f"{modality} {value:.3f} [{low:.3f}, {high:.3f}]"
        for modality, (value, low, high) in results["quality_auroc"][ours].items()
    ]
    head = ["", name, theirs, f"drop of {name}", "drop in the paper"]
    return [
        *table(head, body, left=(0, 1, 2)),
        "",
        f"AUROC of the quality score, intact against corrupted test posts: {', '.join(aurocs)}.",
        "",
        f"{source(record)} It took {results['seconds'] / 60:.0f} minutes on "
        f"{record['machine']['cores']} cores.",
    ]
