"""Sentences about what makes the scores of a report worthless."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfusion.evaluation.measurements import Measurements

# If the middle 90 % of the log-qualities span less than this, weights change by 5 % at most.
MIN_QUALITY_RANGE = 0.05


def warnings_about(report: Measurements) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong with a model or its quality scores."""
    name = report.name
    every = [(a.condition.title, a.predictions) for a in report.answers.values()]
    answers = report.answers.values()
    not_finite = {a.condition.title: float(a.not_finite().mean()) for a in answers}
    worst = max(not_finite, key=lambda title: not_finite[title])
    if not_finite[worst] > 0:
        yield (
            f"{name}: the logits of some samples are not finite (counted as wrong), in "
            f"{sum(share > 0 for share in not_finite.values())} conditions; most in {worst}, "
            f"{100 * not_finite[worst]:.1f} % of the samples"
        )
    if report.task == "multiclass":
        yield from _warnings_about_classes(report, every)
    else:
        value = report.scores["clean"].metrics[report.main_metric].value
        if value <= report.baseline[report.main_metric]:
            yield f"{name} is no better when clean than the best constant prediction"
    for modality, quality in report.log_quality.items():
        both = np.concatenate([quality.clean, quality.corrupted.ravel()])
        if np.isfinite(quality.clean).sum() < 2:
            continue
        low, high = np.quantile(both[np.isfinite(both)], [0.05, 0.95])
        if high - low < MIN_QUALITY_RANGE:
            yield (
                f"{name}: the quality of {modality} is nearly constant (5-95 % of the samples "
                f"within {high - low:.2g}): it cannot separate damaged inputs from intact ones"
            )


def _warnings_about_classes(
    report: Measurements, every: list[tuple[str, NDArray[Any]]]
) -> Iterator[str]:
    name, clean = report.name, report.answers["clean"]
    support = np.bincount(report.labels, minlength=len(report.class_names))
    winner = int(support.argmax())
    majority = repr(report.class_names[winner])
    constant = [title for title, guess in every if (guess == winner).all()]
    if len(constant) == len(every):
        yield (
            f"{name} always predicts {majority}: it never left the majority class, so do not "
            "compare anything with it"
        )
    elif constant:
        yield (
            f"{name} predicts {majority}, the majority class, for every sample in "
            f"{len(constant)} of {len(every)} conditions: {', '.join(constant[:4])}"
            + (" ..." if len(constant) > 4 else "")
        )
    if clean.condition.title not in constant:
        unseen = (support > 0) & ~np.isin(np.arange(len(support)), clean.predictions)
        if unseen.any():
            never = ", ".join(repr(report.class_names[k]) for k in np.flatnonzero(unseen))
            yield f"{name} never predicts {never}, not even when clean"
        if (clean.predictions == report.labels).mean() <= support.max() / support.sum():
            yield f"{name} is no better when clean than always predicting {majority}"
