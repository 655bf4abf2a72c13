"""The report: scores and per-sample results of a model over the robustness grid."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustfusion.evaluation import _serialise, _tables, plots
from robustfusion.evaluation.compare import Comparison, compare_reports
from robustfusion.evaluation.results import (
    Cell,
    CellSamples,
    Context,
    Majority,
    Quality,
    QualitySamples,
    Recovered,
    Summary,
    summarise,
)
from robustfusion.evaluation.statistics import Estimate


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """How a model does over the grid of disruptions, with intervals and per-sample results.

    Made by `robustness_report`, or read back with `from_json`. A score is the mean over the
    disruption seeds; its interval comes from a bootstrap over the samples, with the same draws
    for every score and report of the same data.

    Args:
        context: what was measured, on what, and how.
        summary: the scores.
        recovered: true and recovered features by `(target, source)`, for the plot.

    Example:
        >>> import torch
        >>> from robustfusion.evaluation import CachedFeatures, robustness_report
        >>> class Sum(torch.nn.Module):
        ...     def forward(self, features, available):
        ...         kept = [torch.where(available[m][:, None], x, 0) for m, x in features.items()]
        ...         return SimpleNamespace(logits=kept[0] + kept[1])
        >>> from types import SimpleNamespace
        >>> labels = torch.arange(30) % 3
        >>> clean = torch.nn.functional.one_hot(labels, 3).float()
        >>> data = CachedFeatures(
        ...     {"image": clean, "text": 2 * clean}, labels, corrupted={"text": 3 - 2 * clean}
        ... )
        >>> report = robustness_report(Sum(), data, settings=("D",), rates=(0.5, 1.0))
        >>> report["fixed/text/D"].accuracy.value
        1.0
        >>> print(report.to_markdown().splitlines()[0])
        # Robustness of Sum

    Reference:
        Table 1 and Figure 5 of https://arxiv.org/abs/2511.18751.
    """

    context: Context
    summary: Summary
    recovered: Mapping[tuple[str, str], Recovered] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Cell:
        """The cell of a condition: "clean", "fixed/image/C", "random/0.4/C+D"."""
        try:
            return self.cells[key]
        except KeyError:
            raise KeyError(f"no condition {key!r}; there are {', '.join(self.cells)}") from None

    def __repr__(self) -> str:
        n, s = len(self.context.labels), len(self.context.seeds)
        return f"RobustnessReport({self.name!r}, samples={n}, seeds={s}, cells={len(self.cells)})"

    @property
    def name(self) -> str:
        """The model's name."""
        return self.context.name

    @property
    def cells(self) -> dict[str, Cell]:
        """The conditions by key, clean first."""
        return self.summary.cells

    @property
    def quality(self) -> dict[str, Quality]:
        """The quality scores by modality; empty for a model without them."""
        return self.summary.qualities

    @property
    def area(self) -> dict[str, Estimate]:
        """Area under the rate curve by setting: mean accuracy over the rates, clean at rate 0."""
        return self.summary.areas

    @property
    def corruption_premium(self) -> dict[str, Estimate]:
        """Accuracy discarded minus accuracy corrupted; above zero: corruption fools the model.

        By modality ("image"), and by rate ("random 0.4").
        """
        return self.summary.premiums

    @property
    def majority(self) -> Majority:
        """The line to beat: always answering with the most frequent class."""
        return self.summary.majority

    def compare(
        self,
        other: "RobustnessReport",
        *,
        same_inputs: bool = True,
        replicates: int = 2000,
        seed: int = 0,
    ) -> Comparison:
        """Paired tests of this model against another on the same disrupted samples.

        Args:
            other: the report of the other model.
            same_inputs: also demand that both models were given the same values; False compares
                models with features of their own of the same samples.
            replicates: bootstrap replicates over samples and seeds.
            seed: of the bootstrap.

        Returns:
            the comparison; differences are this model minus the other.

        Raises:
            ValueError: if the two were not measured on the same samples and disruptions.
        """
        return compare_reports(
            self.context,
            [c.samples for c in self.cells.values()],
            other.context,
            [c.samples for c in other.cells.values()],
            same_inputs=same_inputs,
            replicates=replicates,
            seed=seed,
        )

    def to_rows(self) -> list[dict[str, str | float]]:
        """The scores in long form: one dictionary for each condition and metric."""
        return _tables.long_rows(self.context, self.summary)

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows of `to_rows` as CSV, also written to `path` where given."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, _tables.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_rows())
        return _written(stream.getvalue(), path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The report for a reader, also written to `path` where given."""
        return _written(_tables.markdown(self.context, self.summary), path)

    def to_json(self, path: str | Path | None = None) -> str:
        """Scores for a reader and per-sample results for `from_json`, also written to `path`."""
        return _written(
            _serialise.dump(self.context, self.summary, self.recovered, self.to_rows()), path
        )

    @classmethod
    def from_json(cls, source: str | Path) -> "RobustnessReport":
        """The report that `to_json` wrote: a path, or the text itself.

        The scores are made anew from the per-sample results.

        Raises:
            ValueError: if it is not a report, or of a later format.
        """
        text = source
        if isinstance(source, Path) or not source.lstrip().startswith("{"):
            text = Path(source).read_text(encoding="utf-8")
        context, cells, qualities, recovered = _serialise.load(str(text))
        return build_report(context, cells, qualities, recovered)

    def plot(
        self,
        directory: str | Path,
        *,
        formats: Sequence[str] = ("png",),
        embedding: plots.Embedding = "pca",
    ) -> list[Path]:
        """Draw the rate curves, the quality histograms and the recovered features.

        Args:
            directory: where to write; made if it does not exist.
            formats: file endings that matplotlib knows: "png", "svg", "pdf".
            embedding: of the recovered features in the plane: "pca" or "tsne" (scikit-learn).

        Returns:
            the files written. A figure without data (no quality scores, nothing recovered) is
            left out.

        Raises:
            ImportError: without matplotlib, or scikit-learn for "tsne";
                `pip install "robustfusion[report]"`.
        """
        return plots.draw_report(self, Path(directory), tuple(formats), embedding)


def build_report(
    context: Context,
    cells: Sequence[CellSamples],
    qualities: Mapping[str, QualitySamples],
    recovered: Mapping[tuple[str, str], Recovered],
) -> RobustnessReport:
    """A report from per-sample results."""
    return RobustnessReport(context, summarise(context, cells, qualities), recovered)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
