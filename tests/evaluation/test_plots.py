"""Figures of a report."""

from pathlib import Path

import pytest
from reports import (
    FakeHead,
    make_data,
    measure,
)

from robustfusion.evaluation import (
    RobustnessReport,
    plot_rate_curves,
    plot_report,
)


def test_plots_are_written(report: RobustnessReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = plot_report(report, tmp_path / "new" / "folder", formats=("png", "svg"))
    assert sorted(path.name for path in written) == sorted(
        f"{stem}.{ending}"
        for stem in ("rate_curves", "coverage", "quality", "recovered_pca")
        for ending in ("png", "svg")
    )
    assert all(path.stat().st_size > 5000 for path in written)
    other = measure(FakeHead(seed=9), make_data(), seeds=(0,), replicates=10)
    path = plot_rate_curves([report, other], tmp_path / "both.png")
    assert path.stat().st_size > 5000
    far = measure(FakeHead(), make_data(60), seeds=(0,), replicates=0)
    with pytest.raises(ValueError, match="same samples"):
        plot_rate_curves([report, far], tmp_path / "never.png")


def test_tsne(report: RobustnessReport, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    written = plot_report(report, tmp_path, embedding="tsne")
    assert "recovered_tsne.png" in [path.name for path in written]
