"""The page of what the paper's protocol leaves out, from the records of `compare.py`."""

from __future__ import annotations

from pathlib import Path

from _render_compare import TITLES, records, where_from

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "results" / "protocol.md"
BEST = 10  # heads of each ranking that are shown

_HOW = """---
hide: [toc] # wide tables
---

# Beyond the paper's protocol

The paper disrupts one modality at a time, all alike. Here the ten best heads of each
[ranking](comparison.md), and `DRFHead`, `PaperDRFHead` and concatenation with modality dropout
wherever they rank, under what else happens: the same trainings, accuracy in % out of fold, no
setting chosen by these columns. All are conditions of `robustness_grid(..., independent=...)` or
settings `"P"` of [`Disruption`](../guides/measuring-robustness.md), so a report of your own model
can have them too.

- **each missing, r**: every modality is missing with probability r by itself, at least one stays.
  Modality dropout hides a modality with probability 0.3 or what was tuned, at most 0.5: 0.8 is
  beyond what any head was trained with.
- **missing, 0.1 to 0.9**: the first modality in 10 % of the samples, the last in 90 %, those
  between evenly; **0.9 to 0.1** the other way round.
- **all poor**: every modality corrupted, so that nothing intact is left.
- **each poor or missing, 0.5**: every modality with probability one half corrupted or missing.
- **a part of one (each) missing**: 40 to 80 % of the columns of one (every) modality set to zero.
- **conflict**: the protocol of ECML, noise on 10 % of the samples and a view of another class in
  40 %.

The highest value of a column is bold; differences below a point mean little, and no test was made.
"""
ALWAYS = ("DRFHead", "PaperDRFHead", "Concatenation + modality dropout")


def render() -> None:
    """Write the page."""
    lines = [_HOW.rstrip()]
    for name, record in records().items():
        rows, cells = record["results"]["rows"], record["results"]["protocol"]
        shown = [head for place, head in enumerate(rows) if place < BEST or head in ALWAYS]
        best = {cell: max(rows[head]["accuracy"][cell] for head in shown) for cell in cells}
        lines += ["", f"## {TITLES[name]}", ""]
        lines += ["| Head | clean | " + " | ".join(cells) + " |"]
        lines += ["|---|---:|" + "---:|" * len(cells)]
        for head in shown:
            accuracy = rows[head]["accuracy"]
            words = [
                f"**{accuracy[cell]:.1f}**"
                if accuracy[cell] == best[cell]
                else f"{accuracy[cell]:.1f}"
                for cell in cells
            ]
            lines.append(f"| {head} | {accuracy['clean']:.1f} | {' | '.join(words)} |")
        lines += ["", where_from(record)]
    PAGE.write_text("\n".join(lines) + "\n")
