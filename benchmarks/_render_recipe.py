"""The page on the default recipe and its figure, from `results/recipe*.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _record import RESULTS, dated, read_record

PAGES = Path(__file__).parent.parent / "docs" / "pages"
BASELINES = ("concatenation", "concatenation + dropout")
OURS = "DRF"
NAMES = {"concatenation": "Concatenation", "concatenation + dropout": "+ modality dropout"}
GOALS = {
    "1": "Clean accuracy at least the best baseline's",
    "2": "Best in every cell of image and text × C, D, C+D",
    "3": "Corruption never costs more than absence",
    "4": "Drop under modality-random C+D at most half the best baseline's",
    "5": "The quality score tells corrupted from clean",
    "6": "Unseen corruptions; rare classes are not called poor",
    "N modalities": "Six views",
}


def render() -> list[Path]:
    """Write the page and the figure; returns the files written."""
    record = read_record("recipe")
    page = PAGES / "results" / "recipe.md"
    page.write_text(dated(_page(record), record), encoding="utf-8")
    written = [page]
    if record["results"].get("by_share"):
        written.append(draw(record["results"]["by_share"], PAGES / "assets"))
    return written


def draw(shares: Mapping[str, Any], folder: Path) -> Path:
    """Quality against the corrupted share of the input, one line a modality."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    x = [100 * share for share in shares["share"]]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for modality, colour, marker in (("image", "#0b6e99", "o"), ("text", "#b5541c", "s")):
        row = shares[modality]
        axes.fill_between(x, row["low"], row["high"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, row["mean"], color=colour, marker=marker, markersize=4, label=modality)
    axes.set(xlabel="share of pixels or words masked, %", ylabel="quality")
    axes.set_ylim(0, 1)
    axes.set_xlim(0, max(x))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="upper right")
    path = folder / "quality-vs-share.png"
    figure.savefig(path, dpi=144)
    plt.close(figure)
    return path


def _page(record: Mapping[str, Any]) -> str:
    results = record["results"]
    parts = [
        "# The default recipe\n",
        "What the default head gains over the baselines it has to beat, which of its parts does "
        "it, and where it falls short of the goals that were set before it was built.\n",
        _origin(record),
        "## Scorecard\n",
        _scorecard(results),
    ]
    if "mvsa" in results:
        parts += [
            "## MVSA-Single\n",
            f"Accuracy in %, mean over {_count(len(results['mvsa']['seeds']), 'training seed')} "
            "and four draws of each corruption; 95 % intervals over samples and seeds. The last "
            f"column is the difference from the best baseline of the row, paired. The majority "
            f"class has {results['majority']:.1f} %. One standard error of an accuracy on "
            "450 posts is about 2 points.\n",
            _table(results["mvsa"], [c for c in _cells(results["mvsa"]) if ":" not in c]),
            "Macro-F1 in %:\n",
            _f1(results["mvsa"]),
            "### Corruptions that neither training nor tuning has seen\n",
            _table(results["mvsa"], results["unseen"]),
            "### A random modality, corrupted or discarded\n",
            _random(results["random"]),
            "## Quality\n",
            "AUROC of clean against corrupted test posts, by the head's own score, on frozen "
            "features; mean and standard deviation over training seeds.\n",
            _auroc(results["quality"]),
            "Mean quality of posts by class. A score that called a rare class poor would show "
            "here.\n",
            _classes(results["quality"]),
        ]
    if results.get("by_share"):
        parts += [
            "![Quality falls with the masked share of image and text]"
            "(../assets/quality-vs-share.png)\n",
            f"Mean quality over {results['by_share']['posts']} test posts, "
            "by the share of pixels or words masked; the bands hold the middle half of the "
            "posts. Nothing of this was trained on: the head learns what broken means from its "
            "own queue.\n",
        ]
    if "digits" in results:
        parts += [
            "## Digits in halves\n",
            "Scikit-learn's digits, upper and lower half as two modalities; divisions other than "
            "those that settings were chosen on, one for each of "
            f"{_count(len(results['digits']['seeds']), 'seed')}.\n",
            _table(results["digits"], _cells(results["digits"])),
        ]
    if "views" in results:
        parts += [
            "## Six views\n",
            "UCI's multiple features, random 80/20 splits, "
            f"{_count(len(results['views']['seeds']), 'seed')}. Conflict is ECML's protocol: "
            "noise on some views of 10 % of the samples, one view of another class in 40 %.\n",
            _table(results["views"], _cells(results["views"])),
        ]
    if (RESULTS / "recipe_ablation.json").exists():
        ablation = read_record("recipe_ablation")
        parts += [
            "## From the paper's head to the default\n",
            "Rows that begin with + add one part to the row above; the others say in what they "
            "differ from the default. Accuracy in % with 95 % intervals, and what the default "
            "gains over the row on the mean of clean and C+D of both modalities. "
            "The numbers of seeds are in the table; each difference takes the same seeds of the "
            "default. The paper's rows train for five epochs of batches of 64, learning rate "
            "3e-4: nothing was tuned for them.\n",
            _ablation(ablation["results"]),
            _origin(ablation),
        ]
    if (RESULTS / "recipe_tuning.json").exists():
        parts += ["## Settings\n", _settings(read_record("recipe_tuning")["results"])]
    return "\n".join(parts)


def _origin(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    return (
        f'!!! info "Where the numbers come from"\n\n    `{record["command"]}` at '
        f"`{record['commit']}`, {record['date']}; {record['data']}; seeds "
        f"{_range(record['seeds'])}; {machine['cores']} CPU cores, torch {machine['torch']}.\n"
    )


def _scorecard(results: Mapping[str, Any]) -> str:
    lines = ["| Goal | | Verdict |", "|---|---|---|"]
    lines += [
        f"| {number} | {GOALS[number]} | **{verdict}** |"
        for number, verdict in results["goals"].items()
    ]
    lines += [
        "",
        "A goal is met when all its lines are. Differences are read literally: a tenth of a "
        "point below the best baseline of that cell counts as not met, whether or not the "
        "samples can tell it from zero; the intervals say so. “Best baseline” is the better of "
        "concatenation and concatenation with modality dropout in that very cell.",
        "",
        '??? note "Every line"',
        "",
        "    | Goal | What | Needed | Found | Verdict |",
        "    |---|---|---|---|---|",
    ]
    lines += [
        f"    | {row['goal']} | {row['what']} | {row['needed']} | {row['found']} | "
        f"{row['verdict']} |"
        for row in results["scorecard"]
    ]
    return "\n".join(lines) + "\n"


def _table(made: Mapping[str, Any], cells: Sequence[str]) -> str:
    lines = [
        f"| | {NAMES[BASELINES[0]]} | {NAMES[BASELINES[1]]} | DRF | DRF − best |",
        "|---|---|---|---|---|",
    ]
    for cell in cells:
        name = max(BASELINES, key=lambda n: made["accuracy"][n][cell][0])
        row = made["against"][name][cell]
        values = [f"{made['accuracy'][n][cell][0]:.1f}" for n in (*BASELINES, OURS)]
        lines.append(
            f"| {_title(cell)} | {' | '.join(values)} | {_gap(row['difference'])}, "
            f"p {_p(_p_of(row))} |"
        )
    return "\n".join(lines) + "\n"


def _f1(made: Mapping[str, Any]) -> str:
    cells = list(made["macro_f1"][OURS])
    lines = ["| | " + " | ".join(map(_title, cells)) + " |", "|---" * (len(cells) + 1) + "|"]
    for name in (*BASELINES, OURS):
        values = [f"{made['macro_f1'][name][cell]:.1f}" for cell in cells]
        lines.append(f"| {NAMES.get(name, name)} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _random(rows: Mapping[str, Any]) -> str:
    lines = [
        "Drop from the accuracy on intact samples of the head trained on intact samples, in "
        "points (accuracy in brackets). The last column is DRF where the same modalities are "
        "all discarded, so that nothing is left to tell: what a perfect quality score could do.",
        "",
        f"| Training | Rate | {NAMES[BASELINES[0]]} | {NAMES[BASELINES[1]]} | DRF | DRF, D only |",
        "|---|---|---|---|---|---|",
    ]
    for how, found in rows.items():
        for rate, row in found.items():
            values = [
                f"{row['drop'][n][0]:.1f} ({row['accuracy'][n][0]:.1f})"
                for n in (*BASELINES, OURS)
            ]
            values.append(f"{row['absent_drop'][0]:.1f}" if "absent_drop" in row else "")
            lines.append(f"| {how} | {rate} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _auroc(found: Mapping[str, Any]) -> str:
    lines = ["| Modality | Corruption | AUROC |", "|---|---|---|"]
    for modality, row in found.items():
        for kind, (mean, spread) in row["auroc"].items():
            shown = f"{kind}, as in the paper" if kind == "mask" else f"{kind}, unseen"
            lines.append(f"| {modality} | {shown} | {mean:.3f} ± {spread:.3f} |")
    return "\n".join(lines) + "\n"


def _classes(found: Mapping[str, Any]) -> str:
    lines = ["| Modality | Class | Posts | Clean | Corrupted |", "|---|---|---|---|---|"]
    for modality, row in found.items():
        for name, mean in row["class_means"].items():
            lines.append(
                f"| {modality} | {name} | {mean['posts']} | {mean['clean']:.2f} | "
                f"{mean['corrupted']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _ablation(rows: Mapping[str, Any]) -> str:
    cells = ("clean", "fixed/image/C", "fixed/image/D", "fixed/text/C", "fixed/text/D")
    lines = [
        "| | Seeds | " + " | ".join(map(_title, cells)) + " | Default − row | AUROC image, text |",
        "|---" * (len(cells) + 4) + "|",
    ]
    for row in rows.values():
        shown = []
        for cell in cells:
            mean, low, high = row["accuracy"][cell]
            wide = "" if math.isnan(low) else f" <small>[{low:.1f}, {high:.1f}]</small>"
            shown.append(f"{mean:.1f}{wide}")
        gap = row["default_minus_row"].get("mean")
        auroc = row.get("auroc")
        shown.append("" if gap is None else f"{_gap(gap['difference'])}, p {_p(_p_of(gap))}")
        shown.append("" if auroc is None else f"{auroc['image']:.2f}, {auroc['text']:.2f}")
        lines.append(f"| {row['title']} | {len(row['seeds'])} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _settings(found: Mapping[str, Any]) -> str:
    lines = [
        "Chosen on training and validation samples by the mean of clean and C+D of both "
        "modalities (six views: clean and conflict), from as many settings for each head.",
        "",
        "| Data | Head | Tried | Chosen |",
        "|---|---|---|---|",
    ]
    for data, heads in found["settings"].items():
        for name, row in heads.items():
            chosen = ", ".join(
                f"{k.replace('_', ' ')} {v:g}" for k, v in row.items() if k != "tried"
            )
            lines.append(f"| {data} | {name} | {len(row['tried'])} | {chosen} |")
    return "\n".join(lines) + "\n"


def _cells(made: Mapping[str, Any]) -> list[str]:
    return list(made["accuracy"][OURS])


def _title(cell: str) -> str:
    return cell.removeprefix("fixed/").replace("/", " ").replace(":", ", ")


def _gap(values: Sequence[float]) -> str:
    return f"{values[0]:+.1f} <small>[{values[1]:+.1f}, {values[2]:+.1f}]</small>"


def _p_of(row: Mapping[str, Any]) -> float:
    """By permutation, or by the bootstrap in a record of 0.1.0."""
    return float(row["permutation_p"] if "permutation_p" in row else row["bootstrap_p"])


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _range(seeds: Sequence[int]) -> str:
    return f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else ", ".join(map(str, seeds))


if __name__ == "__main__":
    render()
