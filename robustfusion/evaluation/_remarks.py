"""Dead models speak: what makes the numbers of a report worthless, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from robustfusion.evaluation.report import RobustnessReport

# A score whose middle 90 % spans less than this in log-quality changes a weight by 5 % at most.
NARROW = 0.05


def remarks(report: RobustnessReport) -> Iterator[str]:
    """The remarks on one report."""
    name, clean = report.name, report.measured[0]
    broken = {c.condition.title: float((c.predictions < 0).mean()) for c in report.measured}
    worst = max(broken, key=lambda title: broken[title])
    if broken[worst] > 0:
        count = sum(share > 0 for share in broken.values())
        yield (
            f"{name}: the logits of some rows are not finite (counted as wrong), in {count} "
            f"conditions; most in {worst}, {100 * broken[worst]:.1f} % of the rows"
        )
    support = np.bincount(report.labels, minlength=len(report.class_names))
    majority = int(support.argmax())
    single = [c for c in report.measured if (c.predictions == majority).all()]
    if len(single) == len(report.measured):
        yield (
            f"{name} answers {report.class_names[majority]!r} always: it never left the majority "
            "class, so do not compare anything with it"
        )
    elif single:
        where = [c.condition.title for c in single]
        yield (
            f"{name} answers {report.class_names[majority]!r}, the majority class, to every row "
            f"in {len(single)} of {len(report.measured)} conditions: {', '.join(where[:4])}"
            + (" ..." if len(where) > 4 else "")
        )
    if clean not in single:
        predicted = np.isin(np.arange(len(support)), clean.predictions)
        never = [
            n
            for n, s, p in zip(report.class_names, support, predicted, strict=True)
            if s and not p
        ]
        if never:
            yield f"{name} never predicts {', '.join(map(repr, never))}, not even when clean"
        accuracy = float((clean.predictions == report.labels).mean())
        if accuracy <= support.max() / support.sum():
            yield (
                f"{name} is no better when clean than always answering "
                f"{report.class_names[majority]!r}"
            )
    for modality, quality in report.scored.items():
        scores = quality.clean[np.isfinite(quality.clean)]
        both = np.concatenate([scores, quality.corrupted[np.isfinite(quality.corrupted)]])
        if len(scores) < 2:
            continue
        low, high = np.quantile(both, [0.05, 0.95])
        if high - low < NARROW:
            yield (
                f"{name}: the quality of {modality} is nearly constant (5-95 % of the rows within "
                f"{high - low:.2g}): it cannot tell good rows from bad ones"
            )
