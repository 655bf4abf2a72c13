"""A report as rows and as Markdown."""

import math
from collections.abc import Iterator

from robustfusion.evaluation.results import CellSamples, Context, Summary, rate_curve
from robustfusion.evaluation.statistics import Estimate

COLUMNS = (
    *("model", "condition", "strategy", "setting", "modality", "rate"),
    *("metric", "value", "low", "high"),
)
Row = dict[str, str | float]

_CELL_METRICS = ("accuracy", "macro_f1", "weighted_f1", "drop", "ece")


def long_rows(context: Context, summary: Summary) -> list[Row]:
    """One row for each condition and metric."""
    return list(_rows(context, summary))


def _rows(context: Context, summary: Summary) -> Iterator[Row]:
    def row(metric: str, value: Estimate | float, **where: str | float) -> Row:
        found = value if isinstance(value, Estimate) else Estimate(value, math.nan, math.nan)
        made: Row = dict.fromkeys(COLUMNS, "")
        made |= {"model": context.name, "metric": metric, **where}
        for end, number in found._asdict().items():
            made[end] = number if math.isfinite(number) else ""
        return made

    majority = summary.majority
    for metric in ("accuracy", "macro_f1", "weighted_f1"):
        yield row(f"majority_{metric}", float(getattr(majority, metric)))
    for key, cell in summary.cells.items():
        c = cell.samples.condition
        where: dict[str, str | float] = {
            "condition": key,
            "strategy": c.strategy,
            "setting": c.setting or "",
            "modality": c.modality or "",
            "rate": c.rate,
        }
        for metric in _CELL_METRICS:
            yield row(metric, getattr(cell, metric), **where)
        yield row("accuracy_seed_std", cell.spread, **where)
        yield row("non_finite", _non_finite(cell.samples), **where)
        for column, name in enumerate(context.modalities):
            corrupted, discarded = cell.samples.counts[:, column].mean(0).tolist()
            yield row(f"corrupted_{name}", corrupted, **where)
            yield row(f"discarded_{name}", discarded, **where)
        for name, weight in zip(context.candidates, cell.samples.weights or (), strict=False):
            yield row(f"weight_{name}", weight, **where)
    for setting, area in summary.areas.items():
        yield row("area", area, strategy="random", setting=setting)
    for place, premium in summary.premiums.items():
        yield row("corruption_premium", premium, condition=place)
    for name, quality in summary.qualities.items():
        yield row("quality_auroc", quality.auroc, modality=name)
        for class_name, means in quality.class_means.items():
            for kind, mean in zip(("clean", "corrupted"), means, strict=True):
                yield row(f"quality_{kind}_{class_name}", mean, modality=name)


def _non_finite(cell: CellSamples) -> float:
    return float((cell.predictions < 0).mean())


def _percent(value: Estimate, sign: str = "") -> str:
    text = f"{100 * value.value:{sign}.1f}"
    if math.isnan(value.low):
        return text
    return f"{text} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"


def _number(value: float, form: str = ".3f") -> str:
    return "–" if math.isnan(value) else format(value, form)


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    # A bar inside a name would end its column.
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (head, *body)]
    lines = [f"| {' | '.join(line)} |" for line in rows]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def markdown(context: Context, summary: Summary) -> str:
    """The report for a reader."""
    lines = [f"# Robustness of {context.name}", "", *_preamble(context, summary), ""]
    lines += ["## Every condition", "", *_conditions(context, summary)]
    if summary.areas:
        lines += ["## Accuracy against the disruption rate", "", *_curves(summary)]
    if summary.premiums:
        lines += ["## Corruption premium", "", *_premiums(summary)]
    if summary.qualities:
        lines += ["## Quality score", "", *_qualities(context, summary)]
    if any(cell.samples.weights for cell in summary.cells.values()):
        lines += ["## Mean weight of each candidate", "", *_weights(context, summary)]
    return "\n".join(lines).rstrip() + "\n"


def _preamble(context: Context, summary: Summary) -> list[str]:
    majority, digests = summary.majority, context.fingerprint
    lines = [
        f"{len(context.labels)} samples, {len(context.class_names)} classes, modalities "
        f"{', '.join(context.modalities)}; disruption seeds "
        f"{', '.join(map(str, context.seeds))}, scores are means over them.",
        "",
        f"Majority line, always answering {majority.name!r}: accuracy "
        f"{100 * majority.accuracy:.1f}, macro-F1 {100 * majority.macro_f1:.1f}, weighted F1 "
        f"{100 * majority.weighted_f1:.1f}.",
        "",
    ]
    if context.replicates:
        lines += [
            f"Scores in %, in brackets the {100 * context.level:g} % interval of "
            f"{context.replicates} bootstrap replicates over the samples.",
            "",
        ]
    lines.append(
        f"Data `{digests.samples[:12]}`, disruptions `{digests.disruptions[:12]}`, inputs "
        f"`{digests.inputs[:12]}`."
    )
    if context.record:
        lines += ["", *[f"- {key}: {value}" for key, value in context.record.items()]]
    return lines


def _conditions(context: Context, summary: Summary) -> list[str]:
    head = ["condition", "corrupted", "discarded", "accuracy", "seed s.d.", "macro-F1"]
    head += ["weighted F1", "drop", "ECE"]
    body = []
    for cell in summary.cells.values():
        counts = cell.samples.counts.mean(0).sum(0)
        body.append(
            [
                cell.samples.condition.title,
                *[f"{count:.0f}" for count in counts],
                _percent(cell.accuracy),
                "–" if math.isnan(cell.spread) else f"{100 * cell.spread:.1f}",
                _percent(cell.macro_f1),
                _percent(cell.weighted_f1),
                "–" if cell.samples.condition.strategy == "clean" else _percent(cell.drop, "+"),
                _number(cell.ece.value),
            ]
        )
    lines = _table(head, body)
    broken = {k: v for k, c in summary.cells.items() if (v := _non_finite(c.samples)) > 0}
    if broken:
        worst = max(broken, key=lambda key: broken[key])
        lines += [
            f"**The logits of some rows are not finite** (counted as wrong), in {len(broken)} "
            f"conditions; most in {worst}, {100 * broken[worst]:.1f} % of the rows.",
            "",
        ]
    return lines


def _curves(summary: Summary) -> list[str]:
    conditions = [cell.samples.condition for cell in summary.cells.values()]
    curves = {setting: rate_curve(conditions, setting) for setting in summary.areas}
    rates = [rate for rate, _ in next(iter(curves.values()))]
    body = [
        [
            setting,
            *[f"{100 * summary.cells[key].accuracy.value:.1f}" for _, key in points],
            _percent(summary.areas[setting]),
        ]
        for setting, points in curves.items()
    ]
    return _table(["setting", *[f"{rate:g}" for rate in rates], "area under the curve"], body)


def _premiums(summary: Summary) -> list[str]:
    lines = [
        "Accuracy discarded minus accuracy corrupted, in points. Above zero, a corrupted modality "
        "is worse than none: the model should have ignored it.",
        "",
    ]
    body = [[place, _percent(value, "+")] for place, value in summary.premiums.items()]
    return lines + _table(["disrupted", "premium"], body)


def _qualities(context: Context, summary: Summary) -> list[str]:
    lines = [
        "AUROC: probability that a clean sample scores above a corrupted one (0.5 is chance). "
        "Mean log-quality by class, clean / corrupted.",
        "",
    ]
    body = []
    for name, quality in summary.qualities.items():
        auroc = quality.auroc
        ends = "" if math.isnan(auroc.low) else f" [{auroc.low:.3f}, {auroc.high:.3f}]"
        means = [
            f"{_number(clean, '.3g')} / {_number(corrupted, '.3g')}"
            for clean, corrupted in quality.class_means.values()
        ]
        body.append([name, _number(auroc.value) + ends, *means])
    return lines + _table(["modality", "AUROC", *context.class_names], body)


def _weights(context: Context, summary: Summary) -> list[str]:
    body = [
        [cell.samples.condition.title, *[f"{weight:.2f}" for weight in cell.samples.weights]]
        for cell in summary.cells.values()
        if cell.samples.weights
    ]
    return _table(["condition", *context.candidates], body)
