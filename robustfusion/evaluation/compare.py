"""Paired tests between two models on the same disrupted samples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robustfusion.evaluation.results import CellSamples, Context
from robustfusion.evaluation.statistics import (
    Estimate,
    FloatArray,
    bootstrap_p_value,
    combine_p_values,
    estimate,
    holm,
    mcnemar_exact,
)


class Difference(NamedTuple):
    """One condition: the first model's accuracy minus the second's.

    Args:
        accuracy: the two accuracies.
        difference: first minus second, with the bootstrap interval over samples and seeds.
        bootstrap_p: two-sided, from the same bootstrap.
        mcnemar_p: exact McNemar test; over several seeds twice the median of their p-values.
        holm_p: `mcnemar_p` adjusted for the number of conditions.
        discordant: samples only the first, and only the second, model gets right, by seed.

    Example:
        >>> from robustfusion.evaluation import Difference
        >>> from robustfusion.evaluation.statistics import Estimate, mcnemar_exact
        >>> gap = Estimate(0.2, 0.0, 0.4)
        >>> cell = Difference((0.9, 0.7), gap, 0.06, mcnemar_exact(3, 1), 1.0, ((3, 1),))
        >>> cell.mcnemar_p, cell.difference.low
        (0.625, 0.0)

    Reference:
        As :class:`Comparison`.
    """

    accuracy: tuple[float, float]
    difference: Estimate
    bootstrap_p: float
    mcnemar_p: float
    holm_p: float
    discordant: tuple[tuple[int, int], ...]


class Comparison(NamedTuple):
    """Two models, condition by condition; see `RobustnessReport.compare`.

    Args:
        names: of the two models.
        cells: the differences by condition key.
        titles: condition titles by key.
        overall: mean difference over all disrupted conditions, with its interval; NaN where
            nothing was disrupted.
        overall_p: its two-sided bootstrap p-value.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from robustfusion.evaluation import CachedFeatures, robustness_report
        >>> class Only(torch.nn.Module):  # believes one modality
        ...     def __init__(self, name):
        ...         super().__init__()
        ...         self.name = name
        ...
        ...     def forward(self, features, available):
        ...         there = available[self.name][:, None]
        ...         return SimpleNamespace(logits=torch.where(there, features[self.name], 0))
        >>> labels = torch.arange(60) % 3
        >>> image, text = torch.eye(3)[labels], torch.eye(3)[labels.clamp_max(1)]
        >>> data = CachedFeatures({"image": image, "text": text}, labels)
        >>> first, second = (
        ...     robustness_report(Only(name), data, name=name, settings=("D",), rates=(1.0,))
        ...     for name in data.modalities
        ... )
        >>> comparison = first.compare(second)
        >>> clean = comparison.cells["clean"]
        >>> clean.discordant, round(clean.difference.value, 3), clean.holm_p < 0.001
        (((20, 0),), 0.333, True)
        >>> print(comparison.to_markdown().splitlines()[0])
        # image against text

    Reference:
        McNemar, Psychometrika 12, 1947; Holm, "A simple sequentially rejective multiple test
        procedure", Scandinavian Journal of Statistics 6, 1979; Efron and Tibshirani, "An
        Introduction to the Bootstrap", 1993.
    """

    names: tuple[str, str]
    cells: dict[str, Difference]
    titles: dict[str, str]
    overall: Estimate
    overall_p: float

    def to_markdown(self) -> str:
        """A table with a line for each condition."""
        first, second = self.names
        lines = [
            f"# {first} against {second}",
            "",
            "Accuracy in %, the same samples under the same disruptions. Difference with its "
            "bootstrap interval over samples and seeds; exact McNemar test, and the same after "
            "Holm's correction for the number of conditions.",
            "",
            f"| condition | {first} | {second} | difference | McNemar p | Holm p | bootstrap p |",
            "|---|---|---|---|---|---|---|",
        ]
        for key, cell in self.cells.items():
            a, b = (f"{100 * value:.1f}" for value in cell.accuracy)
            ps = (cell.mcnemar_p, cell.holm_p, cell.bootstrap_p)
            tested = " | ".join(_p_value(p) for p in ps)
            lines.append(
                f"| {self.titles[key]} | {a} | {b} | {_points(cell.difference)} | {tested} |"
            )
        if math.isnan(self.overall.value):
            return "\n".join(lines) + "\n"
        lines += [
            "",
            f"Mean over the disrupted conditions: {_points(self.overall)}, "
            f"bootstrap p {_p_value(self.overall_p)}.",
        ]
        return "\n".join(lines) + "\n"


def _points(value: Estimate) -> str:
    if math.isnan(value.low):
        return f"{100 * value.value:+.1f}"
    return f"{100 * value.value:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def _p_value(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _check_comparable(
    first: Context,
    first_cells: Sequence[CellSamples],
    second: Context,
    second_cells: Sequence[CellSamples],
    same_inputs: bool,
) -> None:
    ours, theirs = first.fingerprint, second.fingerprint
    if ours.samples != theirs.samples:
        raise ValueError(
            f"reports of {first.name!r} and {second.name!r} are of different data: other samples, "
            f"labels or order ({ours.samples[:8]} and {theirs.samples[:8]})"
        )
    conditions = [[(c.condition, c.seeds) for c in cells] for cells in (first_cells, second_cells)]
    if conditions[0] != conditions[1] or ours.disruptions != theirs.disruptions:
        raise ValueError(
            f"reports of {first.name!r} and {second.name!r} are of different disruptions: run "
            "both over the same grid and seeds"
        )
    if same_inputs and ours.inputs != theirs.inputs:
        raise ValueError(
            f"models {first.name!r} and {second.name!r} were given different values for the same "
            "samples; pass same_inputs=False to compare them with their own features"
        )


def compare_reports(
    first: Context,
    first_cells: Sequence[CellSamples],
    second: Context,
    second_cells: Sequence[CellSamples],
    *,
    same_inputs: bool,
    replicates: int,
    seed: int,
) -> Comparison:
    """The work of `RobustnessReport.compare`."""
    _check_comparable(first, first_cells, second, second_cells, same_inputs)
    labels = first.labels
    generator = np.random.default_rng(seed)
    seeds = len(first.seeds)
    # One resampling of samples and of seeds for all conditions, so that their mean is paired too.
    samples = generator.integers(len(labels), size=(replicates, len(labels)))
    offsets = np.arange(replicates)[:, None] * len(labels)
    counts = np.bincount((samples + offsets).ravel(), minlength=samples.size)
    counts = counts.reshape(samples.shape).astype(np.float32)
    chosen = generator.integers(seeds, size=(replicates, seeds))
    seed_counts = (chosen[..., None] == np.arange(seeds)).sum(1) / seeds

    plain: dict[str, FloatArray] = {}
    values, tests, discordant, accuracies = {}, {}, {}, {}
    for mine, yours in zip(first_cells, second_cells, strict=True):
        key = mine.condition.key
        right, wrong = mine.predictions == labels, yours.predictions == labels
        only = [
            (int((a & ~b).sum()), int((b & ~a).sum())) for a, b in zip(right, wrong, strict=True)
        ]
        gap = right.astype(np.float32) - wrong.astype(np.float32)
        resampled = (counts @ gap.T).astype(np.float64) / len(labels)
        mixed = resampled[:, 0] if len(gap) == 1 else (resampled * seed_counts).sum(1)
        plain[key] = np.asarray(gap.mean(dtype=np.float64))
        values[key] = mixed
        tests[key] = combine_p_values(np.asarray([mcnemar_exact(b, c) for b, c in only]))
        discordant[key] = tuple(only)
        accuracies[key] = (float(right.mean()), float(wrong.mean()))
    adjusted = dict(zip(tests, holm(np.asarray(list(tests.values()))), strict=True))
    cells = {
        key: Difference(
            accuracy=accuracies[key],
            difference=estimate(float(plain[key]), values[key], first.level),
            bootstrap_p=bootstrap_p_value(values[key]),
            mcnemar_p=tests[key],
            holm_p=float(adjusted[key]),
            discordant=discordant[key],
        )
        for key in tests
    }
    disrupted = [key for key in cells if key != "clean"]
    mean, plain_mean = np.empty(0), math.nan
    if disrupted:
        mean = np.mean([values[key] for key in disrupted], axis=0)
        plain_mean = float(np.mean([plain[key] for key in disrupted]))
    return Comparison(
        names=(first.name, second.name),
        cells=cells,
        titles={c.condition.key: c.condition.title for c in first_cells},
        overall=estimate(plain_mean, mean, first.level),
        overall_p=bootstrap_p_value(mean),
    )
