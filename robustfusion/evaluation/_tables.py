"""A report as rows and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from robustfusion.evaluation.results import rate_curve
from robustfusion.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from robustfusion.evaluation.report import RobustnessReport

COLUMNS = (
    *("model", "condition", "strategy", "setting", "modality", "rate"),
    *("metric", "value", "low", "high"),
)
Row = dict[str, str | float]

_CELL_METRICS = ("accuracy", "macro_f1", "weighted_f1", "drop", "ece", "nll", "aurc")


def long_rows(report: RobustnessReport) -> Iterator[Row]:
    """One row for each condition and metric."""

    def row(metric: str, value: Estimate | float, **where: str | float) -> Row:
        found = value if isinstance(value, Estimate) else Estimate(value, math.nan, math.nan)
        made: Row = dict.fromkeys(COLUMNS, "")
        made |= {"model": report.name, "metric": metric, **where}
        for end, number in found._asdict().items():
            made[end] = number if math.isfinite(number) else ""
        return made

    for metric, score in report.majority._asdict().items():
        if metric != "name":
            yield row(f"majority_{metric}", score)
    for key, cell in report.cells.items():
        c = cell.condition
        where: dict[str, str | float] = {
            "condition": key,
            "strategy": c.strategy,
            "setting": c.setting or "",
            "modality": c.modality or "",
            "rate": c.rate_text if isinstance(c.rate, tuple) else c.rate,
        }
        for metric in _CELL_METRICS:
            yield row(metric, getattr(cell, metric), **where)
        yield row("accuracy_seed_std", cell.spread, **where)
        yield row("non_finite", float((cell.predictions < 0).mean()), **where)
        for column, name in enumerate(report.modalities):
            corrupted, discarded = cell.counts[:, column].mean(0).tolist()
            yield row(f"corrupted_{name}", corrupted, **where)
            yield row(f"discarded_{name}", discarded, **where)
        for name, alarms in cell.alarms.items():
            yield row(f"alarms_{name}", alarms, **where)
        for name, weight in zip(report.candidates, cell.weights or (), strict=False):
            yield row(f"weight_{name}", weight, **where)
    for setting, area in report.area.items():
        yield row("area", area, strategy="random", setting=setting)
    for place, premium in report.corruption_premium.items():
        yield row("corruption_premium", premium, condition=place)
    for name, quality in report.quality.items():
        yield row("quality_auroc", quality.auroc, modality=name)
        for class_name, means in quality.class_means.items():
            for kind, mean in zip(("clean", "corrupted"), means, strict=True):
                yield row(f"quality_{kind}_{class_name}", mean, modality=name)


def points(value: Estimate) -> str:
    """A difference in points."""
    return _percent(value, "+")


def p_text(p: float) -> str:
    """A p-value."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; a bar inside a name would end its column."""
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (head, *body)]
    lines = [f"| {' | '.join(line)} |" for line in rows]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def _percent(value: Estimate, sign: str = "") -> str:
    text = f"{100 * value.value:{sign}.1f}"
    if math.isnan(value.low):
        return text
    return f"{text} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"


def _number(value: float, form: str = ".3f") -> str:
    return "–" if math.isnan(value) else format(value, form)


def markdown(report: RobustnessReport) -> str:
    """The report for a reader."""
    lines = [f"# Robustness of {report.name}", "", *_preamble(report), ""]
    lines += ["## Every condition", "", *_conditions(report)]
    lines += [f"**{remark}.**\n" for remark in report.remarks]
    lines += ["## Confidence and alarms", "", *_confidence(report)]
    if report.area:
        lines += ["## Accuracy against the disruption rate", "", *_curves(report)]
    if report.corruption_premium:
        lines += ["## Corruption premium", "", *_premiums(report)]
    if report.quality:
        lines += ["## Quality score", "", *_qualities(report)]
    if any(cell.weights for cell in report.measured):
        body = [
            [cell.condition.title, *[f"{weight:.2f}" for weight in cell.weights]]
            for cell in report.measured
            if cell.weights
        ]
        lines += ["## Mean weight of each candidate", ""]
        lines += table(["condition", *report.candidates], body)
    return "\n".join(lines).rstrip() + "\n"


def _preamble(report: RobustnessReport) -> list[str]:
    majority, digests, made = report.majority, report.fingerprint, report.intervals
    lines = [
        f"{len(report.labels)} samples, {len(report.class_names)} classes, modalities "
        f"{', '.join(report.modalities)}; disruption seeds "
        f"{', '.join(map(str, report.seeds))}, scores are means over them.",
        "",
        f"Majority line, always answering {majority.name!r}: accuracy "
        f"{100 * majority.accuracy:.1f}, macro-F1 {100 * majority.macro_f1:.1f}, weighted F1 "
        f"{100 * majority.weighted_f1:.1f}.",
        "",
    ]
    if made.replicates:
        lines += [
            f"Scores in %, in brackets the {100 * made.level:g} % interval of "
            f"{made.replicates} bootstrap replicates over the samples.",
            "",
        ]
    lines.append(
        f"Data `{digests.samples[:12]}`, disruptions `{digests.disruptions[:12]}`, inputs "
        f"`{digests.inputs[:12]}`."
    )
    if report.record:
        lines += ["", *[f"- {key}: {value}" for key, value in report.record.items()]]
    return lines


def _conditions(report: RobustnessReport) -> list[str]:
    head = ["condition", "corrupted", "discarded", "accuracy", "seed s.d.", "macro-F1"]
    head += ["weighted F1", "drop"]
    body = []
    for cell in report.cells.values():
        counts = cell.counts.mean(0).sum(0)
        body.append(
            [
                cell.condition.title,
                *[f"{count:.0f}" for count in counts],
                _percent(cell.accuracy),
                "–" if math.isnan(cell.spread) else f"{100 * cell.spread:.1f}",
                _percent(cell.macro_f1),
                _percent(cell.weighted_f1),
                "–" if cell.condition.strategy == "clean" else _percent(cell.drop, "+"),
            ]
        )
    return table(head, body)


def _confidence(report: RobustnessReport) -> list[str]:
    lines = [
        "ECE: expected calibration error. NLL: negative log-likelihood. AURC: error among the "
        "most confident samples, mean over all shares of them; lower is better, and a confidence "
        "that says nothing has the error rate itself."
    ]
    alarmed = list(report["clean"].alarms)
    if alarmed:
        rate = report.intervals.alarm_rate
        lines[0] += (
            f" Alarms: share of the rows in % whose p-value is at most {rate:g}; when clean, "
            f"about {100 * rate:g} % is what it should be."
        )
    head = ["condition", "ECE", "NLL", "AURC", *[f"{name} alarms" for name in alarmed]]
    body = [
        [
            cell.condition.title,
            *[_number(value) for value in (cell.ece.value, cell.nll.value, cell.aurc)],
            *[_percent(cell.alarms[m]) if m in cell.alarms else "–" for m in alarmed],
        ]
        for cell in report.cells.values()
    ]
    return [*lines, "", *table(head, body)]


def _curves(report: RobustnessReport) -> list[str]:
    conditions = [cell.condition for cell in report.measured]
    curves = {setting: rate_curve(conditions, setting) for setting in report.area}
    rates = [rate for rate, _ in next(iter(curves.values()))]
    body = [
        [
            setting,
            *[f"{100 * report[key].accuracy.value:.1f}" for _, key in found],
            _percent(report.area[setting]),
        ]
        for setting, found in curves.items()
    ]
    return table(["setting", *[f"{rate:g}" for rate in rates], "area under the curve"], body)


def _premiums(report: RobustnessReport) -> list[str]:
    lines = [
        "Accuracy discarded minus accuracy corrupted, in points. Above zero, a corrupted modality "
        "is worse than none: the model should have ignored it.",
        "",
    ]
    body = [[place, points(value)] for place, value in report.corruption_premium.items()]
    return lines + table(["disrupted", "premium"], body)


def _qualities(report: RobustnessReport) -> list[str]:
    lines = [
        "AUROC: probability that a clean sample scores above a corrupted one (0.5 is chance). "
        "Mean log-quality by class, clean / corrupted.",
        "",
    ]
    body = []
    for name, quality in report.quality.items():
        auroc = quality.auroc
        ends = "" if math.isnan(auroc.low) else f" [{auroc.low:.3f}, {auroc.high:.3f}]"
        means = [
            f"{_number(clean, '.3g')} / {_number(corrupted, '.3g')}"
            for clean, corrupted in quality.class_means.values()
        ]
        body.append([name, _number(auroc.value) + ends, *means])
    return lines + table(["modality", "AUROC", *report.class_names], body)
