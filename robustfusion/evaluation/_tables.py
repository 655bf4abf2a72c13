"""A report in rows and in Markdown, and the helpers that every table uses."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustfusion._markdown import table
from robustfusion.evaluation.measurements import Measurements
from robustfusion.evaluation.metrics import IN_UNITS, TITLES
from robustfusion.evaluation.metrics import title as metric_title
from robustfusion.evaluation.results import rate_curve
from robustfusion.evaluation.statistics import Estimate

_SCORES = ("accuracy", "macro_f1", "weighted_f1", "drop", "ece", "nll", "aurc", "auroc")
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


def metric_text(value: Estimate | float, metric: str, sign: str = "") -> str:
    """Format a metric: a share in percent, the others as they are."""
    return number(value, f"{sign}.4g") if metric in IN_UNITS else percent(value, f"{sign}.1f")


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

    is_class = report.task == "multiclass"
    for metric, score in report.baseline.items():
        yield row(f"{'majority' if is_class else 'constant'}_{metric}", score)
    for key, scores in report.scores.items():
        answers, c = report.answers[key], scores.condition
        rate = c.rate_text if isinstance(c.rate, tuple) else c.rate
        modality = c.modality if isinstance(c.modality, str) else "+".join(c.modality or ())
        where: Any = (key, c.strategy, c.setting or "", modality, rate)
        values: dict[str, Any] = {**scores.metrics, "drop": scores.drop, "aurc": scores.aurc}
        values = {n: values[n] for n in (_SCORES if is_class else (*scores.metrics, "drop"))}
        values |= {f"{report.main_metric}_seed_std": scores.seed_std}
        values |= {"non_finite": answers.not_finite().mean()}
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
    digests, options = report.fingerprint, report.intervals
    kind = {"multiclass": "classes", "multilabel": "labels", "regression": "numbers"}[report.task]
    lines = [
        f"# Robustness of {report.name}",
        "",
        f"{len(report.labels)} samples, {len(report.class_names)} {kind}, modalities "
        f"{', '.join(report.modalities)}; disruption seeds "
        f"{', '.join(map(str, report.seeds))}, scores are means over them. C: corrupted, D: "
        "missing, C+D: either, P: a part missing.",
        "",
        _baseline_line(report),
        "",
    ]
    if options.replicates:
        lines += [
            f"Scores in %{' or in their units' if kind == 'numbers' else ''}, in brackets the "
            f"{100 * options.level:g} % interval of {options.replicates} bootstrap replicates "
            "over the samples.",
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


def _baseline_line(report: Measurements) -> str:
    """Return a sentence about the scores to beat."""
    if report.task == "multiclass":
        name, *scores = report.majority
        first, second, third = (f"{100 * score:.1f}" for score in scores)
        return (
            f"Majority line, always predicting {name!r}: accuracy {first}, macro-F1 {second}, "
            f"weighted F1 {third}."
        )
    what = "share of samples with each label" if report.task == "multilabel" else "mean"
    scores_text = ", ".join(
        f"{TITLES[name]} {metric_text(value, name)}" for name, value in report.baseline.items()
    )
    return f"Constant line, always predicting the {what}: {scores_text}."


def _sections(report: Measurements) -> Iterator[Section]:
    """Yield title, note, columns and row keys of each section; one without keys is left out."""
    scores, answers = report.scores, report.answers
    keys, title = list(scores), ("condition", lambda k: scores[k].condition.title)
    columns: Columns = [
        title,
        ("corrupted", lambda k: f"{answers[k].counts.mean(0).sum(0)[0]:.0f}"),
        ("missing", lambda k: f"{answers[k].counts.mean(0).sum(0)[1]:.0f}"),
    ]
    main, is_class = report.main_metric, report.task == "multiclass"
    others = [name for name in scores["clean"].metrics if name not in (main, "ece", "nll")]
    for name in (main, *others):
        columns.append(
            (TITLES[name], lambda k, n=name: metric_text(scores[k].metrics.get(n, math.nan), n))
        )
    columns.insert(4, ("seed s.d.", lambda k: metric_text(scores[k].seed_std, main)))
    columns.append(
        ("drop", lambda k: "–" if k == "clean" else metric_text(scores[k].drop, main, "+"))
    )
    note = "" if is_class else f"Drop: {TITLES[main]} when clean minus that here."
    yield "Every condition", note, columns, keys
    note = (
        "ECE: expected calibration error. NLL: negative log-likelihood. AURC: error among the "
        "most confident samples, mean over all shares of them; lower is better, and if the "
        "confidence is uninformative it equals the error rate."
    )
    columns = [title]
    columns += [
        ("ECE", lambda k: number(scores[k].ece.value)),
        ("NLL", lambda k: number(scores[k].nll.value)),
        ("AURC", lambda k: number(scores[k].aurc)),
    ]
    if not is_class:
        note, columns = "", [title]
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
    if len(columns) > 1:
        yield "Confidence and alarms" if is_class else "Alarms", note.strip(), columns, keys
    conditions = [answers[key].condition for key in keys]

    def main_of(key: str) -> float:
        return scores[key].metrics[main].value

    curves = {setting: rate_curve(conditions, setting) for setting in report.area}
    columns = [("setting", str)]
    for k, (rate, _) in enumerate(next(iter(curves.values()), [])):
        columns.append((f"{rate:g}", lambda s, k=k: metric_text(main_of(curves[s][k][1]), main)))
    columns.append(("area under the curve", lambda s: metric_text(report.area[s], main)))
    yield f"{metric_title(main)} against the disruption rate", "", columns, list(curves)
    points = "" if main in IN_UNITS else ", in points"
    note = (
        f"{metric_title(main)} with the input missing minus {TITLES[main]} with it corrupted"
        f"{points}. Above zero, a corrupted modality is worse than none: the model should have "
        "ignored it."
    )
    premium = report.corruption_premium
    columns = [("disrupted", str), ("premium", lambda key: metric_text(premium[key], main, "+"))]
    yield "Corruption premium", note, columns, list(premium)
    note = "AUROC: probability that a clean sample scores above a corrupted one (0.5 is chance)."
    note += " Mean log-quality by class, clean / corrupted." if is_class else ""
    quality = report.quality
    columns = [("modality", str), ("AUROC", lambda m: number(quality[m].auroc))]
    for name in quality[next(iter(quality))].class_means if quality else ():
        columns.append((name, lambda m, c=name: _pair(quality[m].class_means[c])))
    yield "Quality score", note, columns, list(quality)
    columns = [title]
    for k, name in enumerate(report.candidates):
        columns.append((name, lambda c, k=k: f"{(answers[c].weights or ())[k]:.2f}"))
    weighted = [key for key in keys if answers[key].weights]
    yield "Mean weight of each candidate", "", columns, weighted


def _pair(values: Sequence[float]) -> str:
    return " / ".join(number(value, ".3g") for value in values)
