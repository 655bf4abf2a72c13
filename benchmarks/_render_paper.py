"""Tables and figures of the paper in our numbers, from the records of `paper_tables.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _pages import canvas, command_of, condition, counted, p_value, table
from _record import RESULTS, read_record

SETTINGS = ("C", "D", "C+D")
FIXED = tuple(f"fixed/{modality}/{s}" for modality in ("image", "text") for s in SETTINGS)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
WHOLE = "PaperDRFHead"

# Accuracy in Table 4 of the paper, MVSA-S, in the order of FIXED; the first row is the whole DRF.
PUBLISHED = {
    WHOLE: (74.5, 73.4, 73.8, 69.4, 68.1, 68.5),
    "without sample-based recovery": (73.7, 72.1, 72.6, 68.5, 66.7, 67.5),
    "without distribution-based recovery": (73.2, 71.5, 72.2, 68.5, 65.8, 67.0),
    "without Gaussian probability": (71.9, 72.7, 72.3, 67.1, 67.5, 67.3),
    "without pair expansion": (72.4, 68.3, 71.0, 67.7, 65.0, 66.2),
    "without distribution constraint": (74.0, 72.5, 73.5, 68.7, 67.2, 67.9),
}


# Accuracy / F1 that the paper prints for MVSA-S: Table 1, in the order of FIXED, and Table 3.
PRINTED = {
    "HSAN": ("70.5/69.7 69.8/69.6 70.0/69.5 64.9/64.3 64.1/63.3 64.6/64.2", "69.9/66.9"),
    "MVAN": ("67.7/67.4 66.5/66.0 66.3/66.2 63.0/62.3 62.4/62.2 62.8/62.5", "73.0/73.0"),
    "MGNNS": ("71.9/71.8 71.6/70.9 71.6/71.3 66.1/65.6 64.7/64.5 65.5/65.2", "73.8/72.7"),
    "CLMLF": ("69.4/69.0 67.7/67.8 68.4/68.1 64.3/63.6 63.1/62.8 63.7/63.4", "75.3/73.5"),
    "MVCN": ("70.3/69.9 69.3/69.2 69.9/69.4 65.3/65.0 64.6/64.5 65.0/64.7", "76.1/74.6"),
    "DRF": ("74.5/74.4 73.4/73.1 73.8/73.6 69.4/69.4 68.1/68.0 68.5/68.3", "76.5/75.9"),
}


def printed() -> list[str]:
    """The paper's own rows of Tables 1 and 3."""
    body = (
        [row, *(cell.replace("/", " / ") for cell in (*cells.split(), intact))]
        for row, (cells, intact) in PRINTED.items()
    )
    return table(["printed in the paper", *map(condition, FIXED), "intact (Table 3)"], body)


def write(folder: Path) -> list[Path]:
    """Write tables and figures of the records in a folder next to them; returns the files."""
    lines = ["# The paper's tables, in your numbers"]
    for name, block in blocks(folder).items():
        lines += ["", f"## {name.capitalize()}", "", *block]
    path = folder / "tables.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [path, *draw(folder, folder)]


def blocks(folder: Path = RESULTS) -> dict[str, list[str]]:
    """The blocks of the page, and of a page on a head of the user's own."""
    record, drawn = read_record("mvsa", folder), read_record("mvsa_figures", folder)["results"]
    results = record["results"]
    lines = tables(results)
    lines["printed"] = printed()
    lines["figure 3"] = [f"AUROC, mean over seeds of training: {_aurocs(drawn['quality'])}."]
    if drawn["recovered"]:
        lines["figure 6"] = [_distances(drawn["recovered"])]
    lines["records"] = origin(record, folder)
    if (folder / "mvsa_mpnet.json").exists():
        larger = read_record("mvsa_mpnet", folder)
        more = tables(larger["results"])
        lines |= {f"{name}, MPNet": text for name, text in more.items()}
        lines["records"] += origin(larger, folder)
    return lines


def tables(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Tables 1, 3 and 4, how the rows were trained, and a caveat."""
    main = ("DRFHead", WHOLE, results["baseline"], "Concatenation")
    rows = [row for row in main if row in results["rows"]]
    rows += [row for row in results["rows"] if row not in results["known_rows"]]
    return {
        "trainings": [_trainings(results)],
        "caveat": [caveat(results)],
        "table 1": [*table_fixed(results, rows), "", *tested(results, rows)],
        "table 3": table_clean(results, rows),
        "table 4": table_ablation(results),
    }


def caveat(results: Mapping[str, Any]) -> str:
    """The majority class, the sampling error and the overlap of texts."""
    majority, tested_posts = results["majority"], results["posts"]["test"]
    error = math.sqrt(majority["accuracy"] * (1 - majority["accuracy"]) / tested_posts)
    counts = sorted({len(row["seeds"]) for row in results["rows"].values()})
    span = "" if len(counts) == 1 else f"{counts[0]} to "
    return (
        f"Always predicting {majority['name']} has an accuracy of "
        f"{100 * majority['accuracy']:.1f} % and a weighted F1 of "
        f"{100 * majority['weighted_f1']:.1f} %. Each row has {span}{counted(counts[-1], 'seed')} "
        f"of training and {len(results['disruption_seeds'])} of disruption. One standard error of "
        f"sampling {tested_posts} test posts is {100 * error:.1f} points. "
        f"{100 * results['texts_in_train']:.0f} % of the published test texts also occur in the "
        "training posts."
    )


def table_fixed(results: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Table 1: accuracy and weighted F1 with one modality disrupted in all posts."""
    line = results["majority"]
    always = f"{100 * line['accuracy']:.1f} / {100 * line['weighted_f1']:.1f}"
    body = [[_name(results, row), *(_cell(results, row, key) for key in FIXED)] for row in rows]
    body.append([f"always {line['name']}", *([always] * len(FIXED))])
    return table(["", *map(condition, FIXED)], body)


def table_clean(results: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Table 3: nothing is disrupted."""
    metrics, body = ("accuracy", "weighted_f1", "macro_f1"), []
    for row in rows:
        cells = results["rows"][row]["scores"]["clean"]
        scores = [_mean(cells[metric]) for metric in metrics]
        scores[0] += _error(cells["accuracy"])
        p = results["rows"][row]["p_values"].get("clean")
        body.append([_name(results, row), *scores, "" if p is None else p_value(p)])
    line = results["majority"]
    body.append([f"always {line['name']}", *(f"{100 * line[m]:.1f}" for m in metrics), ""])
    tests = f"Holm p compared with {results['baseline']}"
    return table(["", "accuracy", "weighted F1", "macro-F1", tests], body)


def table_ablation(results: Mapping[str, Any]) -> list[str]:
    """Table 4: the paper's head without its parts."""
    rows = [row for row in (WHOLE, *results["ablations"]) if row in results["rows"]]
    line, body = results["majority"], []
    for row in rows:
        scores = results["rows"][row]["scores"]
        cells = [_mean(v := scores[key]["accuracy"]) + _error(v) for key in FIXED]
        change = ["", ""]
        if row != WHOLE:
            whole = results["rows"][WHOLE]["seeds"]
            seeds = [seed for seed in results["rows"][row]["seeds"] if seed in whole]
            gap = _fixed_mean(results, row, seeds) - _fixed_mean(results, WHOLE, seeds)
            printed = float(np.mean(np.subtract(PUBLISHED[row], PUBLISHED[WHOLE])))
            change = [f"{100 * gap:+.1f}", f"{printed:+.1f}"]
        body.append([_name(results, row), *cells, *change])
    body.append(
        [f"always {line['name']}", *([f"{100 * line['accuracy']:.1f}"] * len(FIXED)), "", ""]
    )
    lines = table(["", *map(condition, FIXED), "change", "published change"], body)
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
        lines += ["", f"Never left the majority class in so short a training: {', '.join(flat)}."]
    return lines


def tested(results: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """A line a row: where it differs from the baseline by the paired tests."""
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
                sides["above" if gap > 0 else "below"].append(condition(key))
        verdicts = [f"{side} it with {', '.join(keys)}" for side, keys in sides.items() if keys]
        verdict = " and ".join(verdicts) or "statistically tied with it in every condition"
        least = p_value(min(p_values[key] for key in FIXED))
        lines.append(
            f"- {row} compared with {results['baseline']}: {verdict} (smallest p {least})."
        )
    return lines


def origin(record: Mapping[str, Any], folder: Path) -> list[str]:
    """The files, the command, the posts and the machine of a record."""
    where = "benchmarks/results" if folder == RESULTS else "."
    seconds = sum(sum(row["cpu_seconds"]) for row in record["results"]["rows"].values())
    names = ("mvsa_mpnet",) if "--mpnet" in record["command"] else ("mvsa", "mvsa_figures")
    files = ", ".join(f"`{where}/{name}.json`" for name in names)
    posts = ", ".join(f"{name} {count}" for name, count in record["results"]["posts"].items())
    return [
        f"- {files}: `{command_of(record)}` at commit `{record['commit']}` on {record['date']}. "
        f"{record['data']}; posts: {posts}. {record['machine']['processor']}, "
        f"{counted(record['machine']['threads'], 'thread')}, torch {record['machine']['torch']}; "
        f"the trainings of the tables took {seconds / 60:.0f} minutes of processor time."
    ]


def draw(folder: Path, assets: Path) -> list[Path]:
    """Draw Figures 3, 5 and 6 of the records in a folder; returns the files."""
    assets.mkdir(parents=True, exist_ok=True)
    results = read_record("mvsa", folder)["results"]
    drawn = read_record("mvsa_figures", folder)["results"]
    files = [draw_quality(drawn["quality"], assets / "mvsa-quality.png")]
    files.append(draw_rates(results, assets / "mvsa-rates.png"))
    if drawn["recovered"]:
        files.append(draw_recovered(drawn["recovered"], assets / "mvsa-recovered.png"))
    return files


def draw_quality(quality: Mapping[str, Any], path: Path) -> Path:
    """Figure 3: a row of panels a head, a panel a modality."""
    figure, panels = canvas(len(quality), 2, (8.0, 2.6 * len(quality) + 0.4))
    for line, (row, by_modality) in zip(panels, quality.items(), strict=True):
        for panel, (modality, bins) in zip(line, by_modality.items(), strict=True):
            kinds = {"clean": "intact", "corrupted": "corrupted"}
            for (kind, label), color in zip(kinds.items(), COLORS, strict=False):
                heights = 100 * np.asarray(bins[kind])
                panel.stairs(heights, bins["edges"], fill=True, color=color, alpha=0.3)
                panel.stairs(heights, bins["edges"], color=color, linewidth=1.4, label=label)
            panel.set_title(f"{row}, {modality}: AUROC {np.mean(bins['auroc']):.2f}", fontsize=10)
            panel.set_xlabel("log-quality (higher is more usual)")
        line[0].set_ylabel("inputs (%)")
    return _saved(figure, panels[0][0], path)


def draw_rates(results: Mapping[str, Any], path: Path) -> Path:
    """Figure 5: trained on disrupted posts above, on intact ones below."""
    figure, panels = canvas(2, 3, (10.2, 6.2), sharey=True)
    rows = [row for row in results["rows"] if row not in results["ablations"]]
    for column, setting in enumerate(SETTINGS):
        for index, row in enumerate(rows):
            style = {"color": COLORS[index], "marker": "os^Dv"[index % 5], "markersize": 4}
            trainings = results["rows"][row]
            intact = {key: cell["accuracy"] for key, cell in trainings["scores"].items()}
            values = {key: np.mean(accuracy) for key, accuracy in intact.items()}
            panels[1][column].plot(*_curve(values, setting), label=row, **style)
            points = results["trained_disrupted"].get(row, {})
            values = {key: np.mean(point["accuracy"]) for key, point in points.items()}
            if values:
                seeds = next(iter(points.values()))["seeds"]
                pairs = zip(intact["clean"], trainings["seeds"], strict=True)
                values["clean"] = np.mean([value for value, seed in pairs if seed in seeds])
                panels[0][column].plot(*_curve(values, setting), **style)
        for line, training in zip(panels, ("disrupted", "intact"), strict=True):
            majority = 100 * results["majority"]["accuracy"]
            line[column].axhline(majority, color="#707070", ls=":", label="majority class")
            line[column].set_xlabel("share of disrupted posts")
            title = f"{_TITLES[setting]}, trained on {training}"
            line[column].set_title(title, fontsize=10)
    for line in panels:
        line[0].set_ylabel("accuracy (%)")
    return _saved(figure, panels[1][0], path)


_TITLES = {"C": "corrupted", "D": "missing", "C+D": "either"}


def draw_recovered(recovered: Mapping[str, Any], path: Path) -> Path:
    """Figure 6: a column a direction, t-SNE above principal axes."""
    figure, panels = canvas(2, len(recovered), (3.8 * len(recovered), 6.4))
    for column, (direction, points) in enumerate(recovered.items()):
        for line, kind in zip(panels, ("tsne", "pca"), strict=True):
            for which, color, marker in zip(("true", "recovered"), COLORS, "o^", strict=False):
                pairs = [pair.split(",") for pair in points[kind][which].split()]
                x, y = np.asarray(pairs, dtype=float).T
                style = {"s": 14, "alpha": 0.65, "linewidths": 0}
                line[column].scatter(x, y, color=color, marker=marker, label=which, **style)
            line[column].set_xticks([])
            line[column].set_yticks([])
        panels[0][column].set_title(f"{direction}: t-SNE", fontsize=10)
        title = f"{direction}: principal axes, {100 * sum(points['explained']):.0f} % of variance"
        panels[1][column].set_title(title, fontsize=10)
    return _saved(figure, panels[0][0], path)


def _curve(values: Mapping[str, Any], setting: str) -> tuple[list[float], list[float]]:
    """Rates and accuracies in %, nothing disrupted at rate 0."""
    keys = [k for k in values if k.startswith("random/") and k.endswith(f"/{setting}")]
    points = [(0.0, values["clean"]), *((float(k.split("/")[1]), values[k]) for k in keys)]
    rates, accuracies = zip(*sorted(points), strict=True)
    return list(rates), [100 * float(value) for value in accuracies]


def _saved(figure: Any, panel: Any, path: Path) -> Path:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
    figure.savefig(path)
    return path


def _name(results: Mapping[str, Any], row: str) -> str:
    most = max(len(other["seeds"]) for other in results["rows"].values())
    seeds = len(results["rows"][row]["seeds"])
    return row if seeds == most else f"{row} ({counted(seeds, 'seed')})"


def _fixed_mean(results: Mapping[str, Any], row: str, seeds: Sequence[int]) -> float:
    """Mean accuracy over the six conditions, of the seeds that two rows share."""
    cells = results["rows"][row]
    index = [cells["seeds"].index(seed) for seed in seeds]
    return float(np.mean([[cells["scores"][k]["accuracy"][i] for i in index] for k in FIXED]))


def _mean(values: Sequence[float]) -> str:
    return f"{100 * float(np.mean(values)):.1f}"


def _error(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    return f" ± {100 * float(np.std(values, ddof=1)) / math.sqrt(len(values)):.1f}"


def _cell(results: Mapping[str, Any], row: str, key: str) -> str:
    scores = results["rows"][row]["scores"][key]
    return (
        f"{_mean(scores['accuracy'])}{_error(scores['accuracy'])} / {_mean(scores['weighted_f1'])}"
    )


def _trainings(results: Mapping[str, Any]) -> str:
    by_words: dict[str, list[str]] = {}
    for row, cells in results["rows"].items():
        t = cells["training"]
        words = f"{t['epochs']} epochs, batches of {t['batch_size']}, learning rate {t['lr']:g}"
        if row not in results["ablations"]:
            by_words.setdefault(words, []).append(f"`{row}`")
    parts = "; ".join(f"{words} ({', '.join(rows)})" for words, rows in by_words.items())
    return f"Trainings are short: {parts}."


def _aurocs(quality: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{row} " + ", ".join(f"{m} {np.mean(bins['auroc']):.2f}" for m, bins in by.items())
        for row, by in quality.items()
    )


def _distances(recovered: Mapping[str, Any]) -> str:
    parts = [f"{points['distance_by_spread']:.2f} ({way})" for way, points in recovered.items()]
    return f"The distances are {', '.join(parts)}."
