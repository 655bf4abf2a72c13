"""The tables of the comparison of all heads, from the records of `compare.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _heads import head_names
from _pages import canvas, condition, counted, folded, p_value, source, table
from _record import RESULTS, read_record

TITLES = {
    "mvsa": "MVSA-Single",
    "harmeme": "HarMeme",
    "six-views": "Digits in six views",
    "fou-zer-mor": "Digits in three views",
    "thirds": "Digits in three parts",
}
OURS = ("NeighborVoteHead", "DRFHead")
BEST = 10  # heads of each ranking in the table of further conditions
ALWAYS = ("DRFHead", "PaperDRFHead", "Concatenation + modality dropout")
_CODE = "an earlier run of ECML's code, three seeds; not run again here"
_MEMORY = "quoted from memory, not checked against the paper"
_TABLE = "Table 3 of the paper of DRF"
# Head, accuracy on intact samples, accuracy on conflicting ones, and who reported them.
PUBLISHED: dict[str, list[tuple[str, float, float | None, str]]] = {
    "six-views": [
        ("ECML", 97.1, 92.9, _CODE),
        ("ECML", 99.4, 94.4, f"AAAI 2024; {_MEMORY}"),
        ("TMC", 98.51, None, f"ICLR 2021; {_MEMORY}"),
        ("TMC", 98.51, 92.76, f"AAAI 2024; {_MEMORY}"),
        ("ETMC", 98.75, None, f"TPAMI 2023; {_MEMORY}"),
    ],
    "mvsa": [
        ("HSAN", 69.9, None, _TABLE),
        ("MVAN", 73.0, None, _TABLE),
        ("MGNNS", 73.8, None, _TABLE),
        ("CLMLF", 75.3, None, _TABLE),
        ("MVCN", 76.1, None, _TABLE),
        ("PaperDRFHead", 76.5, None, _TABLE),
    ],
}


def records() -> dict[str, dict[str, Any]]:
    """The records that exist, by data set."""
    names = [name for name in TITLES if (RESULTS / f"compare_{name}.json").exists()]
    return {name: read_record(f"compare_{name}", RESULTS) for name in names}


def scores(record: Mapping[str, Any]) -> list[str]:
    """The ranked table of accuracies."""
    rows = record["results"]["rows"]
    first = next(iter(rows.values()))["accuracy"]
    parts = [part for part in ("clean", "missing", "corrupted") if part in first]
    head = ["Rank", "Head", "Mean", "Difference from the best", "p"]
    body = [
        [
            str(rank),
            name,
            f"{row['accuracy']['mean']:.1f}",
            "" if row["p_value"] is None else f"{row['difference']:.1f} ± {row['error']:.1f}",
            p_value(row["p_value"]),
            *(f"{row['accuracy'][part]:.1f}" for part in parts),
            f"{row['macro_f1']['mean']:.1f}",
            f"{row['nll']['mean']:.2f}",
        ]
        for rank, (name, row) in enumerate(rows.items(), 1)
    ]
    return table([*head, *map(condition, parts), "Macro-F1", "NLL"], body, left=(1,))


def each_cell(record: Mapping[str, Any]) -> list[str]:
    """Accuracy in every condition."""
    rows, cells = record["results"]["rows"], record["results"]["cells"]
    body = [[name, *(f"{row['accuracy'][c]:.1f}" for c in cells)] for name, row in rows.items()]
    return table(["Head", *map(condition, cells)], body)


def costs(record: Mapping[str, Any]) -> list[str]:
    """Parameters and times, cheapest training first."""
    rows = sorted(record["results"]["rows"].items(), key=lambda item: item[1]["training_ratio"])
    body = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['microseconds']:.0f}",
            f"{row['inference_ratio']:.1f}",
            f"{row['training_ratio']:.1f}",
        ]
        for name, row in rows
    ]
    return table(
        ["Head", "Parameters", "µs a sample", "Inference, ratio", "Training step, ratio"], body
    )


def published(name: str, record: Mapping[str, Any]) -> list[str]:
    """Our accuracies and those that others reported."""
    rows, body = record["results"]["rows"], []
    for head, intact, conflict, reporter in PUBLISHED.get(name, []):
        if head not in rows:
            continue
        ours = rows[head]["accuracy"]
        both = ["", ""]
        if conflict is not None and "conflict" in ours:
            both = [f"{conflict:.1f}", f"{ours['conflict']:.1f}"]
        body.append([head, f"{intact:.1f}", f"{ours['clean']:.1f}", *both, reporter])
    words = ("published", "ours")
    head = ["Head", *(f"{kind}, {who}" for kind in ("Intact", "Conflict") for who in words)]
    return table([*head, "Source"], body, left=(0, 5)) if body else []


def standing(record: Mapping[str, Any]) -> str:
    """A sentence each on the best head, those tied with it, and `DRFHead`."""
    rows: dict[str, Any] = record["results"]["rows"]
    names = list(rows)
    tied = [name for name in names[1:] if rows[name]["p_value"] >= 0.05]
    text = f"**{names[0]}** has the highest mean. "
    text += (
        f"Statistically tied with it: {', '.join(tied)}." if tied else "All others are behind it."
    )
    if "DRFHead" in rows:
        text += f" `DRFHead` has rank {names.index('DRFHead') + 1} of {len(names)}."
    best = max(names, key=lambda name: rows[name]["accuracy"]["clean"])
    return text + f" On intact samples {best} is the most accurate."


def ranks() -> str:
    """The ranks of our two heads on each data set, for the README."""
    lines = []
    for name, record in records().items():
        rows = record["results"]["rows"]
        order = list(rows)
        ours = ", ".join(f"`{head}` {order.index(head) + 1}" for head in OURS if head in order)
        tied = sum(row["p_value"] >= 0.05 for row in rows.values() if row["p_value"] is not None)
        words = f", {counted(tied, 'head')} statistically tied with the first" if tied else ""
        lines.append(f"{TITLES[name]}: {ours} of {len(order)}{words}")
    return ";\n".join(lines) + "."


def described(record: Mapping[str, Any]) -> str:
    """The data of a record in a sentence."""
    results = record["results"]
    return (
        f"{record['data']}. {results['samples']:,} samples, majority class "
        f"{results['majority']:.1f} %; {results['folds']} folds, "
        f"{counted(len(record['seeds']), 'seed')}, {results['trials']} trials a head."
    )


def comparison() -> dict[str, list[str]]:
    """The blocks of the page, one a data set."""
    blocks = {}
    for name, record in records().items():
        lines = [described(record), "", standing(record), ""]
        lines += folded("Ranking", scores(record))
        names = head_names(tuple(record["results"]["modalities"]))
        absent = [head for head in names if head not in record["results"]["rows"]]
        if absent:
            lines += ["", f"Not run: {', '.join(absent)}."]
        lines += ["", *folded("Accuracy in every condition", each_cell(record))]
        lines += ["", *folded("Parameters and time", costs(record))]
        if figures := published(name, record):
            lines += ["", *folded("Published figures", figures)]
        blocks[name] = [*lines, "", source(record)]
    return blocks


def protocol() -> dict[str, list[str]]:
    """The blocks on further conditions, one a data set."""
    blocks = {}
    for name, record in records().items():
        rows, cells = record["results"]["rows"], record["results"]["protocol"]
        shown_heads = [head for rank, head in enumerate(rows) if rank < BEST or head in ALWAYS]
        best = {cell: max(rows[head]["accuracy"][cell] for head in shown_heads) for cell in cells}
        body = []
        for head in shown_heads:
            accuracy = rows[head]["accuracy"]
            words = [
                f"**{accuracy[c]:.1f}**" if accuracy[c] == best[c] else f"{accuracy[c]:.1f}"
                for c in cells
            ]
            body.append([head, f"{accuracy['clean']:.1f}", *words])
        lines = folded(TITLES[name], table(["Head", "intact", *cells], body))
        blocks[f"further, {name}"] = [*lines, "", source(record)]
    return blocks


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw the mean accuracy of every head, and how far it is from the best one."""
    results = record["results"]
    names = list(results["rows"])[::-1]
    rows = [results["rows"][name] for name in names]
    figure, panels = canvas(size=(7.5, 1.3 + 0.26 * len(rows)))
    panel = panels[0][0]
    for key, marker, color in (
        ("clean", "o", "#56B4E9"),
        ("missing", "s", "#E69F00"),
        ("corrupted", "^", "#CC79A7"),
    ):
        points = [
            (row["accuracy"][key], y) for y, row in enumerate(rows) if key in row["accuracy"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            panel.scatter(x, y, s=22, marker=marker, color=color, label=condition(key), alpha=0.8)
    means = [row["accuracy"]["mean"] for row in rows]
    reach = [2 * row["error"] for row in rows]
    label = "mean of the three ± 2 s.e. of the difference from the best"
    panel.errorbar(means, range(len(rows)), xerr=reach, fmt="D", ms=5, color="k", label=label)
    panel.axvline(means[-1], color="k", lw=0.8, alpha=0.5)
    panel.axvline(results["majority"], color="0.5", ls=":", label="majority class")
    panel.set(yticks=range(len(rows)), yticklabels=names, xlabel="accuracy (%)")
    panel.set_ylim(-0.6, len(rows) - 0.4)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path)
