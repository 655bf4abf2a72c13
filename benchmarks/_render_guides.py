"""The measured tables of the guides: drift monitor, pooling of tokens, few labels, damage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _damage_gallery import texts
from _pages import folded, source, table
from _record import read_record


def monitor() -> dict[str, list[str]]:
    """False alarms of the drift monitor, and how soon it finds a change."""
    record = read_record("monitor")
    results = record["results"]
    posts, uniform = results["posts"], results["uniform"]
    streams, false, at_5 = posts["streams"], posts["false_alarms"], posts["alarm_at_5_percent"]
    ways = ("references", "own past", "with a margin")
    keys = [key.split("/")[1:] for key in posts["delays"] if key.startswith("references/")]
    delays = (
        [change, f"{100 * float(share):g} %"]
        + [_wait(posts["delays"][f"{way}/{change}/{share}"], streams) for way in ways]
        for change, share in keys
    )
    columns = [(n, d) for n in uniform for d in ("0.1", "0.01")]
    bounds = (
        [way, *(f"{100 * uniform[n][way][d]:.1f} %" for n, d in columns)]
        for way in next(iter(uniform.values()))
    )
    return {
        "monitor": [
            f"Of {streams} good streams of 10,000 posts {false['references']} alarmed with "
            f"references and {false['own past']} without (`delta` = {results['delta']:g}).",
            "",
            *table(
                ["change", "share of the posts", "with references", "own past", "with a margin"],
                delays,
            ),
            "",
            "Single posts with the text of another alarm (p ≤ 0.05) by the pairing score in "
            f"{100 * at_5['texts exchanged, pairing']:.0f} %, true pairs in "
            f"{100 * at_5['good posts, pairing']:.0f} %. The share of "
            f"{results['uniform_streams']:,} good streams of 10,000 independent scores with a "
            "false alarm:",
            "",
            *table(["", *(f"{n} references, delta {d}" for n, d in columns)], bounds),
            "",
            source(record),
        ]
    }


def _wait(cell: Mapping[str, Any], streams: int) -> str:
    if cell["found"] == 0:
        return "–"
    if cell["found"] < streams:
        return f"found in {cell['found']} of {streams}"
    return f"{cell['median']:,} ({cell['latest']:,})"


def pooling() -> dict[str, list[str]]:
    """Accuracy with each pooling of tokens."""
    record = read_record("pooling")
    results = record["results"]
    body = []
    for name, row in results["cells"].items():
        cells = [name]
        for cell in row.values():
            gap = f" ({cell['difference']:+.1f} ± {cell['standard_error']:.1f})"
            cells.append(f"{cell['accuracy']:.1f}{'' if name == 'masked mean' else gap}")
        body.append(cells)
    words = (
        f"{results['posts']:,} posts of MVSA-Single, {results['folds']} folds, majority class "
        f"{100 * results['majority']:.1f} %."
    )
    head = ["pooling", *next(iter(results["cells"].values()))]
    return {"pooling": [words, "", *table(head, body), "", source(record)]}


def few_labels() -> dict[str, list[str]]:
    """Accuracy with few labels, without and with the unlabeled rest."""
    record = read_record("few_labels")
    body = (
        [
            n,
            f"{row['alone']:.1f}",
            f"{row['with']:.1f}",
            f"{row['difference']:+.1f} ± {row['error']:.1f}",
        ]
        for n, row in record["results"]["rows"].items()
    )
    head = ["labeled posts", "labeled posts only", "and the rest without labels", "difference"]
    return {"measured": [*table(head, body, left=()), "", source(record)]}


def damage() -> dict[str, list[str]]:
    """Alarms and accuracy of the main job under each kind of damage, the most alarms first."""
    record = read_record("hero")
    results = record["results"]
    cells = {(c["modality"], c["kind"], c["severity"]): c for c in results["kinds"]}
    lines = []
    for modality in ("image", "text"):
        intact = cells[modality, "intact", 0.0]
        missing = cells[modality, "missing", 1.0]
        kinds = [k for m, k, s in cells if m == modality and s == 1.0 and k != "missing"]
        kinds.sort(key=lambda k: -sum(cells[modality, k, s]["alarms"] for s in (0.6, 1.0)))
        body = [[f"*intact {modality}*", *_pairs(intact, intact)]]
        for kind in kinds:
            pair = (cells[modality, kind, severity] for severity in (0.6, 1.0))
            body.append([kind.replace("_", " "), *_pairs(*pair)])
        head = [
            f"damage of the {modality}",
            "alarms (%) at 0.6",
            "at 1",
            "accuracy (%) of DRF, concatenation at 0.6",
            "at 1",
        ]
        lines += [
            *folded(f"Damage of the {modality}, at severities 0.6 and 1", table(head, body)),
            "",
            f"With the {modality} declared missing: DRF {missing['drf']:.1f} %, concatenation "
            f"{missing['concatenation']:.1f} %.",
            "",
        ]
    return {
        "damaged texts": texts(),
        "damage": [
            *lines,
            f"The most frequent class has {results['majority']:.1f} %. "
            f"{results['test_posts']} generated test posts, severities 0.6 and 1, one draw of the "
            f"damage: `python examples/drf_mvsa.py` at commit `{results['commit_of_run'][:7]}`. "
            "[All numbers as CSV](../assets/damage.csv).",
        ],
    }


def _pairs(half: Mapping[str, Any], full: Mapping[str, Any]) -> list[str]:
    return [
        f"{half['alarms']:.0f}",
        f"{full['alarms']:.0f}",
        f"{half['drf']:.1f}, {half['concatenation']:.1f}",
        f"{full['drf']:.1f}, {full['concatenation']:.1f}",
    ]
