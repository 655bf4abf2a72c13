"""Reports of models that predict several labels, or numbers."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reports import FakeHead, make_data, measure
from torch import Tensor, nn

from robustfusion.disruption import CachedFeatures
from robustfusion.evaluation import RobustnessReport, compare, damage_report, plot_report

oracle: Any = pytest.importorskip("sklearn.metrics")

N = 80


class Mean(nn.Module):
    """The mean of what is available, as logits or numbers, with an interval of ±1."""

    def __init__(self, task: str, scale: float = 1.0) -> None:
        super().__init__()
        self.task, self.scale = task, scale

    def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
        mask = torch.stack(list(available.values()), 1).float()
        total = torch.einsum("bm,mbc->bc", mask, torch.stack(list(features.values())).nan_to_num())
        logits = self.scale * total / mask.sum(1, keepdim=True).clamp_min(1)
        return SimpleNamespace(logits=logits)

    def predict(self, output: Any) -> Tensor:
        logits: Tensor = output.logits
        if self.task == "multiclass":
            return logits.argmax(1)
        return logits > 0.1 if self.task == "multilabel" else logits

    def interval(self, output: Any) -> tuple[Tensor, Tensor]:
        return output.logits - 1, output.logits + 1


def data_of(task: str) -> CachedFeatures:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(N, 2, generator=generator)
    noise = torch.randn(2, N, 2, generator=generator)
    targets = truth if task == "regression" else (truth > 0.3).float()
    targets = targets.clone()
    targets[:5, 0] = torch.nan
    features = {"image": truth + noise[0], "text": truth + noise[1]}
    return CachedFeatures(
        features,
        targets,
        corrupted={m: 3 * torch.randn(N, 2, generator=generator) for m in features},
        class_names=("calm", "funny"),
    )


def report_of(task: str, scale: float = 1.0) -> RobustnessReport:
    return measure(Mean(task, scale), data_of(task), seeds=(0, 1), rates=(0.5, 1.0), replicates=50)


def test_labels(tmp_path: Path) -> None:
    data, report = data_of("multilabel"), report_of("multilabel")
    logits = (data.features["image"] + data.features["text"]) / 2
    known = ~data.labels.isnan().any(1)
    truth, guess = data.labels[known].numpy(), (logits[known] > 0.1).numpy()
    whole = report["clean"].metrics
    # The rows of which one label is not known count with the other.
    every = [
        (data.labels[:, c].isfinite(), (logits[:, c] > 0.1), data.labels[:, c]) for c in range(2)
    ]
    f1 = [oracle.f1_score(y[k], g[k]) for k, g, y in every]
    assert whole["macro_f1"].value == pytest.approx(np.mean(f1))
    assert whole["macro_f1"].low < whole["macro_f1"].value < whole["macro_f1"].high
    assert whole["micro_f1"].value == pytest.approx(
        oracle.f1_score(truth, guess, average="micro"), abs=0.05
    )
    assert (
        report["fixed/image/C"].metrics["mean_average_precision"] < whole["mean_average_precision"]
    )
    assert report["fixed/image/C"].drop.value > 0
    assert report.baseline["accuracy"] > 0.5
    assert "mean average precision" in report.to_markdown()
    assert "Constant line, always predicting the share" in report.to_markdown()
    assert not report.warnings
    report.save(tmp_path / "report")
    loaded = RobustnessReport.load(tmp_path / "report")
    assert loaded.task == "multilabel"
    assert loaded.to_csv() == report.to_csv()


def test_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, report = data_of("regression"), report_of("regression")
    guess = (data.features["image"] + data.features["text"]) / 2
    errors = (guess - data.labels).abs()
    clean = report["clean"].metrics
    assert clean["mae"].value == pytest.approx(float(errors.nanmean(0).mean()), rel=1e-5)
    covered = [float((e[e.isfinite()] <= 1).float().mean()) for e in errors.T]
    assert clean["coverage"].value == pytest.approx(np.mean(covered))
    assert clean["r2"].value > report["fixed/text/C"].metrics["r2"].value
    assert report["fixed/text/C"].drop.value > 0
    assert report.baseline["r2"] == pytest.approx(0, abs=1e-6)
    assert report.corruption_premium["text"].value > 0  # corrupted is worse than missing
    text = report.to_markdown()
    assert "R² against the disruption rate" in text
    assert "mean absolute error" in text
    figures = [path.name for path in plot_report(report, tmp_path)]
    assert figures == ["rate_curves.png"]
    assert np.isnan(report["clean"].accuracy.value)
    report.save(tmp_path / "report")
    assert RobustnessReport.load(tmp_path / "report").to_csv() == report.to_csv()
    with pytest.raises(ValueError, match="no majority class: see baseline"):
        _ = report.majority


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_paired_tests(task: str) -> None:
    ours, theirs = report_of(task), report_of(task, -1.0).named("reversed")
    comparison = compare(ours, theirs, replicates=100)
    cell = comparison.cells["clean"]
    assert cell.difference.value > 0
    assert cell.difference.low > 0
    assert cell.holm_p < 0.01
    assert np.isnan(cell.mcnemar_p)
    assert cell.discordant == ()
    text = comparison.to_markdown()
    assert "McNemar" not in text
    assert ("Share of right labels" if task == "multilabel" else "Minus the mean") in text
    other = report_of("multilabel" if task == "regression" else "regression")
    with pytest.raises(ValueError, match="have the tasks"):
        compare(ours, other)


def test_a_metric_of_your_own_and_the_auroc_of_classes() -> None:
    data = make_data()
    report = measure(FakeHead(), data, seeds=(0, 1), replicates=20)
    measured = report.measure(lambda y, guess: float((y == guess).mean()))
    assert measured["clean"].value == pytest.approx(report["clean"].accuracy.value)
    assert measured["clean"].low <= measured["clean"].value <= measured["clean"].high
    answers = report.answers["fixed/image/C"]
    assert answers.probabilities is not None
    each = [
        oracle.roc_auc_score(report.labels == c, p[:, c])
        for p in answers.probabilities
        for c in range(3)
    ]
    assert report["fixed/image/C"].metrics["auroc"].value == pytest.approx(np.mean(each))
    numbers = report_of("regression").measure(lambda y, guess: float(np.nanmax(abs(y - guess))))
    assert numbers["fixed/text/C"].value > numbers["clean"].value


def test_targets_of_another_task_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be classes"):
        measure(Mean("multiclass"), data_of("regression"))
    wide = data_of("regression")
    wide.labels = torch.zeros(N, 3)
    with pytest.raises(ValueError, match=r"labels must have shape \(80, 2\)"):
        measure(Mean("regression"), wide)


def test_numbers_that_are_not_finite_are_named() -> None:
    report = report_of("regression", float("inf"))
    assert any("not finite" in warning for warning in report.warnings)
    assert np.isnan(report["clean"].metrics["mae"].value)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_damage(task: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kinds = {"image": ("noise", "swapped")}
    models = {"mean": Mean(task), "reversed": Mean(task, -1.0)}
    report = damage_report(models, data_of(task), kinds, severities=(0.5, 1.0), seeds=(0, 1))
    intact, noisy = report["mean", "image", "intact", 0.0], report["mean", "image", "noise", 1.0]
    main = {"multilabel": "mean_average_precision", "regression": "r2"}[task]
    expected = report_of(task)["clean"].metrics
    for name, value in intact.metrics.items():
        assert value == pytest.approx(expected[name].value, rel=1e-5), name
    assert intact.metrics[main] > max(noisy.metrics[main], report.baseline[main])
    assert report["reversed", "image", "intact", 0.0].metrics[main] < report.baseline[main]
    text = report.to_markdown()
    assert {"multilabel": "## Micro-F1, image", "regression": "## R², image"}[task] in text
    assert ("## Accuracy" in text) == (task == "multilabel")
    assert f",{main}" in report.to_csv().splitlines()[0]
    assert report.to_dict()["baseline"].keys() == report.baseline.keys()
    assert report.plot(tmp_path / "figure.png", metric=main).exists()
    assert report.predictions["mean", "image", "noise", 0.5].shape == (2, N, 2)
    measured = report.measure(lambda y, guess: float(np.nanmean(abs(y - guess))))
    assert measured["mean", "image", "noise", 1.0] > measured["mean", "image", "intact", 0.0]
    with pytest.raises(ValueError, match="models of one task"):
        damage_report({"a": Mean("multilabel"), "b": Mean("regression")}, data_of(task), kinds)
