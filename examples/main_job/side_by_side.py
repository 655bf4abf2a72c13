"""Compare the robustness reports of two models in tables and one figure."""

from pathlib import Path
from typing import Any

from robustfusion.disruption import Disruption
from robustfusion.evaluation import Comparison, RobustnessReport, compare, plot_report
from robustfusion.evaluation.compare import WHY_THEY_DIFFER
from robustfusion.evaluation.metrics import IN_UNITS, TITLES

COLORS = ("#0072B2", "#D55E00")
WORDS = {"C": "corrupted", "D": "missing", "C+D": "corrupted or missing"}
DETAILS = {
    "fixed/image/C": "40-80 % of the pixels masked",
    "fixed/text/C": "40-80 % of the words masked",
}
SIGNIFICANT = 0.05
FILES = {
    "accuracy.png": "accuracy, or the main metric of labels or numbers, in every condition",
    "table.md": "the same as tables, with differences, intervals and tests",
    "table.csv": "all scores, one per line",
    "damage.png": "accuracy of both models under each kind of damage, over its severity",
    "damage.md": "the same as tables, with macro-F1, alarms and trust",
    "damage.csv": "all scores under damage, one per line",
    "calibration.md": "what calibration set: alarms, trust, temperatures",
    "figures": "more figures of each model: quality, confidence, coverage",
    "models": "both trained models; predict.py, demo_app.py and export_run.py load models/drf",
    "report-*.json": "the robustness report of each model; report-*.npz has its predictions",
    "run.json": "command, commit, versions, machine, data and training history",
    "settings.json": "the options of the run, for --resume",
    "seconds.json": "the time of each stage",
    "training": "checkpoints of the training; you can delete them",
}


def write_results(folder: Path, reports: dict[str, RobustnessReport]) -> None:
    """Write the tables, the figures and the reports of two models, and a list of the files."""
    pair = list(reports.values())
    (folder / "table.md").write_text(table(*pair) + "\n", encoding="utf-8")
    first, second = (report.to_csv() for report in pair)
    rows = first + "".join(second.splitlines(keepends=True)[1:])
    (folder / "table.csv").write_text(rows, encoding="utf-8")
    draw(*pair, folder / "accuracy.png")
    for kind, report in reports.items():
        plot_report(report, folder / "figures" / kind)
        report.save(folder / f"report-{kind}")
    lines = [f"{name:22} {text}" for name, text in FILES.items() if list(folder.glob(name))]
    title = "Files of this run of drf_mvsa.py. Open accuracy.png first, then table.md."
    content = "\n".join([title, "", *lines]) + "\n"
    (folder / "README.txt").write_text(content, encoding="utf-8")


def table(first: RobustnessReport, second: RobustnessReport) -> str:
    """Return Markdown: a short table with verdicts, and one of all conditions with intervals."""
    comparison = compare(first, second, same_inputs=False)
    if first.task != "multiclass":
        tables = [comparison.to_markdown(), first.to_markdown(), second.to_markdown()]
        return "\n".join(tables).rstrip()
    head, *rows = summary_rows(first, second, comparison)
    rule = ["---", "---:", "---:", "---:", "---"]
    short = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    names = (first.name, second.name)
    lines = [
        f"| condition | {' | '.join(names)} | difference | Holm p | "
        f"{' | '.join(f'{name}, macro-F1' for name in names)} |",
        "|---|" + "---:|" * 6,
    ]
    for key, cell in comparison.cells.items():
        accuracy = [f"{100 * value:.1f}" for value in cell.accuracy]
        gap, low, high = (100 * value for value in cell.difference)
        p = "< 0.001" if cell.holm_p < 0.001 else f"{cell.holm_p:.3f}"
        f1 = [f"{100 * report[key].macro_f1.value:.1f}" for report in (first, second)]
        row = [*accuracy, f"{gap:+.1f} [{low:+.1f}, {high:+.1f}]", p, *f1]
        lines.append(f"| {words(first[key].condition)} | {' | '.join(row)} |")
    majority, overall = first.majority, comparison.overall
    lines.append(
        f"| always {majority.name} | {100 * majority.accuracy:.1f} | {100 * majority.accuracy:.1f}"
        f" | | | {100 * majority.macro_f1:.1f} | {100 * majority.macro_f1:.1f} |"
    )
    return "\n".join(
        [
            f"Accuracy in % on {len(first.labels)} test posts. A difference is better or worse if "
            f"its p-value is at most {SIGNIFICANT} after Holm's correction, else unclear.",
            "",
            *short,
            "",
            f"Always predicting {majority.name}: {100 * majority.accuracy:.1f}. {alarms(first)}",
            "",
            "## All conditions",
            "",
            f"Accuracy and macro-F1 in %, averaged over {len(first.seeds)} disruption seeds. "
            "Differences have 95 % bootstrap intervals, and p-values of exact McNemar tests after "
            "Holm's correction.",
            "",
            *lines,
            "",
            f"Mean difference over the disrupted conditions: {100 * overall.value:+.1f} "
            f"[{100 * overall.low:+.1f}, {100 * overall.high:+.1f}].",
            *(f"\n**{warning}**" for warning in comparison.warnings),
            "",
            WHY_THEY_DIFFER,
        ]
    )


def summary_rows(
    first: RobustnessReport, second: RobustnessReport, comparison: Comparison
) -> list[list[str]]:
    """Return a header and a row for each condition that disrupts one modality of every post."""
    rows = [["condition", first.name, second.name, "difference", "verdict"]]
    for key, cell in comparison.cells.items():
        condition = first[key].condition
        if condition.strategy == "random" or condition.setting == "C+D":
            continue
        gap = 100 * cell.difference.value
        verdict = "unclear" if cell.holm_p > SIGNIFICANT else "better" if gap > 0 else "worse"
        title = DETAILS.get(key, words(condition))
        rows.append([title, *(f"{100 * a:.1f}" for a in cell.accuracy), f"{gap:+.1f}", verdict])
    return rows


def metric_rows(first: RobustnessReport, second: RobustnessReport) -> list[list[str]]:
    """Return a header and a row for each condition with the main metric of labels or numbers."""
    metric = first.main_metric
    title, scale = (TITLES[metric], 1) if metric in IN_UNITS else (f"{TITLES[metric]} (%)", 100)
    digits = ".3f" if scale == 1 else ".1f"
    rows = [
        [f"{title}, {len(first.labels)} test posts", first.name, second.name, "difference", ""]
    ]
    for key, cell in first.scores.items():
        condition = cell.condition
        if condition.strategy != "random" and condition.setting != "C+D":
            values = [scale * report[key].metrics[metric].value for report in (first, second)]
            gap = values[0] - values[1]
            texts = [f"{value:{digits}}" for value in values]
            rows.append([DETAILS.get(key, words(condition)), *texts, f"{gap:+{digits}}", ""])
    return rows


def words(condition: Disruption) -> str:
    """Return the name of a condition in words."""
    if condition.strategy == "clean":
        return "nothing wrong"
    setting = WORDS[str(condition.setting)]
    if condition.strategy == "fixed":
        return f"{condition.where} {setting}"
    return f"{condition.rate:.0%} of the posts: one random input {setting}"


def alarms(report: RobustnessReport) -> str:
    """Return the shares of intact test posts that alarm, and the share that was asked for."""
    rate = report.intervals.alarm_rate
    shares = [f"{m} {share.value:.0%}" for m, share in report["clean"].alarms.items()]
    if not shares:
        return "This head has no alarms."
    return f"False alarms on intact test posts: {', '.join(shares)} (asked: {rate:.0%})."


def console(first: RobustnessReport, second: RobustnessReport, kind: str = "") -> str:
    """Return the short table for a terminal; ``kind`` is a word for the posts."""
    if first.task != "multiclass":
        head, *rows = metric_rows(first, second)
    else:
        comparison = compare(first, second, same_inputs=False, replicates=0)
        head, *rows = summary_rows(first, second, comparison)
        head[0] = f"Accuracy on {len(first.labels)} {kind} test posts (%)".replace("  ", " ")
    head[1:3] = (name.partition(" + ")[0] for name in head[1:3])
    head[4] = ""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(5)]
    lines = [
        "  ".join(
            text.ljust(width) if column in (0, 4) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    if first.task == "multiclass":
        majority = first.majority
        share = f"{100 * majority.accuracy:.1f}"
        lines.append(f"(always the most frequent class, {majority.name}: {share})")
    lines.append(alarms(first))
    lines += [f"Note: {warning}" for report in (first, second) for warning in report.warnings]
    return "\n".join(lines)


def draw(first: RobustnessReport, second: RobustnessReport, path: Path) -> None:
    """Draw the accuracy with each modality disrupted, and over the share of disrupted posts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1), sharey=True)
    metric = first.main_metric
    scale = 1 if metric in IN_UNITS else 100
    fixed = [key for key in first.scores if not key.startswith("random")]
    conditions = [cell.condition for cell in first.scores.values()]
    settings = [c.setting for c in conditions if c.strategy == "random"]
    setting = "C+D" if "C+D" in settings else settings[0]
    curve = [c for c in conditions if c.strategy == "clean" or c.strategy == "random"]
    curve = [c for c in curve if c.setting in (None, setting)]
    for index, report in enumerate((first, second)):
        style = {"color": COLORS[index], "label": report.name, "markersize": 5}
        positions = [tick + 0.24 * index - 0.12 for tick in range(len(fixed))]
        scores = [report[key].metrics[metric] for key in fixed]
        errors(left, positions, scores, "os"[index], style, scale)
        rates = [100 * c.rate + 1.6 * index - 0.8 for c in curve]
        scores = [report[c.key].metrics[metric] for c in curve]
        errors(right, rates, scores, ("o-", "s--")[index], style, scale)
    for panel in (left, right):
        constant = "most frequent class" if first.task == "multiclass" else "constant prediction"
        baseline = scale * first.baseline[metric]
        panel.axhline(baseline, color="0.4", linestyle=":", label=constant)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    disrupted = [first[key].condition for key in fixed]
    ticks = [
        f"{c.where}\n{WORDS[c.setting].replace(' or ', chr(10) + 'or ')}"
        if c.setting
        else "nothing\nwrong"
        for c in disrupted
    ]
    left.set_xticks(range(len(fixed)), ticks, fontsize=8)
    unit = "" if scale == 1 else " (%)"
    left.set_ylabel(f"{TITLES[metric]}{unit} on {len(first.labels)} posts")
    left.set_title("one input of every post disrupted", fontsize=10)
    right.set_title(f"one random input {WORDS[setting]}", fontsize=10)
    right.set_xlabel("share of the posts (%)")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def errors(
    panel: Any, x: list[float], scores: list[Any], marker: str, style: Any, scale: float
) -> None:
    """Draw estimates with their intervals as error bars."""
    values = [scale * score.value for score in scores]
    below = [scale * (score.value - score.low) for score in scores]
    above = [scale * (score.high - score.value) for score in scores]
    panel.errorbar(x, values, (below, above), fmt=marker, capsize=2, linewidth=1.2, **style)
