"""The tables of the cross-validation, on its page and in the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _pages import command_of, condition, folded, source, table
from _record import read_record
from _render_compare import ranks

TITLES = {
    "mvsa": "MVSA-Single, posts: image, text",
    "harmeme": "HarMeme, memes: image, text",
    "mvsa-mpnet": "MVSA-Single with MPNet-base",
    "harmeme-mpnet": "HarMeme with MPNet-base",
    "thirds": "Scikit-learn's digits in three parts",
    "fou-zer-mor": "UCI's digits in three views",
    "six-views": "UCI's digits in six views",
}
RECORDS = tuple(f"cross_validation{suffix}" for suffix in ("", "_views", "_six", "_mpnet"))
DROPOUTS = (0.1, 0.5, 0.7)  # tried for each baseline, and for our heads
HALF = ", half the epochs"


def trained(*names: str) -> tuple[str, ...]:
    """Heads in full training, and in one half as long."""
    return *names, *(name + HALF for name in names)


# The page shows one head of each kind cell by cell: the best where nothing is corrupted.
KINDS = {
    "concatenation": trained(*(f"concatenation, dropout {p}" for p in DROPOUTS)),
    "late": trained(*(f"late mean, dropout {p}" for p in DROPOUTS)),
    "default": trained("DRF"),
    "tuned": trained("DRF, dropout 0.1", "DRF", "DRF, dropout 0.7"),
    "voting": trained("DRF + votes", "DRF + votes, dropout 0.7"),
}
MEANS = ("clean", "corrupted", "missing")
README_WORDS = {
    "clean": "nothing wrong",
    "corrupted": "one corrupted",
    "missing": "one missing",
}


def gap(cell: Mapping[str, float]) -> str:
    """A difference with its standard error; bold from two of them on."""
    if not cell["error"]:
        return "the baseline"
    text = f"{cell['difference']:+.1f} ± {cell['error']:.1f}"
    return f"**{text}**" if abs(cell["difference"]) >= 2 * cell["error"] else text


def best(heads: Mapping[str, Any], names: Sequence[str]) -> str:
    """The head of most accuracy on the intact and the incomplete samples."""

    def undisturbed(name: str) -> float:
        cells = [
            values["accuracy"]
            for cell, values in heads[name].items()
            if not cell.endswith(" C") and cell not in ("missing", "corrupted", "mean")
        ]
        return sum(cells) / len(cells)

    return max((name for name in names if name in heads), key=undisturbed)


def data_sets() -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Results and record of each data set; what was measured again comes from the newer one."""
    latest: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for name in RECORDS:
        record = read_record(name)
        for data, results in record["results"]["data"].items():
            latest.setdefault(data, (results, record))
    return latest


def each_cell(heads: Mapping[str, Any], baseline: str) -> list[str]:
    """Accuracy in each cell, and the difference of each head from the baseline."""
    body = []
    for cell in heads[baseline]:
        cells = [condition(cell)]
        for head, values in heads.items():
            gained = "" if head == baseline else f"<br><small>{gap(values[cell])}</small>"
            cells.append(f"{values[cell]['accuracy']:.1f}{gained}")
        body.append(cells)
    names = [f"*{head}*" if head == baseline else head for head in heads]
    return table(["condition", *names], body)


def means(heads: Mapping[str, Any]) -> list[str]:
    """Differences of all heads from the baseline, and their macro-F1."""
    body = []
    for head, cells in heads.items():
        scores = " / ".join(f"{cells[cell]['macro_f1']:.1f}" for cell in MEANS)
        body.append([head, *(gap(cells[cell]) for cell in MEANS), scores])
    return table(["head", *map(condition, MEANS), "macro-F1 of these"], body)


def blocks() -> dict[str, list[str]]:
    """The blocks of the page, one a data set."""
    made_of = {}
    for name, (data, record) in data_sets().items():
        r2 = ", ".join(f"{m} {value:.2f}" for m, value in data["r2"].items())
        heads = data["heads"]
        columns = dict.fromkeys(best(heads, names) for names in KINDS.values())
        cells = each_cell({head: heads[head] for head in columns}, data["baseline"])
        made_of[name] = [
            f"{data['samples']:,} samples, majority class {data['majority']:.1f} %. R² of each "
            f"modality from the others: {r2}.",
            "",
            *folded("The best head of each kind in every condition", cells),
            "",
            *folded("All heads: differences from the baseline, and macro-F1", means(heads)),
            "",
            *folded("Command", [source(record)]),
        ]
    return made_of


def readme_lines() -> list[str]:
    """The table of the README."""
    body = []
    names = ("mvsa", "harmeme", "thirds", "fou-zer-mor", "six-views")
    latest = data_sets()
    for name in names:
        data, _ = latest[name]
        heads = data["heads"]
        ours = [best(heads, KINDS[kind]) for kind in ("default", "tuned", "voting")]
        for cell, words in README_WORDS.items():
            title = f"{TITLES[name]} ({data['majority']:.1f})" if cell == "clean" else ""
            gaps = (
                f"{gap(heads[head][cell])} ({heads[head][cell]['macro_f1_difference']:+.1f})"
                for head in ours
            )
            baseline = f"{heads[data['baseline']][cell]['accuracy']:.1f}"
            body.append([title, words, baseline, *gaps])
    head = ["data (majority class)", "inputs", "baseline", "DRF", "tuned", "with votes"]
    return [
        *table(head, body, left=(0, 1)),
        "",
        "Ranks by the mean of the three lines among all heads, each tuned by the same few trials",
        "([ranking](comparison.md)):",
        ranks(),
    ]


def fused_models() -> list[str]:
    """The README's table on two trained heads that are weighted by quality."""
    record = read_record("fuse_two_models")
    rows = record["results"]["accuracy"]
    cells = next(iter(rows.values()))
    body = ([name, *(f"{v:.1f}" for v in values.values())] for name, values in rows.items())
    return [
        f"Accuracy in %, {record['data']};",
        f"`{command_of(record).split(' --')[0]}` at commit `{record['commit']}`.",
        "",
        *table(["", *map(condition, cells)], body),
    ]
