"""The page of the paper's tables and figures on MVSA-Single, from records of paper_tables.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _record import RESULTS, dated, read_record

PAGES = Path(__file__).parent.parent / "docs" / "pages"
PAGE, ASSETS = PAGES / "results" / "mvsa.md", PAGES / "assets"
PLACES = ("image", "text")
SETTINGS = ("C", "D", "C+D")
FIXED = tuple(f"fixed/{place}/{setting}" for place in PLACES for setting in SETTINGS)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Accuracy in Table 4 of the paper, MVSA-S, in the order of FIXED; the first row is the whole DRF.
PUBLISHED = {
    "PaperDRFHead": (74.5, 73.4, 73.8, 69.4, 68.1, 68.5),
    "without sample-based recovery": (73.7, 72.1, 72.6, 68.5, 66.7, 67.5),
    "without distribution-based recovery": (73.2, 71.5, 72.2, 68.5, 65.8, 67.0),
    "without Gaussian probability": (71.9, 72.7, 72.3, 67.1, 67.5, 67.3),
    "without pair expansion": (72.4, 68.3, 71.0, 67.7, 65.0, 66.2),
    "without distribution constraint": (74.0, 72.5, 73.5, 68.7, 67.2, 67.9),
}

_OWN = """Your own head gets the same tables. Save a class like this one as `my_head.py`:

```python
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F


class MyHead(nn.Module):
    def __init__(self, dims, num_classes):
        super().__init__()
        self.parts = nn.ModuleDict({m: nn.Linear(d, num_classes) for m, d in dims.items()})

    def forward(self, features, available):
        seen = {m: x.where(available[m][:, None], 0.0) for m, x in features.items()}
        return SimpleNamespace(logits=sum(self.parts[m](x) for m, x in seen.items()))

    def loss(self, output, labels):
        return F.cross_entropy(output.logits, labels)
```

and run

```bash
python benchmarks/paper_tables.py --mvsa DIR --model my_head.py:MyHead
```

It is trained and measured as the others are, and the page and its figures go to
`runs/paper_tables`. For a trained model on data of your own there is `examples/report.py`."""


def render() -> list[Path]:
    """Write the page and its figures from the records in the repository."""
    return render_record(RESULTS, PAGE, ASSETS)


def render_record(folder: Path, page: Path, assets: Path) -> list[Path]:
    """Write the page and figures of the records in a folder; returns the files written."""
    record, figures = read_record("mvsa", folder), read_record("mvsa_figures", folder)
    results, drawn = record["results"], figures["results"]
    assets.mkdir(parents=True, exist_ok=True)
    files = figure_files(assets, drawn)
    where = "../assets" if assets == ASSETS else "."
    page.write_text(dated(text(record, drawn, files, where, folder), record), encoding="utf-8")
    draw_quality(drawn["quality"], files["3"])
    draw_rates(results, files["5"])
    if "6" in files:
        draw_recovered(drawn["recovered"], files["6"])
    return [page, *files.values()]


def figure_files(assets: Path, drawn: Mapping[str, Any]) -> dict[str, Path]:
    """Where the figures are, by their number in the paper."""
    files = {"3": assets / "mvsa-quality.png", "5": assets / "mvsa-rates.png"}
    return {**files, "6": assets / "mvsa-recovered.png"} if drawn["recovered"] else files


def text(
    record: Mapping[str, Any],
    drawn: Mapping[str, Any],
    files: Mapping[str, Path],
    where: str,
    folder: Path,
) -> str:
    """The page."""
    results = record["results"]
    note = caveat(results)
    own = [row for row in results["rows"] if row not in results["known_rows"]]
    lines = [
        "# The paper's tables, in our numbers",
        "",
        "Tables 1, 3 and 4 and Figures 3, 5 and 6 of [the paper](https://arxiv.org/abs/2511.18751)"
        " on MVSA-Single, made from frozen features in one command:",
        "",
        "```bash",
        "python benchmarks/paper_tables.py --mvsa DIR",
        "```",
        "",
        f"`DRFHead` is the default of this library. `{_PAPER}` is the paper's head, equations "
        "(1) to (16), on features that one number a modality gives a deviation of 0.4: in the "
        "paper the encoders are trained and find a scale, here they are frozen; see "
        "[the paper's head and the scale of features](paper-scale.md). "
        f"`{results['baseline']}` is the baseline. Trainings are short:"
        f" {_trainings(results)}. No option was chosen on the test posts.",
        "",
        "## Table 1: one modality disrupted throughout",
        "",
        "Training posts are intact. C corrupted (40 to 80 % of the pixels or words masked), D "
        "discarded, C+D either. Each cell is accuracy ± its standard error over seeds of "
        "training, then weighted F1, all in %.",
        "",
        *table_fixed(results, [*_mains(results), *own]),
        "",
        *tested(results, [*_mains(results), *own]),
        "",
        note,
        "",
        "## Table 3: nothing disrupted",
        "",
        *table_clean(results, [*_mains(results), *own]),
        "",
        note,
        "",
        "## Table 4: the paper's head without its parts",
        "",
        "Accuracy ± its standard error over seeds of training. The last two columns are the mean "
        "change of accuracy over the six conditions against the whole head: here, and in the "
        "paper's Table 4. Here the distribution constraint (3) has nothing to train: it moves "
        "encoders, and these are frozen.",
        "",
        *table_ablation(results),
        "",
        note,
        "",
        "## Figure 3: quality of clean and of corrupted inputs",
        "",
        *_figure(files["3"], where, "Histograms of log-quality, clean against corrupted"),
        "Scores of the test posts, three draws of the corruption, from the first training. The "
        "paper shows photos instead; posts of third parties are not shown here. AUROC is the "
        "probability that an intact input scores above a corrupted one, mean over seeds of "
        f"training: {_aurocs(drawn['quality'])}.",
        "",
        note,
        "",
        "## Figure 5: a random modality of a share of the posts",
        "",
        *_figure(files["5"], where, "Accuracy against the rate of disruption"),
        "Upper row: training posts are disrupted at the same rate, by C+D in all three panels "
        "(the paper trains for each setting). Lower row: the same heads trained on intact posts. "
        f"{_rate_seeds(results)}",
        "",
        note,
        "",
    ]
    if "6" in files:
        lines += [
            "## Figure 6: true and recovered features",
            "",
            *_figure(files["6"], where, "True and recovered features in the plane"),
            "Features of 120 test posts before the paper's head and what it recovers of them from "
            "the other modality, t-SNE above and principal axes below; nothing is disrupted "
            "(the paper shows several rates of disruption). "
            f"{_distances(drawn['recovered'])} Images and texts of these posts hardly tell of "
            "each other: there is little to recover.",
            "",
            note,
            "",
        ]
    other = [read_record("mvsa_mpnet", folder)] if (folder / "mvsa_mpnet.json").exists() else []
    for bigger in other:
        lines += larger_encoder(bigger["results"])
    records = [line for kept in (record, *other) for line in origin(kept, folder)]
    lines += ["## A head of your own", "", _OWN, "", "## Records", "", *records]
    return "\n".join(lines) + "\n"


def larger_encoder(results: Mapping[str, Any]) -> list[str]:
    """Tables 1, 3 and 4 from the texts of another encoder."""
    rows = _mains(results)
    return [
        "## The same tables with MPNet-base",
        "",
        "MPNet-base (109 million parameters, 768 numbers a text) has the size of the paper's text "
        "encoder; MiniLM above has 23 million. It is frozen, too, and all else is the same: "
        f"{_trainings(results)}.",
        "",
        "Table 1:",
        "",
        *table_fixed(results, rows),
        "",
        *tested(results, rows),
        "",
        "Table 3:",
        "",
        *table_clean(results, rows),
        "",
        "Table 4:",
        "",
        *table_ablation(results),
        "",
        caveat(results),
        "",
    ]


def caveat(results: Mapping[str, Any]) -> str:
    """What stands under every table."""
    majority, tested_posts = results["majority"], results["posts"]["test"]
    error = math.sqrt(majority["accuracy"] * (1 - majority["accuracy"]) / tested_posts)
    counts = sorted({len(results["rows"][row]["seeds"]) for row in results["rows"]})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    span += " seed" if counts[-1] == 1 else " seeds"
    return (
        f"*Always {majority['name']}: accuracy {100 * majority['accuracy']:.1f} %, weighted F1 "
        f"{100 * majority['weighted_f1']:.1f} %. {span} of training a row, "
        f"{len(results['disruption_seeds'])} of disruption; {tested_posts} test posts, so that "
        f"one standard error of sampling is {100 * error:.1f} points. "
        f"{100 * results['texts_in_train']:.0f} % of the published test texts also occur in "
        "train. Encoders are small and frozen: absolute numbers are not comparable with the "
        "paper's.*"
    )


def table_fixed(results: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Table 1."""
    head = ["", *(f"{place} {setting}" for place in PLACES for setting in SETTINGS)]
    body = [[_name(results, row), *(_cell(results, row, key) for key in FIXED)] for row in rows]
    return _table(head, [*body, _majority(results, len(FIXED))])


def table_clean(results: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Table 3."""
    rows = [*rows, *(row for row in results["known_rows"] if row not in rows)]
    rows = [row for row in rows if row in results["rows"] and row not in results["ablations"]]
    body = []
    for row in rows:
        cells = results["rows"][row]["scores"]["clean"]
        scores = [_mean(cells[metric]) for metric in ("accuracy", "weighted_f1", "macro_f1")]
        scores[0] += _error(cells["accuracy"])
        p = results["rows"][row]["p_values"].get("clean")
        body.append([_name(results, row), *scores, "" if p is None else _p(p)])
    line = results["majority"]
    values = [f"{100 * line[m]:.1f}" for m in ("accuracy", "weighted_f1", "macro_f1")]
    body.append([f"always {line['name']}", *values, ""])
    head = ["", "accuracy", "weighted F1", "macro F1", f"Holm p against {results['baseline']}"]
    return _table(head, body)


def table_ablation(results: Mapping[str, Any]) -> list[str]:
    """Table 4."""
    rows = [row for row in (_PAPER, *results["ablations"]) if row in results["rows"]]
    head = ["", *(f"{place} {s}" for place in PLACES for s in SETTINGS), "change", "published"]
    means, body = {}, []
    for row in rows:
        scores = results["rows"][row]["scores"]
        shared = _shared(results, row)
        means[row] = _fixed_mean(results, row, shared) - _fixed_mean(results, _PAPER, shared)
        published = float(np.mean(np.subtract(PUBLISHED[row], PUBLISHED[_PAPER])))
        cells = [_mean(v := scores[key]["accuracy"]) + _error(v) for key in FIXED]
        change = [f"{100 * means[row]:+.1f}", f"{published:+.1f}"]
        body.append([_name(results, row), *cells, *(change if row != _PAPER else ["", ""])])
    line = results["majority"]
    always = [f"always {line['name']}", *([f"{100 * line['accuracy']:.1f}"] * len(FIXED)), "", ""]
    table = _table(head, [*body, always])
    flat = [
        row
        for row in rows
        if all(
            abs(value - line["accuracy"]) < 1e-4
            for key in ("clean", *FIXED)
            for value in results["rows"][row]["scores"][key]["accuracy"]
        )
    ]
    if flat:
        table += [
            "",
            f"Never left the majority class in so short a training: {', '.join(flat)}. Their "
            "change says nothing about the part.",
        ]
    return table


def tested(results: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """What the paired tests say, row by row."""
    lines = []
    for row in rows:
        p_values = results["rows"][row]["p_values"]
        if not p_values:
            continue
        scores, base = (results["rows"][r]["scores"] for r in (row, results["baseline"]))
        sides: dict[str, list[str]] = {"above": [], "below": []}
        for key in FIXED:
            gap = np.mean(scores[key]["accuracy"]) - np.mean(base[key]["accuracy"])
            if p_values[key] < 0.05:
                sides["above" if gap > 0 else "below"].append(key.split("/", 1)[1])
        found = [f"{side} it on {', '.join(keys)}" for side, keys in sides.items() if keys]
        verdict = " and ".join(found) if found else "not told apart from it in any condition"
        least = min(p_values[key] for key in FIXED)
        lines.append(
            f"- {row} against {results['baseline']}: {verdict} (exact McNemar tests on the same "
            f"disrupted posts, twice the median over draws and seeds, Holm's correction; smallest "
            f"p {_p(least)})."
        )
    return lines


def origin(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Where the numbers come from."""
    place = "benchmarks/results" if folder == RESULTS else "."
    seconds = sum(sum(row["cpu_seconds"]) for row in record["results"]["rows"].values())
    names = ("mvsa_mpnet",) if "--mpnet" in record["command"] else ("mvsa", "mvsa_figures")
    files = ", ".join(f"`{place}/{name}.json`" for name in names)
    return [
        f"- {files}: `{record['command']}`, commit {record['commit']}, {record['date']}",
        f"- {record['data']}; posts {_posts(record['results']['posts'])}",
        f"- {record['machine']['processor']}, {record['machine']['threads']} thread, torch "
        f"{record['machine']['torch']}; the trainings of the tables took {seconds / 60:.0f} "
        "minutes of processor time",
    ]


def draw_quality(quality: Mapping[str, Any], path: Path) -> Path:
    """Figure 3: a row of panels a head, a panel a modality."""
    figure, panels = _panels(len(quality), 2, 4.0, 2.6)
    for line, (row, by_modality) in zip(panels, quality.items(), strict=True):
        for panel, (modality, found) in zip(line, by_modality.items(), strict=True):
            for kind, colour in zip(("clean", "corrupted"), COLOURS, strict=False):
                heights = 100 * np.asarray(found[kind])
                panel.stairs(heights, found["edges"], fill=True, color=colour, alpha=0.3)
                panel.stairs(heights, found["edges"], color=colour, linewidth=1.4, label=kind)
            panel.set_title(f"{row}, {modality}: AUROC {np.mean(found['auroc']):.2f}", fontsize=10)
            panel.set_xlabel("log-quality")
        line[0].set_ylabel("inputs (%)")
    return _saved(figure, panels[0][0], path)


def draw_rates(results: Mapping[str, Any], path: Path) -> Path:
    """Figure 5: trained on disrupted posts above, on intact ones below."""
    figure, panels = _panels(2, 3, 3.4, 2.9, sharey=True)
    mains = _mains(results)
    rows = [*mains, *(row for row in results["rows"] if row not in results["known_rows"])]
    for column, setting in enumerate(SETTINGS):
        for index, row in enumerate(rows):
            look = {"color": COLOURS[index], "marker": "os^Dv"[index % 5], "markersize": 4}
            made = results["rows"][row]
            intact = {key: cell["accuracy"] for key, cell in made["scores"].items()}
            drawn = {key: np.mean(values) for key, values in intact.items()}
            panels[1][column].plot(*_curve(drawn, setting), label=row, **look)
            disrupted = results["trained_disrupted"].get(row, {})
            drawn = {key: np.mean(point["accuracy"]) for key, point in disrupted.items()}
            if drawn:
                seeds = next(iter(disrupted.values()))["seeds"]
                pairs = zip(intact["clean"], made["seeds"], strict=True)
                drawn["clean"] = np.mean([value for value, seed in pairs if seed in seeds])
                panels[0][column].plot(*_curve(drawn, setting), **look)
        for line in panels:
            line[column].axhline(
                100 * results["majority"]["accuracy"], color="#707070", ls=":", label="majority"
            )
            line[column].set_xlabel("share of disrupted posts")
        panels[0][column].set_title(f"{setting}, trained disrupted", fontsize=10)
        panels[1][column].set_title(f"{setting}, trained intact", fontsize=10)
    for line in panels:
        line[0].set_ylabel("accuracy (%)")
    return _saved(figure, panels[1][0], path)


def draw_recovered(recovered: Mapping[str, Any], path: Path) -> Path:
    """Figure 6: a column a direction, t-SNE above principal axes."""
    figure, panels = _panels(2, len(recovered), 3.8, 3.0)
    for column, (direction, found) in enumerate(recovered.items()):
        for line, kind in zip(panels, ("tsne", "pca"), strict=True):
            for which, colour, marker in zip(
                ("true", "recovered"), COLOURS, ("o", "^"), strict=False
            ):
                points = [pair.split(",") for pair in found[kind][which].split()]
                x, y = np.asarray(points, dtype=float).T
                look = {"s": 14, "alpha": 0.65, "linewidths": 0}
                line[column].scatter(x, y, color=colour, marker=marker, label=which, **look)
            line[column].set_xticks([])
            line[column].set_yticks([])
        panels[0][column].set_title(f"{direction}: t-SNE", fontsize=10)
        share = 100 * sum(found["explained"])
        title = f"{direction}: principal axes, {share:.0f} % of variance"
        panels[1][column].set_title(title, fontsize=10)
    return _saved(figure, panels[0][0], path)


def _panels(lines: int, columns: int, width: float, height: float, **shared: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * lines + 0.4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, **shared)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, panels


def _curve(drawn: Mapping[str, Any], setting: str) -> tuple[list[float], list[float]]:
    """Rates and accuracies in %, nothing disrupted at rate 0."""
    keys = [k for k in drawn if k.startswith("random/") and k.endswith(f"/{setting}")]
    points = [(0.0, drawn["clean"]), *((float(k.split("/")[1]), drawn[k]) for k in keys)]
    rates, values = zip(*sorted(points), strict=True)
    return list(rates), [100 * float(value) for value in values]


def _saved(figure: Any, panel: Any, path: Path) -> Path:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
    figure.savefig(path)
    return path


_PAPER = "PaperDRFHead"


def _mains(results: Mapping[str, Any]) -> list[str]:
    rows = ("DRFHead", _PAPER, results["baseline"], "Concatenation")
    return [row for row in rows if row in results["rows"]]


def _name(results: Mapping[str, Any], row: str) -> str:
    most = max(len(other["seeds"]) for other in results["rows"].values())
    seeds = len(results["rows"][row]["seeds"])
    return row if seeds == most else f"{row} ({seeds} seed{'s' if seeds > 1 else ''})"


def _shared(results: Mapping[str, Any], row: str) -> list[int]:
    """Seeds that a row has in common with the whole head: a change is between the same seeds."""
    whole = results["rows"][_PAPER]["seeds"]
    return [seed for seed in results["rows"][row]["seeds"] if seed in whole]


def _fixed_mean(results: Mapping[str, Any], row: str, seeds: Sequence[int]) -> float:
    made = results["rows"][row]
    at = [made["seeds"].index(seed) for seed in seeds]
    return float(np.mean([[made["scores"][k]["accuracy"][i] for i in at] for k in FIXED]))


def _mean(values: Sequence[float]) -> str:
    return f"{100 * float(np.mean(values)):.1f}"


def _error(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    return f" ± {100 * float(np.std(values, ddof=1)) / math.sqrt(len(values)):.1f}"


def _cell(results: Mapping[str, Any], row: str, key: str) -> str:
    scores = results["rows"][row]["scores"][key]
    accuracy, f1 = scores["accuracy"], scores["weighted_f1"]
    return f"{_mean(accuracy)}{_error(accuracy)} / {_mean(f1)}"


def _majority(results: Mapping[str, Any], count: int) -> list[str]:
    line = results["majority"]
    cell = f"{100 * line['accuracy']:.1f} / {100 * line['weighted_f1']:.1f}"
    return [f"always {line['name']}", *([cell] * count)]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *body)]


def _figure(path: Path, where: str, words: str) -> list[str]:
    return [f"![{words}]({where}/{path.name})", ""]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _trainings(results: Mapping[str, Any]) -> str:
    found: dict[str, list[str]] = {}
    for row, made in results["rows"].items():
        if row in results["ablations"]:
            continue
        t = made["training"]
        words = f"{t['epochs']} epochs, batches of {t['batch_size']}, learning rate {t['lr']:g}"
        found.setdefault(words, []).append(f"`{row}`")
    return "; ".join(f"{words} ({', '.join(rows)})" for words, rows in found.items())


def _posts(posts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in posts.items())


def _aurocs(quality: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{row} " + ", ".join(f"{m} {np.mean(found['auroc']):.2f}" for m, found in by.items())
        for row, by in quality.items()
    )


def _rate_seeds(results: Mapping[str, Any]) -> str:
    curves = results["trained_disrupted"].values()
    counts = {len(point["seeds"]) for curve in curves for point in curve.values()}
    if not counts:
        return "No training on disrupted posts is in the record."
    fewest = min(counts)
    return (
        f"The upper row is of {fewest} seed{'s' if fewest > 1 else ''} of training, the lower "
        "row of the trainings of the tables."
    )


def _distances(recovered: Mapping[str, Any]) -> str:
    parts = [f"{found['distance_by_spread']:.2f} ({way})" for way, found in recovered.items()]
    return (
        "Distance of a recovered feature from its true one, divided by the mean distance of true "
        f"features from their mean: {', '.join(parts)}; always answering with the mean gives 1."
    )


if __name__ == "__main__":
    for written in render():
        print(written)
