"""A report in rows, in Markdown and in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustfusion.evaluation.results import rate_curve
from robustfusion.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from robustfusion.evaluation.report import RobustnessReport

_SCORES = ("accuracy", "macro_f1", "weighted_f1", "drop", "ece", "nll", "aurc")
_WHERE = ("condition", "strategy", "setting", "modality", "rate")
COLUMNS = ("model", *_WHERE, "metric", *Estimate._fields)
Row = dict[str, str | float]
Columns = list[tuple[str, Callable[..., str]]]
Section = tuple[str, str, Columns, list[Any]]

# A score whose middle 90 % spans less than this in log-quality changes a weight by 5 % at most.
NARROW = 0.05


def long_rows(report: RobustnessReport) -> Iterator[Row]:
    """One row for each condition and metric."""

    def row(metric: str, value: Estimate | float, **where: str | float) -> Row:
        found = value if isinstance(value, Estimate) else Estimate(value, math.nan, math.nan)
        ends = {end: x if math.isfinite(x) else "" for end, x in found._asdict().items()}
        blank = dict.fromkeys(COLUMNS, "")
        return {**blank, "model": report.name, "metric": metric, **where, **ends}

    for metric, score in zip(report.majority._fields[1:], report.majority[1:], strict=True):
        yield row(f"majority_{metric}", score)
    for key, cell in report.cells.items():
        c = cell.condition
        rates = c.rate_text if isinstance(c.rate, tuple) else c.rate
        place = (key, c.strategy, c.setting or "", c.modality or "", rates)
        scores: dict[str, Any] = {name: getattr(cell, name) for name in _SCORES}
        scores |= {"accuracy_seed_std": cell.spread, "non_finite": (cell.predictions < 0).mean()}
        for name, counts in zip(report.modalities, cell.counts.mean(0).tolist(), strict=True):
            scores |= {f"corrupted_{name}": counts[0], f"discarded_{name}": counts[1]}
        scores |= {f"alarms_{name}": alarms for name, alarms in cell.alarms.items()}
        weights = zip(report.candidates, cell.weights or (), strict=False)
        scores |= {f"weight_{name}": weight for name, weight in weights}
        for metric, value in scores.items():
            yield row(metric, value, **dict(zip(_WHERE, place, strict=True)))
    for setting, area in report.area.items():
        yield row("area", area, strategy="random", setting=setting)
    for where, premium in report.corruption_premium.items():
        yield row("corruption_premium", premium, condition=where)
    for name, quality in report.quality.items():
        yield row("quality_auroc", quality.auroc, modality=name)
        for class_name, means in quality.class_means.items():
            for kind, mean in zip(("clean", "corrupted"), means, strict=True):
                yield row(f"quality_{kind}_{class_name}", mean, modality=name)


def number(value: Estimate | float, form: str = ".3f") -> str:
    """A number, with its interval where it has one; what is undefined is a dash."""
    first, *ends = value if isinstance(value, Estimate) else (value, math.nan)
    text = "–" if math.isnan(first) else format(first, form)
    return text if math.isnan(ends[0]) else f"{text} [{ends[0]:{form}}, {ends[1]:{form}}]"


def percent(value: Estimate | float, form: str = ".1f") -> str:
    """The same of a share, in percent; of a difference with the form ``"+.1f"``."""
    if isinstance(value, Estimate):
        return number(Estimate(*(100 * x for x in value)), form)
    return number(100 * value, form)


def _pair(values: Sequence[float]) -> str:
    return " / ".join(number(value, ".3g") for value in values)


def p_text(p: float) -> str:
    """A p-value."""
    return "< 0.001" if p < 0.001 else number(p)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; a bar inside a name would end its column."""
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (head, *body)]
    lines = [f"| {' | '.join(line)} |" for line in rows]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def markdown(report: RobustnessReport) -> str:
    """The report for a reader."""
    majority, digests, made = report.majority, report.fingerprint, report.intervals
    scores = [f"{100 * score:.1f}" for score in majority[1:]]
    lines = [
        f"# Robustness of {report.name}",
        "",
        f"{len(report.labels)} samples, {len(report.class_names)} classes, modalities "
        f"{', '.join(report.modalities)}; disruption seeds "
        f"{', '.join(map(str, report.seeds))}, scores are means over them.",
        "",
        f"Majority line, always answering {majority.name!r}: accuracy {scores[0]}, macro-F1 "
        f"{scores[1]}, weighted F1 {scores[2]}.",
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
    lines.append("")
    for title, note, columns, records in _sections(report):
        if records:
            body = [[show(record) for _, show in columns] for record in records]
            lines += [f"## {title}", "", *([note, ""] if note else [])]
            lines += table([head for head, _ in columns], body)
        if title == "Every condition":
            lines += [f"**{remark}.**\n" for remark in report.remarks]
    return "\n".join(lines).rstrip() + "\n"


def _sections(report: RobustnessReport) -> Iterator[Section]:
    """Title, note, columns and records of each section; without records there is none."""
    cells, title = list(report.cells.values()), ("condition", lambda c: c.condition.title)
    columns: Columns = [
        title,
        ("corrupted", lambda c: f"{c.counts.mean(0).sum(0)[0]:.0f}"),
        ("discarded", lambda c: f"{c.counts.mean(0).sum(0)[1]:.0f}"),
        ("accuracy", lambda c: percent(c.accuracy)),
        ("seed s.d.", lambda c: percent(c.spread)),
        ("macro-F1", lambda c: percent(c.macro_f1)),
        ("weighted F1", lambda c: percent(c.weighted_f1)),
        ("drop", lambda c: "–" if c is cells[0] else percent(c.drop, "+.1f")),
    ]
    yield "Every condition", "", columns, cells
    note = (
        "ECE: expected calibration error. NLL: negative log-likelihood. AURC: error among the "
        "most confident samples, mean over all shares of them; lower is better, and a confidence "
        "that says nothing has the error rate itself."
    )
    columns = [
        title,
        ("ECE", lambda c: number(c.ece.value)),
        ("NLL", lambda c: number(c.nll.value)),
        ("AURC", lambda c: number(c.aurc)),
    ]
    if alarmed := cells[0].alarms:
        rate = report.intervals.alarm_rate
        note += (
            f" Alarms: share of the rows in % whose p-value is at most {rate:g}; when clean, "
            f"about {100 * rate:g} % is what it should be."
        )
    for name in alarmed:
        columns.append((f"{name} alarms", lambda c, m=name: percent(c.alarms.get(m, math.nan))))
    yield "Confidence and alarms", note, columns, cells
    conditions = [cell.condition for cell in cells]
    curves = {setting: rate_curve(conditions, setting) for setting in report.area}
    columns = [("setting", str)]
    for k, (rate, _) in enumerate(next(iter(curves.values()), [])):
        columns.append(
            (f"{rate:g}", lambda s, k=k: percent(report[curves[s][k][1]].accuracy.value))
        )
    columns.append(("area under the curve", lambda s: percent(report.area[s])))
    yield "Accuracy against the disruption rate", "", columns, list(curves)
    note = (
        "Accuracy discarded minus accuracy corrupted, in points. Above zero, a corrupted modality "
        "is worse than none: the model should have ignored it."
    )
    columns = [
        ("disrupted", str),
        ("premium", lambda place: percent(report.corruption_premium[place], "+.1f")),
    ]
    yield "Corruption premium", note, columns, list(report.corruption_premium)
    note = (
        "AUROC: probability that a clean sample scores above a corrupted one (0.5 is chance). "
        "Mean log-quality by class, clean / corrupted."
    )
    columns = [("modality", str), ("AUROC", lambda m: number(report.quality[m].auroc))]
    for name in report.class_names:
        columns.append((name, lambda m, c=name: _pair(report.quality[m].class_means[c])))
    yield "Quality score", note, columns, list(report.quality)
    columns = [title]
    for k, name in enumerate(report.candidates):
        columns.append((name, lambda c, k=k: f"{c.weights[k]:.2f}"))
    yield "Mean weight of each candidate", "", columns, [c for c in cells if c.weights]


def remarks(report: RobustnessReport) -> Iterator[str]:
    """Dead models speak: what makes the numbers of a report worthless, in plain words."""
    name, clean = report.name, report.measured[0]
    broken = {c.condition.title: float((c.predictions < 0).mean()) for c in report.measured}
    worst = max(broken, key=lambda title: broken[title])
    if broken[worst] > 0:
        yield (
            f"{name}: the logits of some rows are not finite (counted as wrong), in "
            f"{sum(share > 0 for share in broken.values())} conditions; most in {worst}, "
            f"{100 * broken[worst]:.1f} % of the rows"
        )
    support = np.bincount(report.labels, minlength=len(report.class_names))
    winner = int(support.argmax())
    majority = repr(report.class_names[winner])
    single = [c.condition.title for c in report.measured if (c.predictions == winner).all()]
    if len(single) == len(report.measured):
        yield (
            f"{name} answers {majority} always: it never left the majority class, so do not "
            "compare anything with it"
        )
    elif single:
        yield (
            f"{name} answers {majority}, the majority class, to every row in {len(single)} of "
            f"{len(report.measured)} conditions: {', '.join(single[:4])}"
            + (" ..." if len(single) > 4 else "")
        )
    if clean.condition.title not in single:
        unseen = (support > 0) & ~np.isin(np.arange(len(support)), clean.predictions)
        if unseen.any():
            never = ", ".join(repr(report.class_names[k]) for k in np.flatnonzero(unseen))
            yield f"{name} never predicts {never}, not even when clean"
        if (clean.predictions == report.labels).mean() <= support.max() / support.sum():
            yield f"{name} is no better when clean than always answering {majority}"
    for modality, quality in report.scored.items():
        scores, both = quality.clean, np.concatenate([quality.clean, quality.corrupted.ravel()])
        if np.isfinite(scores).sum() < 2:
            continue
        low, high = np.quantile(both[np.isfinite(both)], [0.05, 0.95])
        if high - low < NARROW:
            yield (
                f"{name}: the quality of {modality} is nearly constant (5-95 % of the rows within "
                f"{high - low:.2g}): it cannot tell good rows from bad ones"
            )
