"""The measured parts of two guides: the drift monitor, and the pooling of tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _record import RESULTS, read_record

GUIDES = Path(__file__).parent.parent / "docs" / "pages" / "guides"


def render() -> None:
    """Write what there is a record of."""
    for guide, name, made in (
        ("monitoring.md", "monitor", monitor),
        ("token-sequences.md", "pooling", pooling),
    ):
        if (RESULTS / f"{name}.json").exists():
            write(GUIDES / guide, name, made(read_record(name)))


def write(path: Path, name: str, lines: list[str]) -> None:
    """Replace what stands between the two comments of this name."""
    begin, end = (
        f"<!-- {name}: written by benchmarks/_render_monitor.py -->",
        f"<!-- {name}: end -->",
    )
    text = path.read_text(encoding="utf-8")
    block = "\n\n".join([begin, "\n".join(lines), end])
    found, count = re.subn(
        re.escape(begin) + ".*?" + re.escape(end), lambda _: block, text, flags=re.S
    )
    if count != 1:
        raise ValueError(f"{path} must hold the comments of {name!r} once, found {count}")
    path.write_text(found, encoding="utf-8")


def source(record: Mapping[str, Any]) -> str:
    """Where the numbers come from."""
    return f"Written by `{record['command']}` at commit `{record['commit']}`, {record['date']}."


def monitor(record: Mapping[str, Any]) -> list[str]:
    """False alarms and delays."""
    results = record["results"]
    posts, uniform = results["posts"], results["uniform"]
    streams, false = posts["streams"], posts["false_alarms"]
    lines = [
        "## Measured",
        "",
        f"MVSA-Single, frozen features, `delta` = {results['delta']:g}, three names: image, text, "
        f"pairing. Of {streams} good streams of 10,000 posts {false['references']} alarmed with "
        f"references and {false['own past']} without. In others something changes after 2,000 "
        "good posts: how many posts until the alarm, the median stream (and the latest). *With a "
        "margin* bets on the same p-values, raised by the error that 451 references may have.",
        "",
        "| change | share of the posts | with references | own past | with a margin |",
        "|---|---:|---:|---:|---:|",
    ]
    keys = [key.split("/")[1:] for key in posts["delays"] if key.startswith("references/")]
    for change, share in keys:
        cells = [
            _wait(posts["delays"][f"{way}/{change}/{share}"], streams)
            for way in ("references", "own past", "with a margin")
        ]
        lines.append(f"| {change} | {100 * float(share):g} % | {' | '.join(cells)} |")
    lines += [
        "",
        "*Found in k* means that the stream ended, 5,000 posts later, before the others alarmed. "
        "Of single posts with another's text the pairing alarms (p ≤ 0.05) on "
        f"{100 * posts['alarm_at_5_percent']['texts exchanged, pairing']:.0f} %, of true pairs on "
        f"{100 * posts['alarm_at_5_percent']['good posts, pairing']:.0f} %.",
        "",
        f"Does the bound hold? The share of {results['uniform_streams']:,} good streams of 10,000 "
        "independent scores in which there is a false alarm, each with references of its own:",
        "",
        "| | "
        + " | ".join(f"{n} references, delta {d}" for n in uniform for d in ("0.1", "0.01"))
        + " |",
        "|---|" + "---:|" * (2 * len(uniform)),
    ]
    for way in next(iter(uniform.values())):
        cells = [f"{100 * uniform[n][way][d]:.1f} %" for n in uniform for d in ("0.1", "0.01")]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return [*lines, "", source(record)]


def _wait(cell: Mapping[str, Any], streams: int) -> str:
    if cell["found"] == 0:
        return "–"
    if cell["found"] < streams:
        return f"found in {cell['found']} of {streams}"
    return f"{cell['median']:,} ({cell['latest']:,})"


def pooling(record: Mapping[str, Any]) -> list[str]:
    """What each pooling reaches."""
    results = record["results"]
    cells = next(iter(results["cells"].values()))
    lines = [
        "## Does attention pooling pay?",
        "",
        f"Frozen MiniLM tokens of {results['posts']:,} posts of MVSA-Single, {results['folds']} "
        "folds with equal texts in one fold, the same head and training for all. Accuracy in %, "
        "and the difference to the masked mean with its paired standard error; the majority class "
        f"has {100 * results['majority']:.1f} %.",
        "",
        "| pooling | " + " | ".join(cells) + " |",
        "|---|" + "---:|" * len(cells),
    ]
    for name, row in results["cells"].items():
        shown = [
            f"{cell['accuracy']:.1f}"
            + (
                ""
                if name == "masked mean"
                else f" ({cell['difference']:+.1f} ± {cell['standard_error']:.1f})"
            )
            for cell in row.values()
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return [*lines, "", source(record)]


if __name__ == "__main__":
    render()
