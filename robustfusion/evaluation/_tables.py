"""A report in rows and in Markdown, and the helpers that every table uses."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustfusion._markdown import table
from robustfusion.evaluation.measurements import Measurements
from robustfusion.evaluation.results import rate_curve
from robustfusion.evaluation.statistics import Estimate

_SCORES = ("accuracy", "macro_f1", "weighted_f1", "drop", "ece", "nll", "aurc")
_WHERE = ("condition", "strategy", "setting", "modality", "rate")
COLUMNS = ("model", *_WHERE, "metric", *Estimate._fields)
Row = dict[str, str | float]
Columns = list[tuple[str, Callable[..., str]]]
Section = tuple[str, str, Columns, list[str]]


def number(value: Estimate | float, form: str = ".3f") -> str:
    """Format a number, with its interval if it has one; NaN becomes a dash."""
    first, *ends = value if isinstance(value, Estimate) else (value, math.nan)
    text = "–" if math.isnan(first) else format(first, form)
    return text if math.isnan(ends[0]) else f"{text} [{ends[0]:{form}}, {ends[1]:{form}}]"


def percent(value: Estimate | float, form: str = ".1f") -> str:
    """Format a share in percent, or a difference of shares with the form ``"+.1f"``."""
    if isinstance(value, Estimate):
        return number(Estimate(*(100 * x for x in value)), form)
    return number(100 * value, form)


def p_text(p: float) -> str:
    """Format a p-value."""
    return "< 0.001" if p < 0.001 else number(p)


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return rows as CSV with a head line."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def written(text: str, path: str | Path | None) -> str:
    """Return a text after writing it to a path, if there is one."""
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def long_rows(report: Measurements) -> Iterator[Row]:
    """Yield one row for each condition and metric."""

    def row(metric: str, value: Estimate | float, **where: str | float) -> Row:
        estimate = value if isinstance(value, Estimate) else Estimate(value, math.nan, math.nan)
        ends = {end: x if math.isfinite(x) else "" for end, x in estimate._asdict().items()}
        blank = dict.fromkeys(COLUMNS, "")
        return {**blank, "model": report.name, "metric": metric, **where, **ends}

    for metric, score in zip(report.majority._fields[1:], report.majority[1:], strict=True):
        yield row(f"majority_{metric}", score)
    for key, scores in report.scores.items():
        answers, c = report.answers[key], scores.condition
        rate = c.rate_text if isinstance(c.rate, tuple) else c.rate
        modality = c.modality if isinstance(c.modality, str) else "+".join(c.modality or ())
        where: Any = (key, c.strategy, c.setting or "", modality, rate)
        values: dict[str, Any] = {name: getattr(scores, name) for name in _SCORES}
        values |= {"accuracy_seed_std": scores.seed_std}
        values |= {"non_finite": (answers.predictions < 0).mean()}
        for name, counts in zip(report.modalities, answers.counts.mean(0).tolist(), strict=True):
            values |= {f"corrupted_{name}": counts[0], f"missing_{name}": counts[1]}
        values |= {f"alarms_{name}": alarms for name, alarms in scores.alarms.items()}
        weights = zip(report.candidates, answers.weights or (), strict=False)
        values |= {f"weight_{name}": weight for name, weight in weights}
        for metric, value in values.items():
            yield row(metric, value, **dict(zip(_WHERE, where, strict=True)))
    for setting, area in report.area.items():
        yield row("area", area, strategy="random", setting=setting)
    for disrupted, premium in report.corruption_premium.items():
        yield row("corruption_premium", premium, condition=disrupted)
    for name, quality in report.quality.items():
        yield row("quality_auroc", quality.auroc, modality=name)
        for class_name, means in quality.class_means.items():
            for kind, mean in zip(("clean", "corrupted"), means, strict=True):
                yield row(f"quality_{kind}_{class_name}", mean, modality=name)


def markdown(report: Measurements, warnings: Sequence[str]) -> str:
    """Return the report for a reader."""
    majority, digests, options = report.majority, report.fingerprint, report.intervals
    scores = [f"{100 * score:.1f}" for score in majority[1:]]
    lines = [
        f"# Robustness of {report.name}",
        "",
        f"{len(report.labels)} samples, {len(report.class_names)} classes, modalities "
        f"{', '.join(report.modalities)}; disruption seeds "
        f"{', '.join(map(str, report.seeds))}, scores are means over them. C: corrupted, D: "
        "missing, C+D: either, P: a part missing.",
        "",
        f"Majority line, always predicting {majority.name!r}: accuracy {scores[0]}, macro-F1 "
        f"{scores[1]}, weighted F1 {scores[2]}.",
        "",
    ]
    if options.replicates:
        lines += [
            f"Scores in %, in brackets the {100 * options.level:g} % interval of "
            f"{options.replicates} bootstrap replicates over the samples.",
            "",
        ]
    lines.append(
        f"Data `{digests.samples[:12]}`, disruptions `{digests.disruptions[:12]}`, inputs "
        f"`{digests.inputs[:12]}`."
    )
    if report.record:
        lines += ["", *[f"- {key}: {value}" for key, value in report.record.items()]]
    lines.append("")
    for title, note, columns, keys in _sections(report):
        if keys:
            body = [[show(key) for _, show in columns] for key in keys]
            lines += [f"## {title}", "", *([note, ""] if note else [])]
            lines += table([head for head, _ in columns], body)
        if title == "Every condition":
            lines += [f"**{warning}.**\n" for warning in warnings]
    return "\n".join(lines).rstrip() + "\n"


def _sections(report: Measurements) -> Iterator[Section]:
    """Yield title, note, columns and row keys of each section; one without keys is left out."""
    scores, answers = report.scores, report.answers
    keys, title = list(scores), ("condition", lambda k: scores[k].condition.title)
    columns: Columns = [
        title,
        ("corrupted", lambda k: f"{answers[k].counts.mean(0).sum(0)[0]:.0f}"),
        ("missing", lambda k: f"{answers[k].counts.mean(0).sum(0)[1]:.0f}"),
        ("accuracy", lambda k: percent(scores[k].accuracy)),
        ("seed s.d.", lambda k: percent(scores[k].seed_std)),
        ("macro-F1", lambda k: percent(scores[k].macro_f1)),
        ("weighted F1", lambda k: percent(scores[k].weighted_f1)),
        ("drop", lambda k: "–" if k == "clean" else percent(scores[k].drop, "+.1f")),
    ]
    yield "Every condition", "", columns, keys
    note = (
        "ECE: expected calibration error. NLL: negative log-likelihood. AURC: error among the "
        "most confident samples, mean over all shares of them; lower is better, and if the "
        "confidence is uninformative it equals the error rate."
    )
    columns = [
        title,
        ("ECE", lambda k: number(scores[k].ece.value)),
        ("NLL", lambda k: number(scores[k].nll.value)),
        ("AURC", lambda k: number(scores[k].aurc)),
    ]
    if alarmed := scores["clean"].alarms:
        rate = report.intervals.alarm_rate
        note += (
            f" Alarms: share of the samples in % whose p-value is at most {rate:g}; about "
            f"{100 * rate:g} % is right when clean."
        )
    for name in alarmed:
        columns.append(
            (f"{name} alarms", lambda k, m=name: percent(scores[k].alarms.get(m, math.nan)))
        )
    yield "Confidence and alarms", note, columns, keys
    conditions = [answers[key].condition for key in keys]
    curves = {setting: rate_curve(conditions, setting) for setting in report.area}
    columns = [("setting", str)]
    for k, (rate, _) in enumerate(next(iter(curves.values()), [])):
        columns.append((f"{rate:g}", lambda s, k=k: percent(scores[curves[s][k][1]].accuracy[0])))
    columns.append(("area under the curve", lambda s: percent(report.area[s])))
    yield "Accuracy against the disruption rate", "", columns, list(curves)
    note = (
        "Accuracy with the input missing minus accuracy with it corrupted, in points. Above zero, "
        "a corrupted modality is worse than none: the model should have ignored it."
    )
    premium = report.corruption_premium
    columns = [("disrupted", str), ("premium", lambda key: percent(premium[key], "+.1f"))]
    yield "Corruption premium", note, columns, list(premium)
    note = (
        "AUROC: probability that a clean sample scores above a corrupted one (0.5 is chance). "
        "Mean log-quality by class, clean / corrupted."
    )
    quality = report.quality
    columns = [("modality", str), ("AUROC", lambda m: number(quality[m].auroc))]
    for name in report.class_names:
        columns.append((name, lambda m, c=name: _pair(quality[m].class_means[c])))
    yield "Quality score", note, columns, list(quality)
    columns = [title]
    for k, name in enumerate(report.candidates):
        columns.append((name, lambda c, k=k: f"{(answers[c].weights or ())[k]:.2f}"))
    weighted = [key for key in keys if answers[key].weights]
    yield "Mean weight of each candidate", "", columns, weighted


def _pair(values: Sequence[float]) -> str:
    return " / ".join(number(value, ".3g") for value in values)
