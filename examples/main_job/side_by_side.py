"""Compare the robustness reports of two models in tables and one figure."""

from pathlib import Path
from typing import Any

from robustfusion.evaluation import RobustnessReport, compare, plot_report
from robustfusion.evaluation.compare import WHY_THEY_DIFFER

COLORS = ("#0072B2", "#D55E00")
WORDS = {"C": "corrupted", "D": "missing", "C+D": "corrupted or missing"}


def write_results(folder: Path, reports: dict[str, RobustnessReport]) -> None:
    """Write the tables, the figures and the reports of two models."""
    pair = list(reports.values())
    (folder / "table.md").write_text(table(*pair) + "\n", encoding="utf-8")
    first, second = (report.to_csv() for report in pair)
    rows = first + "".join(second.splitlines(keepends=True)[1:])
    (folder / "table.csv").write_text(rows, encoding="utf-8")
    draw(*pair, folder / "accuracy.png")
    for kind, report in reports.items():
        plot_report(report, folder / "figures" / kind)
        report.save(folder / f"report-{kind}")


def table(first: RobustnessReport, second: RobustnessReport) -> str:
    """Return a Markdown table: accuracy and macro-F1 of both, difference, Holm's p."""
    comparison = compare(first, second, same_inputs=False)
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
        lines.append(f"| {comparison.titles[key]} | {' | '.join(row)} |")
    majority, overall = first.majority, comparison.overall
    lines.append(
        f"| always {majority.name} | {100 * majority.accuracy:.1f} | {100 * majority.accuracy:.1f}"
        f" | | | {100 * majority.macro_f1:.1f} | {100 * majority.macro_f1:.1f} |"
    )
    seeds = len(first.seeds)
    return "\n".join(
        [
            f"Accuracy and macro-F1 in % on {len(first.labels)} test posts, averaged over "
            f"{seeds} disruption seeds. C means corrupted, D missing, C+D either of both. "
            "Differences have 95 % bootstrap intervals, and p-values of exact McNemar tests after "
            "Holm's correction. Both may disagree: an interval concerns one condition, the "
            f"correction covers all {len(comparison.cells)} at once, so it is stricter.",
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


def console(first: RobustnessReport, second: RobustnessReport) -> str:
    """Return a table of the conditions that disrupt one modality of every post."""
    keys = [key for key in first.scores if not key.startswith("random")]
    wide = max(len(report.name) for report in (first, second))
    wide = max(wide, 14)
    lines = [f"{'':12}{first.name:>{wide}}{second.name:>{wide + 2}}   accuracy % (macro-F1 %)"]
    for key in keys:
        cells = [
            f"{100 * report[key].accuracy.value:.1f} ({100 * report[key].macro_f1.value:.1f})"
            for report in (first, second)
        ]
        title = first[key].condition.title
        lines.append(f"{title:12}{cells[0]:>{wide}}{cells[1]:>{wide + 2}}")
    line = f"{100 * first.majority.accuracy:.1f} ({100 * first.majority.macro_f1:.1f})"
    lines.append(f"{'majority':12}{line:>{wide}}{line:>{wide + 2}}   always {first.majority.name}")
    lines += [f"Note: {warning}" for report in (first, second) for warning in report.warnings]
    return "\n".join(lines)


def draw(first: RobustnessReport, second: RobustnessReport, path: Path) -> None:
    """Draw the accuracy with each modality disrupted, and over the share of disrupted posts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1), sharey=True)
    fixed = [key for key in first.scores if not key.startswith("random")]
    conditions = [cell.condition for cell in first.scores.values()]
    settings = [c.setting for c in conditions if c.strategy == "random"]
    setting = "C+D" if "C+D" in settings else settings[0]
    curve = [c for c in conditions if c.strategy == "clean" or c.strategy == "random"]
    curve = [c for c in curve if c.setting in (None, setting)]
    for index, report in enumerate((first, second)):
        style = {"color": COLORS[index], "label": report.name, "markersize": 5}
        positions = [tick + 0.24 * index - 0.12 for tick in range(len(fixed))]
        errors(left, positions, [report[key].accuracy for key in fixed], "os"[index], style)
        rates = [c.rate + 0.016 * index - 0.008 for c in curve]
        cells = [report[c.key].accuracy for c in curve]
        errors(right, rates, cells, ("o-", "s--")[index], style)
    for panel in (left, right):
        panel.axhline(100 * first.majority.accuracy, color="0.4", linestyle=":", label="majority")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    disrupted = [first[key].condition for key in fixed]
    ticks = [
        f"{c.where}\n{WORDS[c.setting].replace(' or ', chr(10) + 'or ')}" if c.setting else c.where
        for c in disrupted
    ]
    left.set_xticks(range(len(fixed)), ticks, fontsize=8)
    left.set_ylabel("accuracy (%)")
    left.set_title("one input of every post disrupted", fontsize=10)
    right.set_title(f"one random input {WORDS[setting]}", fontsize=10)
    right.set_xlabel("share of the posts")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def errors(panel: Any, x: list[float], scores: list[Any], marker: str, style: Any) -> None:
    """Draw estimates with their intervals as error bars."""
    values = [100 * score.value for score in scores]
    below = [100 * (score.value - score.low) for score in scores]
    above = [100 * (score.high - score.value) for score in scores]
    panel.errorbar(x, values, (below, above), fmt=marker, capsize=2, linewidth=1.2, **style)
