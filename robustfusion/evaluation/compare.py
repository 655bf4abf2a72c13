"""Paired tests between two models on the same disrupted samples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robustfusion._markdown import table
from robustfusion.evaluation import statistics as stats
from robustfusion.evaluation._tables import metric_text, p_text
from robustfusion.evaluation.metrics import utility
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.statistics import UNKNOWN, Estimate

WHY_THEY_DIFFER = (
    "The interval is that of the mean difference in one condition. The McNemar test asks in each "
    "run whether the samples that only one model predicts correctly are balanced; the p of "
    "several runs is twice their median, and Holm's correction accounts for the number of "
    "conditions. So an interval can exclude 0 while the Holm p is above 0.05: such a difference "
    "is suggested, not established."
)


class Difference(NamedTuple):
    """One condition: the first model's accuracy minus the second's; see :func:`compare`.

    Args:
        accuracy: The two accuracies; for labels the shares of right ones, for numbers minus the
            mean absolute errors.
        difference: First minus second, with the bootstrap interval over samples and seeds.
        mcnemar_p: Exact McNemar test; over several runs twice the median of their p-values. NaN
            for labels and numbers.
        holm_p: ``mcnemar_p``, or for labels and numbers ``permutation_p``, adjusted for the
            number of conditions.
        permutation_p: Sign-flip test over the samples, each averaged over its runs first.
        discordant: How many samples only the first, and only the second, model predicts
            correctly, in each run: all disruption seeds of the first training seed, then of the
            second. Empty for labels and numbers.
    """

    accuracy: tuple[float, float]
    difference: Estimate
    mcnemar_p: float
    holm_p: float
    permutation_p: float
    discordant: tuple[tuple[int, int], ...]


class Comparison(NamedTuple):
    """Two models, condition by condition; see :func:`compare`.

    Args:
        names: Names of the two models.
        runs: Training seeds of each model.
        cells: The differences by condition key.
        titles: Condition titles by key.
        overall: Mean difference over all disrupted conditions, with its interval; NaN where
            nothing was disrupted.
        overall_p: Its sign-flip p-value.
        warnings: What is wrong with one of the two, so that the comparison is worthless.
        task: The task of the models.
    """

    names: tuple[str, str]
    runs: int
    cells: dict[str, Difference]
    titles: dict[str, str]
    overall: Estimate
    overall_p: float
    warnings: tuple[str, ...]
    task: str = "multiclass"

    def to_markdown(self) -> str:
        """Return a table with a line for each condition."""
        first, second = self.names
        seeds = f", {self.runs} training seeds each" if self.runs > 1 else ""
        is_class = self.task == "multiclass"
        head = ["condition", first, second, "difference"]
        head += (
            ["McNemar p", "Holm p", "permutation p"] if is_class else ["Holm p", "permutation p"]
        )
        metric = "mae" if self.task == "regression" else "accuracy"
        what = {
            "multiclass": "Accuracy in %",
            "multilabel": "Share of right labels in %",
            "regression": "Minus the mean absolute error",
        }[self.task]
        body = [
            [
                self.titles[key],
                *[metric_text(value, metric) for value in cell.accuracy],
                metric_text(cell.difference, metric, "+"),
                *([p_text(cell.mcnemar_p)] if is_class else []),
                *[p_text(p) for p in (cell.holm_p, cell.permutation_p)],
            ]
            for key, cell in self.cells.items()
        ]
        lines = [
            f"# {first} against {second}\n",
            f"{what}, the same samples under the same disruptions{seeds}. Difference with "
            "its bootstrap interval over samples and seeds.\n",
            *table(head, body),
        ]
        if not math.isnan(self.overall.value):
            overall, p = metric_text(self.overall, metric, "+"), p_text(self.overall_p)
            lines.append(f"Mean over the disrupted conditions: {overall}, permutation p {p}.\n")
        lines += [f"**{warning}**\n" for warning in self.warnings]
        lines += [WHY_THEY_DIFFER] if is_class else []
        return "\n".join(lines).rstrip() + "\n"


def compare(
    ours: RobustnessReport | Sequence[RobustnessReport],
    theirs: RobustnessReport | Sequence[RobustnessReport],
    *,
    same_inputs: bool = True,
    level: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Paired tests of one model against another on the same disrupted samples.

    Args:
        ours: The report of one model, or of the same model trained under several seeds.
        theirs: The same of the other model, with as many training seeds, in the same order.
        same_inputs: Also demand that both models received the same values; with False models with
            different features of the same samples are compared.
        level: Level of the intervals.
        replicates: Bootstrap replicates; 0 for no intervals. A replicate draws samples, disruption
            seeds and training seeds anew, the same ones for every condition.
        seed: Seed of the bootstrap and of the permutations.

    Returns:
        The comparison; differences are ours minus theirs.

    Raises:
        ValueError: If the reports were not measured on the same samples and disruptions.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import CachedFeatures, robustness_grid
        >>> from robustfusion.evaluation import compare, robustness_report
        >>> class Image(torch.nn.Module):  # uses one modality only
        ...     def forward(self, features, available):
        ...         return features["image"]
        >>> class Text(torch.nn.Module):
        ...     def forward(self, features, available):
        ...         return features["text"]
        >>> labels = torch.arange(60) % 3
        >>> image, text = torch.eye(3)[labels], torch.eye(3)[labels.clamp_max(1)]
        >>> data = CachedFeatures({"image": image, "text": text}, labels)
        >>> grid = robustness_grid(data.modalities, settings=("D",), rates=(1.0,))
        >>> reports = [robustness_report(model, data, grid) for model in (Image(), Text())]
        >>> clean = compare(*reports).cells["clean"]
        >>> clean.discordant, round(clean.difference.value, 3), clean.holm_p < 0.001
        (((20, 0),), 0.333, True)

    Reference:
        McNemar, Psychometrika 12, 1947; Holm, "A simple sequentially rejective multiple test
        procedure", Scandinavian Journal of Statistics 6, 1979; Efron and Tibshirani, "An
        Introduction to the Bootstrap", 1993.
    """
    left, right = (
        [side] if isinstance(side, RobustnessReport) else list(side) for side in (ours, theirs)
    )
    if not left or len(left) != len(right):
        raise ValueError(
            "ours and theirs must hold as many training seeds, at least one, got "
            f"{len(left)} and {len(right)}"
        )
    for other in (*left[1:], *right):
        _check_comparable(left[0], other, same_inputs)
    task = left[0].task
    gaps, accuracies, tests = {}, {}, []
    discordant: dict[str, tuple[tuple[int, int], ...]] = {}
    for key in left[0].answers:
        answers = [report.answers[key] for report in (*left, *right)]
        values = np.stack([utility(task, left[0].labels, x.predictions) for x in answers])
        a, b = values[: len(left)], values[len(left) :]  # (T, S, N)
        gaps[key] = a - b
        accuracies[key] = float(a.mean()), float(b.mean())
        discordant[key] = ()
        if task != "multiclass":
            continue
        only = [(x > y).sum(-1).ravel().tolist() for x, y in ((a, b), (b, a))]
        discordant[key] = tuple(zip(*only, strict=True))
        each = np.asarray([stats.mcnemar_exact(*counts) for counts in discordant[key]])
        tests.append(stats.combine_p_values(each))
    means = {key: gap.mean((0, 1), dtype=np.float64) for key, gap in gaps.items()}
    draws = stats.bootstrap_means(gaps, replicates, seed)
    if disrupted := [key for key in gaps if key != "clean"]:
        for part in (means, draws):
            part["overall"] = np.mean([part[key] for key in disrupted], axis=0)
    flipped = stats.sign_flip_p_values(np.stack(list(means.values()), axis=1), seed=seed)
    p_values = dict(zip(means, flipped.tolist(), strict=True))
    gap = {key: stats.estimate(x.mean(), draws[key], level) for key, x in means.items()}
    adjusted = stats.holm(np.asarray(tests or [p_values[key] for key in gaps])).tolist()
    tests = tests or [math.nan] * len(gaps)
    return Comparison(
        names=(left[0].name, right[0].name),
        runs=len(left),
        cells={
            key: Difference(accuracies[key], gap[key], p, q, p_values[key], discordant[key])
            for key, p, q in zip(gaps, tests, adjusted, strict=True)
        },
        titles={key: answers.condition.title for key, answers in left[0].answers.items()},
        overall=gap.get("overall", UNKNOWN),
        overall_p=p_values.get("overall", math.nan),
        warnings=tuple(dict.fromkeys(text for r in (*left, *right) for text in r.warnings)),
        task=task,
    )


def _check_comparable(
    first: RobustnessReport, second: RobustnessReport, same_inputs: bool
) -> None:
    ours, theirs = first.fingerprint, second.fingerprint
    names = f"{first.name!r} and {second.name!r}"
    if first.task != second.task:
        raise ValueError(f"reports of {names} have the tasks {first.task!r} and {second.task!r}")
    if ours.samples != theirs.samples:
        raise ValueError(
            f"reports of {names} are of different data: other samples, labels or order "
            f"({ours.samples[:8]} and {theirs.samples[:8]})"
        )
    conditions = [
        [(key, answers.seeds) for key, answers in report.answers.items()]
        for report in (first, second)
    ]
    if conditions[0] != conditions[1] or ours.disruptions != theirs.disruptions:
        raise ValueError(
            f"reports of {names} are of different disruptions: run both over the same conditions "
            "and seeds"
        )
    if same_inputs and ours.inputs != theirs.inputs:
        raise ValueError(
            f"models {names} were given different values for the same samples; pass "
            "same_inputs=False to compare them with their own features"
        )
