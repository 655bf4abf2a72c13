"""Paired tests between two models on the same disrupted samples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robustfusion.evaluation import statistics as stats
from robustfusion.evaluation._tables import p_text, percent, table
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.statistics import UNKNOWN, Estimate

WHY_THEY_DIFFER = (
    "The interval is of the mean difference in that one condition. The McNemar test asks in each "
    "run whether the samples that one model alone gets right are balanced; several runs count "
    "twice the median of their p, and Holm's correction makes them stricter by the number of "
    "conditions. So an interval without 0 can stand beside a Holm p above 0.05: that difference "
    "is suggested, not shown."
)


class Difference(NamedTuple):
    """One condition: the first model's accuracy minus the second's; see :func:`compare`.

    Args:
        accuracy: The two accuracies.
        difference: First minus second, with the bootstrap interval over samples and seeds.
        mcnemar_p: Exact McNemar test; over several runs twice the median of their p-values.
        holm_p: ``mcnemar_p`` adjusted for the number of conditions.
        permutation_p: Sign-flip test over the samples, each averaged over its runs first.
        discordant: Samples only the first, and only the second, model gets right, run by run:
            disruption seeds of the first training seed, then of the second.
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
        names: Of the two models.
        runs: Training seeds a side.
        cells: The differences by condition key.
        titles: Condition titles by key.
        overall: Mean difference over all disrupted conditions, with its interval; NaN where
            nothing was disrupted.
        overall_p: Its sign-flip p-value.
        remarks: What is wrong with one of the two, so that beating it says nothing.
    """

    names: tuple[str, str]
    runs: int
    cells: dict[str, Difference]
    titles: dict[str, str]
    overall: Estimate
    overall_p: float
    remarks: tuple[str, ...]

    def to_markdown(self) -> str:
        """A table with a line for each condition."""
        first, second = self.names
        seeds = f", {self.runs} training seeds a side" if self.runs > 1 else ""
        head = ["condition", first, second, "difference", "McNemar p", "Holm p", "permutation p"]
        body = [
            [
                self.titles[key],
                *[f"{100 * value:.1f}" for value in cell.accuracy],
                percent(cell.difference, "+.1f"),
                *[p_text(p) for p in (cell.mcnemar_p, cell.holm_p, cell.permutation_p)],
            ]
            for key, cell in self.cells.items()
        ]
        lines = [
            f"# {first} against {second}\n",
            f"Accuracy in %, the same samples under the same disruptions{seeds}. Difference with "
            "its bootstrap interval over samples and seeds.\n",
            *table(head, body),
        ]
        if not math.isnan(self.overall.value):
            overall, p = percent(self.overall, "+.1f"), p_text(self.overall_p)
            lines.append(f"Mean over the disrupted conditions: {overall}, permutation p {p}.\n")
        lines += [f"**{remark}**\n" for remark in self.remarks]
        return "\n".join([*lines, WHY_THEY_DIFFER]) + "\n"


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
        same_inputs: Also demand that both models were given the same values; False compares
            models with features of their own of the same samples.
        level: Of the intervals.
        replicates: Bootstrap replicates; 0 for no intervals. A replicate draws samples, disruption
            seeds and training seeds anew, the same ones for every condition.
        seed: Of the bootstrap and of the permutations.

    Returns:
        The comparison; differences are ours minus theirs.

    Raises:
        ValueError: If the reports were not measured on the same samples and disruptions.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import robustness_grid
        >>> from robustfusion.evaluation import CachedFeatures, compare, robustness_report
        >>> class Image(torch.nn.Module):  # believes one modality
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
    gaps, accuracies, discordant, tests = {}, {}, {}, []
    for cells in zip(*(report.measured for report in (*left, *right)), strict=True):
        key = cells[0].condition.key
        hits = np.stack([cell.predictions == left[0].labels for cell in cells])
        a, b = hits[: len(left)], hits[len(left) :]  # (T, S, N)
        gaps[key] = a.astype(np.float32) - b.astype(np.float32)
        accuracies[key] = float(a.mean()), float(b.mean())
        only = [(x & ~y).sum(-1).ravel().tolist() for x, y in ((a, b), (b, a))]
        discordant[key] = tuple(zip(*only, strict=True))
        each = np.asarray([stats.mcnemar_exact(*counts) for counts in discordant[key]])
        tests.append(stats.combine_p_values(each))
    means = {key: gap.mean((0, 1), dtype=np.float64) for key, gap in gaps.items()}
    draws = stats.bootstrap_means(gaps, replicates, seed)
    if disrupted := [key for key in gaps if key != "clean"]:
        for values in (means, draws):
            values["overall"] = np.mean([values[key] for key in disrupted], axis=0)
    flipped = stats.sign_flip_p_values(np.stack(list(means.values()), axis=1), seed=seed)
    p_values = dict(zip(means, flipped.tolist(), strict=True))
    gap = {key: stats.estimate(x.mean(), draws[key], level) for key, x in means.items()}
    adjusted = stats.holm(np.asarray(tests)).tolist()
    return Comparison(
        names=(left[0].name, right[0].name),
        runs=len(left),
        cells={
            key: Difference(accuracies[key], gap[key], p, q, p_values[key], discordant[key])
            for key, p, q in zip(gaps, tests, adjusted, strict=True)
        },
        titles={cell.condition.key: cell.condition.title for cell in left[0].measured},
        overall=gap.get("overall", UNKNOWN),
        overall_p=p_values.get("overall", math.nan),
        remarks=tuple(dict.fromkeys(remark for r in (*left, *right) for remark in r.remarks)),
    )


def _check_comparable(
    first: RobustnessReport, second: RobustnessReport, same_inputs: bool
) -> None:
    ours, theirs = first.fingerprint, second.fingerprint
    names = f"{first.name!r} and {second.name!r}"
    if ours.samples != theirs.samples:
        raise ValueError(
            f"reports of {names} are of different data: other samples, labels or order "
            f"({ours.samples[:8]} and {theirs.samples[:8]})"
        )
    conditions = [[(c.condition, c.seeds) for c in r.measured] for r in (first, second)]
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
