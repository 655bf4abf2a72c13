"""The figures of a report: rate curves, coverage, quality histograms, recovered features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustfusion._figures import COLORS, legend, panels
from robustfusion._optional import optional
from robustfusion.evaluation.metrics import IN_UNITS, TITLES
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.results import Answers, Quality, Recovered, rate_curve
from robustfusion.evaluation.statistics import risk_coverage

Embedding = Literal["pca", "tsne"]

_STYLES = ("-", "--", "-.", ":")
_MAJORITY = {"color": "#707070", "linestyle": ":", "linewidth": 1.2}


def plot_report(
    report: RobustnessReport,
    directory: str | Path,
    *,
    formats: Sequence[str] = ("png",),
    embedding: Embedding = "pca",
) -> list[Path]:
    """Draw the rate curves, accuracy over coverage, the qualities and the recovered features.

    Args:
        report: The report.
        directory: Folder for the files, which is created if needed.
        formats: File endings that matplotlib knows: "png", "svg", "pdf".
        embedding: Embedding of the recovered features: "pca" or "tsne" (scikit-learn).

    Returns:
        The files written. A figure without data (no quality scores, nothing recovered, no
        classes to be confident of) is left out.

    Raises:
        ImportError: Without matplotlib, or scikit-learn for "tsne";
            `pip install "robustfusion[report]"`.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> from robustfusion.disruption import CachedFeatures, robustness_grid
        >>> from robustfusion.evaluation import plot_report, robustness_report
        >>> features = {"image": torch.randn(12, 3), "text": torch.randn(12, 2)}
        >>> data = CachedFeatures(features, torch.arange(12) % 2)
        >>> head = ConcatenationHead({"image": 3, "text": 2}, num_classes=2)
        >>> grid = robustness_grid(data.modalities, settings=("D",))
        >>> report = robustness_report(head, data, grid).with_intervals(replicates=50)
        >>> [path.name for path in plot_report(report, tempfile.mkdtemp())]
        ['rate_curves.png', 'coverage.png']
    """
    figures = {}
    if report.area:
        figures["rate_curves"] = _rate_curves([report])
    if report.task == "multiclass":
        figures["coverage"] = _coverage(report)
    scored = {name: q for name, q in report.quality.items() if len(q.corrupted)}
    if scored:
        figures["quality"] = _quality_histograms(scored)
    if report.recovered:
        figures[f"recovered_{embedding}"] = _recovered_features(report, embedding)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        for ending in formats:
            written.append(folder / f"{name}.{ending.lstrip('.')}")
            figure.savefig(written[-1])
    return written


def plot_rate_curves(reports: Sequence[RobustnessReport], path: str | Path) -> Path:
    """Draw the main metric against the disruption rate, as Figure 5 of arXiv:2511.18751.

    For one model :func:`plot_report` draws it, too; see the example there.

    Args:
        reports: Reports of several models on the same samples.
        path: The file to write; its ending is the format.

    Returns:
        The path.

    Raises:
        ValueError: If there is no report, one has no rate curve, or the samples differ.
        ImportError: Without matplotlib; `pip install "robustfusion[report]"`.
    """
    if not reports or not all(report.area for report in reports):
        raise ValueError("reports must be one or more, each with modality-random conditions")
    if len({report.fingerprint.samples for report in reports}) > 1:
        raise ValueError("reports must be of the same samples")
    _rate_curves(reports).savefig(path)
    return Path(path)


def _rate_curves(reports: Sequence[RobustnessReport]) -> Any:
    settings, metric = list(reports[0].area), reports[0].main_metric
    scale, unit = (1, "") if metric in IN_UNITS else (100, " (%)")
    figure, axes = panels(len(settings), 3.6, 3.2)
    titles = {
        "C": "corrupted (C)",
        "D": "missing (D)",
        "C+D": "either (C+D)",
        "P": "a part missing (P)",
    }
    for panel, setting in zip(axes, settings, strict=True):
        for index, report in enumerate(reports):
            points = rate_curve([a.condition for a in report.answers.values()], setting)
            rates = [rate for rate, _ in points]
            scores = np.asarray([report[key].metrics[metric] for _, key in points]) * scale
            color = COLORS[index % len(COLORS)]
            style = _STYLES[index // len(COLORS) % len(_STYLES)] + "o"
            panel.plot(rates, scores[:, 0], style, ms=4, color=color, label=report.name)
            panel.fill_between(rates, scores[:, 1], scores[:, 2], color=color, alpha=0.12, lw=0)
        constant = "majority" if reports[0].task == "multiclass" else "constant"
        panel.axhline(scale * reports[0].baseline[metric], **_MAJORITY, label=constant)
        panel.set_title(titles[setting], fontsize=10)
        panel.set_xlabel("disruption rate")
        panel.set_xticks(rates)
    lows, highs = zip(*(panel.get_ylim() for panel in axes), strict=True)
    for panel in axes:
        panel.set_ylim(min(lows), max(highs))
        panel.set_xlim(-0.03, max(rates) + 0.03)
    options = reports[0].intervals
    level = f", {100 * options.level:g} % interval" if options.replicates else ""
    axes[0].set_ylabel(f"{TITLES[metric]}{unit}{level}")
    legend(figure, axes[0], 5)
    return figure


def _coverage(report: RobustnessReport) -> Any:
    """Draw accuracy among the most confident samples, a panel for each disrupted modality."""
    by_target: dict[str, list[Answers]] = {}
    for answers in report.answers.values():
        if answers.condition.strategy == "fixed":
            by_target.setdefault(answers.condition.where, []).append(answers)
    by_target = by_target or {"clean": []}
    figure, axes = panels(len(by_target), 3.6, 3.2)
    for panel, (name, several) in zip(axes, by_target.items(), strict=True):
        for color, answers in zip(COLORS, [report.answers["clean"], *several], strict=False):
            is_right = answers.predictions == report.labels
            coverage, risk = risk_coverage(is_right, answers.confidence)
            enough = coverage >= 0.05  # the accuracy of fewer samples is mostly noise
            label = answers.condition.setting or "clean"
            panel.plot(100 * coverage[enough], 100 * (1 - risk[enough]), color=color, label=label)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("coverage: most confident samples (%)")
        panel.axhline(100 * report.majority.accuracy, **_MAJORITY)
    axes[0].set_ylabel("accuracy among them (%)")
    legend(figure, axes[0], 4)
    return figure


def _quality_histograms(scored: Mapping[str, Quality]) -> Any:
    figure, axes = panels(len(scored), 3.8, 3.2)
    for panel, (name, quality) in zip(axes, scored.items(), strict=True):
        finite = [x[np.isfinite(x)] for x in (quality.clean, quality.corrupted)]
        both = np.concatenate(finite)
        if len(both):
            # A few very low values would squeeze all others into one bar.
            low, high = np.quantile(both, 0.01), both.max()
            # More than thirty bars are not distinguishable in a panel.
            edges = np.linspace(low, high, 31) if high > low else np.linspace(low - 1, low + 1, 31)
        for values, color, label in zip(finite, COLORS, ("clean", "corrupted"), strict=False):
            if len(values):
                heights, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
                heights = 100 * heights / len(values)
                panel.stairs(heights, edges, fill=True, color=color, alpha=0.3)
                panel.stairs(heights, edges, color=color, linewidth=1.4, label=label)
        auroc = quality.auroc.value
        panel.set_title(name if np.isnan(auroc) else f"{name}, AUROC {auroc:.3f}", fontsize=10)
        panel.set_xlabel("log-quality (the lowest 1 % in the first bar)")
    axes[0].set_ylabel("samples (%)")
    legend(figure, axes[0], 2)
    return figure


def _recovered_features(report: RobustnessReport, embedding: Embedding) -> Any:
    count = len(report.recovered)
    figure, axes = panels(count, 3.8, 3.6, columns=2 if count < 5 else 3)
    for panel, ((target, source), points) in zip(axes, report.recovered.items(), strict=True):
        flat = _embedded(points, embedding)
        for values, color, marker, label in (
            (flat[: len(points.true)], COLORS[0], "o", "true"),
            (flat[len(points.true) :], COLORS[1], "^", "recovered"),
        ):
            style = {"marker": marker, "alpha": 0.6, "linewidths": 0, "s": 12}
            panel.scatter(*values.T, color=color, label=label, **style)
        panel.set_title(f"{target} from {source}", fontsize=10)
        names = "t-SNE axis 1", "t-SNE axis 2"
        if embedding == "pca":
            shares = (*(100 * points.explained).tolist(), 0.0)
            names = f"axis 1 ({shares[0]:.0f} % of the variance)", f"axis 2 ({shares[1]:.0f} %)"
        panel.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    legend(figure, axes[0], 2)
    return figure


def _embedded(points: Recovered, embedding: Embedding) -> NDArray[np.float32]:
    """Return two coordinates of the true features and, below them, of the recovered ones."""
    joint = np.concatenate([points.true, points.recovered])
    if embedding == "pca":
        return np.pad(joint, ((0, 0), (0, 1)))[:, :2] if joint.shape[1] < 2 else joint[:, :2]
    tsne = optional("sklearn.manifold", 'embedding="tsne" needs scikit-learn', "report").TSNE
    perplexity = min(30.0, (len(joint) - 1) / 3)  # scikit-learn's default, less for few points
    model = tsne(perplexity=perplexity, init="pca", random_state=0)
    return np.asarray(model.fit_transform(joint))
