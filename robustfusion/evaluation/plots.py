"""The figures of a report: rate curves, risk and coverage, quality histograms, recovered features.

Drawn on `matplotlib.figure.Figure` objects with the Agg canvas: no window, no global state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.results import Quality, Recovered, rate_curve
from robustfusion.evaluation.statistics import risk_coverage

Embedding = Literal["pca", "tsne"]

# Okabe and Ito's colors: told apart by every kind of color vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_GREY = "#707070"


def _figure(count: int, width: float, height: float, columns: int = 4) -> tuple[Any, list[Any]]:
    """A figure with `count` panels, at most `columns` beside each other."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "robustfusion[report]"') from error
    columns = min(count, columns)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in panels[count:]:
        figure.delaxes(spare)
    for panel in panels[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, panels[:count]


def plot_report(
    report: RobustnessReport,
    directory: str | Path,
    *,
    formats: Sequence[str] = ("png",),
    embedding: Embedding = "pca",
) -> list[Path]:
    """Draw the rate curves, accuracy over coverage, the qualities and the recovered features.

    Args:
        report: what to draw.
        directory: where to write; made if it does not exist.
        formats: file endings that matplotlib knows: "png", "svg", "pdf".
        embedding: of the recovered features in the plane: "pca" or "tsne" (scikit-learn).

    Returns:
        the files written. A figure without data (no quality scores, nothing recovered) is left
        out.

    Raises:
        ImportError: without matplotlib, or scikit-learn for "tsne";
            `pip install "robustfusion[report]"`.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> from robustfusion.disruption import robustness_grid
        >>> from robustfusion.evaluation import CachedFeatures, plot_report, robustness_report
        >>> features = {"image": torch.randn(12, 3), "text": torch.randn(12, 2)}
        >>> data = CachedFeatures(features, torch.arange(12) % 2)
        >>> head = ConcatenationHead({"image": 3, "text": 2}, num_classes=2)
        >>> grid = robustness_grid(data.modalities, settings=("D",), rates=())
        >>> report = robustness_report(head, data, grid)
        >>> [path.name for path in plot_report(report, tempfile.mkdtemp())]
        ['coverage.png']
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    if report.area:
        figures["rate_curves"] = _rate_curves([report])
    figures["coverage"] = _coverage(report)
    scored = {name: q for name, q in report.quality.items() if len(q.corrupted)}
    if scored:
        figures["quality"] = _quality_histograms(scored)
    if report.recovered:
        figures[f"recovered_{embedding}"] = _recovered_features(report, embedding)
    written = []
    for name, figure in figures.items():
        for ending in formats:
            written.append(folder / f"{name}.{ending.lstrip('.')}")
            figure.savefig(written[-1])
    return written


def plot_rate_curves(reports: Sequence[RobustnessReport], path: str | Path) -> Path:
    """Accuracy against the disruption rate of several models, as the paper's Figure 5.

    Args:
        reports: of the same samples.
        path: the file to write; its ending says the format.

    Returns:
        the path.

    Raises:
        ValueError: if there is no report, one has no rate curve, or the samples differ.
        ImportError: without matplotlib; `pip install "robustfusion[report]"`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> from robustfusion.disruption import robustness_grid
        >>> from robustfusion.evaluation import CachedFeatures, plot_rate_curves, robustness_report
        >>> features = {"image": torch.randn(12, 3), "text": torch.randn(12, 2)}
        >>> data = CachedFeatures(features, torch.arange(12) % 2)
        >>> head = ConcatenationHead({"image": 3, "text": 2}, num_classes=2)
        >>> grid = robustness_grid(data.modalities, settings=("D",))
        >>> report = robustness_report(head, data, grid).with_intervals(replicates=50)
        >>> plot_rate_curves([report], Path(tempfile.mkdtemp()) / "rates.svg").name
        'rates.svg'

    Reference:
        Figure 5 of https://arxiv.org/abs/2511.18751.
    """
    if not reports or not all(report.area for report in reports):
        raise ValueError("reports must be one or more, each with modality-random conditions")
    if len({report.fingerprint.samples for report in reports}) > 1:
        raise ValueError("reports must be of the same samples")
    figure = _rate_curves(reports)
    figure.savefig(path)
    return Path(path)


def _rate_curves(reports: Sequence[RobustnessReport]) -> Any:
    settings = list(reports[0].area)
    figure, panels = _figure(len(settings), 3.6, 3.2)
    titles = {"C": "corrupted (C)", "D": "discarded (D)", "C+D": "either (C+D)", "P": "part (P)"}
    majority = reports[0].majority.accuracy
    for panel, setting in zip(panels, settings, strict=True):
        for index, report in enumerate(reports):
            conditions = [cell.condition for cell in report.measured]
            points = rate_curve(conditions, setting)
            rates = [rate for rate, _ in points]
            scores = np.asarray([report[key].accuracy for _, key in points]) * 100
            color = _COLORS[index % len(_COLORS)]
            style = _STYLES[index // len(_COLORS) % len(_STYLES)]
            panel.plot(
                rates,
                scores[:, 0],
                style,
                marker="o",
                markersize=4,
                color=color,
                label=f"{report.name}",
            )
            panel.fill_between(rates, scores[:, 1], scores[:, 2], color=color, alpha=0.12, lw=0)
        panel.axhline(100 * majority, color=_GREY, linestyle=":", linewidth=1.2, label="majority")
        panel.set_title(titles[setting], fontsize=10)
        panel.set_xlabel("disruption rate")
        panel.set_xticks(rates)
    low = min(panel.get_ylim()[0] for panel in panels)
    high = max(panel.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.set_ylim(low, high)
        panel.set_xlim(-0.03, max(rates) + 0.03)
    made = reports[0].intervals
    level = f", {100 * made.level:g} % interval" if made.replicates else ""
    panels[0].set_ylabel(f"accuracy (%){level}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False
    )
    return figure


def _coverage(report: RobustnessReport) -> Any:
    """Accuracy among the most confident samples: a panel for each disrupted modality."""
    clean = report["clean"]
    fixed = {
        name: [c for c in report.cells.values() if c.condition.modality == name]
        for name in report.modalities
    }
    shown = {name: cells for name, cells in fixed.items() if cells} or {"clean": []}
    figure, panels = _figure(len(shown), 3.6, 3.2)
    for panel, (name, cells) in zip(panels, shown.items(), strict=True):
        for index, cell in enumerate([clean, *cells]):
            right = cell.predictions == report.labels
            coverage, risk = risk_coverage(right, cell.confidence)
            # Among a handful of samples accuracy says nothing.
            at = coverage >= 0.05
            label = f"{cell.condition.setting or 'clean'}"
            color = _COLORS[index % len(_COLORS)]
            panel.plot(100 * coverage[at], 100 * (1 - risk[at]), color=color, label=label)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("coverage: most confident samples (%)")
        panel.axhline(100 * report.majority.accuracy, color=_GREY, linestyle=":", linewidth=1.2)
    panels[0].set_ylabel("accuracy among them (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _quality_histograms(scored: dict[str, Quality]) -> Any:
    figure, panels = _figure(len(scored), 3.8, 3.2)
    for panel, (name, quality) in zip(panels, scored.items(), strict=True):
        clean = _finite(quality.clean)
        corrupted = _finite(quality.corrupted)
        both = np.concatenate([clean, corrupted])
        if len(both):
            # A few very low values would press everything else into one bar.
            low, high = np.quantile(both, 0.01), both.max()
            edges = np.linspace(low, high, 31) if high > low else np.linspace(low - 1, low + 1, 31)
            for values, color, label in (
                (clean, _COLORS[0], "clean"),
                (corrupted, _COLORS[1], "corrupted"),
            ):
                if not len(values):
                    continue
                shown = np.clip(values, edges[0], edges[-1])
                heights, _ = np.histogram(shown, edges)
                panel.stairs(100 * heights / len(values), edges, fill=True, color=color, alpha=0.3)
                panel.stairs(
                    100 * heights / len(values), edges, color=color, linewidth=1.4, label=label
                )
        auroc = quality.auroc.value
        suffix = "" if np.isnan(auroc) else f", AUROC {auroc:.3f}"
        panel.set_title(f"{name}{suffix}", fontsize=10)
        panel.set_xlabel("log-quality (the lowest 1 % in the first bar)")
    panels[0].set_ylabel("samples (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[np.isfinite(values)]


def _recovered_features(report: RobustnessReport, embedding: Embedding) -> Any:
    figure, panels = _figure(
        len(report.recovered), 3.8, 3.6, columns=2 if len(report.recovered) < 5 else 3
    )
    for panel, ((target, source), points) in zip(panels, report.recovered.items(), strict=True):
        real, made = _embedded(points, embedding)
        for values, color, marker, label in (
            (real, _COLORS[0], "o", "real"),
            (made, _COLORS[1], "^", "recovered"),
        ):
            panel.scatter(
                *values.T, s=12, color=color, marker=marker, alpha=0.6, linewidths=0, label=label
            )
        panel.set_title(f"{target} from {source}", fontsize=10)
        if embedding == "pca":
            shares = (*(100 * points.explained).tolist(), 0.0)
            panel.set_xlabel(f"axis 1 ({shares[0]:.0f} % of the variance)")
            panel.set_ylabel(f"axis 2 ({shares[1]:.0f} %)")
        else:
            panel.set_xlabel("t-SNE axis 1")
            panel.set_ylabel("t-SNE axis 2")
        panel.set_xticks([])
        panel.set_yticks([])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _embedded(
    points: Recovered, embedding: Embedding
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two coordinates of the real and of the recovered features."""
    joint = np.concatenate([points.true, points.recovered])
    if embedding == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError as error:
            raise ImportError(
                'embedding="tsne" needs scikit-learn: pip install "robustfusion[report]"'
            ) from error
        perplexity = min(30.0, (len(joint) - 1) / 3)
        flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(joint)
    else:
        flat = joint[:, :2]
        if flat.shape[1] < 2:
            flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    return flat[: len(points.true)], flat[len(points.true) :]
