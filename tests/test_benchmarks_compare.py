"""The comparison on a tiny made-up data set."""

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("compare")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            sys.modules.pop(name)


@pytest.fixture
def search(compare: ModuleType) -> ModuleType:
    return importlib.import_module("_search")


def training(*arguments: Any) -> Any:
    return importlib.import_module("_train").Training(*arguments)


@pytest.fixture
def task(compare: ModuleType, tmp_path: Path) -> Any:
    """Posts of three classes that either modality separates."""
    rng = np.random.default_rng(0)
    count = 72
    label = rng.integers(0, 3, count)
    centers = {"image": rng.normal(size=(3, 6)), "text": rng.normal(size=(3, 4))}
    arrays: dict[str, Any] = {
        "label": label,
        "split": np.array(["train"] * 36 + ["val"] * 24 + ["test"] * 12),
    }
    for name, center in centers.items():
        clean = 3 * center[label] + rng.normal(size=(count, center.shape[1]))
        arrays[f"{name}_clean"] = clean.astype(np.float16)
        arrays[f"{name}_corrupt"] = rng.normal(size=(2, *clean.shape)).astype(np.float16)
    np.savez(tmp_path / "features.npz", **arrays)
    pool = compare.load_own(tmp_path / "features.npz", training(2, 1e-2, 0.01, 12))
    return compare.Task("made", "made up", pool)


def test_every_head_makes_a_row(compare: ModuleType, search: ModuleType, task: Any) -> None:
    folds = importlib.import_module("_cross_validation")
    inside, outside, _ = folds.fold_data(task.pool, 3, 0, 0)
    cells = [*folds.cells_of(outside), *folds.protocol_of(outside)]
    for name in task.rows():
        setting = search.settings(name, task, 1)[0]
        make = partial(search.make_head, name, task, setting, inside, 0)
        head = folds.train(make, inside, setting.training, 0)
        for cell, found in folds.predict(head, outside, cells).items():
            assert found.shape == (20, 3), (name, cell)
            assert np.isfinite(found).all(), (name, cell)


def test_a_row_is_what_its_trials_say(
    compare: ModuleType, search: ModuleType, task: Any, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    row = search.run_row("Concatenation", task, 2, 3, [0, 1], kept)
    assert len(list(kept.rglob("*.npz"))) == 2 * 3 * 2
    again = search.run_row("Concatenation", task, 2, 3, [0, 1], kept)
    assert row["picked"] == again["picked"]
    labels = task.pool.split.labels.numpy()
    right = (row["log_prob"]["clean"].argmax(-1) == labels).mean()
    made = compare.ranked({"Concatenation": row}, task.pool)["Concatenation"]
    assert made["accuracy"]["clean"] == pytest.approx(100 * right, abs=0.01)
    assert made["accuracy"]["mean"] == pytest.approx(
        np.mean([made["accuracy"][part] for part in ("clean", "missing", "corrupted")]), abs=0.02
    )
    assert made["p_value"] is None
    assert made["accuracy"]["clean"] > 60


def test_a_fold_has_no_say_in_its_own_setting(
    compare: ModuleType, search: ModuleType, task: Any
) -> None:
    folds = importlib.import_module("_cross_validation")
    labels = task.pool.split.labels
    where = folds.fold_of(task.pool, 3, 0)
    right = torch.nn.functional.one_hot(labels, 3).float()[None].numpy()
    wrong = np.roll(right, 1, axis=-1)
    here = (where == 0)[None, :, None]
    # The first trial is right in fold 0 alone, the second everywhere else.
    trials = [
        dict.fromkeys(folds.cells_of(task.pool.split), np.where(here, *pair))
        for pair in ((right, wrong), (wrong, right))
    ]
    found, picked = search.choose(trials, task.pool, 3, [0])
    assert picked[0, 0] == 1
    assert (found["clean"][0, where == 0].argmax(-1) != labels.numpy()[where == 0]).all()


def test_test_samples_are_left_out(task: Any) -> None:
    assert len(task.pool.split) == 60


def test_trials_are_the_same_for_all_heads(
    compare: ModuleType, search: ModuleType, task: Any
) -> None:
    names = task.rows()
    for trials in zip(*(search.settings(name, task, 4) for name in names), strict=True):
        assert len({trial.training for trial in trials}) == 1


def test_qmf_is_given_the_rows_of_its_batch(
    compare: ModuleType, search: ModuleType, task: Any
) -> None:
    folds = importlib.import_module("_cross_validation")
    split, training = task.pool.split, task.pool.training
    make = partial(search.make_head, "QMF", task, search.Setting(training), split, 3)
    head = folds.train(make, split, training, 3)
    counts = [b for b in head.head.buffers() if b.shape[:1] == (len(split),)]
    assert counts
    assert any(bool((b > 0).any()) for b in counts)
    wrong = search.RowOrder(head.head, split, 12, 4).train()
    with pytest.raises(RuntimeError, match="does not hold the rows"):
        wrong({name: values[:12] for name, values in split.features.items()})


def test_rows_are_ranked_and_tested_against_the_best(compare: ModuleType, task: Any) -> None:
    labels = task.pool.split.labels.numpy()
    right = np.eye(3)[labels][None]
    half = right.copy()
    half[:, ::2] = np.roll(half[:, ::2], 1, axis=-1)
    rows = {name: {"log_prob": {"clean": values}} for name, values in (("b", half), ("a", right))}
    made = compare.ranked(rows | {"c": rows["a"]}, task.pool)
    assert list(made) == ["a", "c", "b"]
    assert [row["p_value"] for row in made.values()][:2] == [None, 1.0]
    assert made["b"]["difference"] == -50.0
    assert made["b"]["error"] == pytest.approx(50 / np.sqrt(60), abs=0.01)
    assert made["b"]["p_value"] < 0.001


def test_the_pages(
    compare: ModuleType,
    search: ModuleType,
    task: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = importlib.import_module("_render_compare")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    names = ("Concatenation", "Majority class", "HSAN")
    rows = {name: search.run_row(name, task, 1, 3, [0], tmp_path) for name in names}
    compare.finish(replace(task, name="mvsa"), rows, 1, 3, [0], tmp_path)
    text = "\n".join(page.comparison()["mvsa"])
    ranking = compare.ranked(rows, task.pool)
    order = [text.index(f"| {name} |") for name in ranking]
    assert order == sorted(order)
    assert f"| HSAN | 69.9 | {ranking['HSAN']['accuracy']['clean']:.1f} |" in text
    assert "| best |" in text
    text = "\n".join(page.protocol()["mvsa"])
    assert f"| HSAN | {ranking['HSAN']['accuracy']['clean']:.1f} |" in text
    assert "| all corrupted |" in text
    assert "conflict |" not in text


def test_every_page_is_what_its_records_make(compare: ModuleType) -> None:
    render = importlib.import_module("render")
    pages = render.pages()
    assert len(pages) == len(render.PAGES) >= 12
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, path.name
        for picture in re.findall(r"!\[[^]]*\]\((\S+\.png)\)", text):
            assert (path.parent / picture).is_file(), picture


def test_a_page_without_a_table_s_comments_is_refused(compare: ModuleType) -> None:
    filled = importlib.import_module("_pages").filled
    text = filled("a\n<!-- x -->\nold\n<!-- /x -->\nb", {"x": ["new"]})
    assert text == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb"
    for page in ("a", "<!-- x -->", "<!-- x --><!-- /x --><!-- x -->"):
        with pytest.raises(ValueError, match="must hold <!-- x -->"):
            filled(page, {"x": ["new"]})


# ----------------------------------------------------------------------------- what users bring

OWN = """
import torch
from torch import nn
from robustfusion import HeadOutput


class Mine(nn.Module):
    def __init__(self, dims, num_classes, *, hidden_features=8):
        super().__init__()
        self.dims = dims
        self.hidden = nn.Linear(sum(dims.values()), hidden_features)
        self.classifier = nn.Linear(hidden_features, num_classes)

    def forward(self, features, available=None):
        shown = [
            x if available is None else torch.where(available[m][:, None], x, 0)
            for m, x in features.items()
        ]
        fused = torch.relu(self.hidden(torch.cat(shown, 1)))
        return HeadOutput(self.classifier(fused), fused, fused.new_zeros(()))

    def loss(self, output, labels):
        return nn.functional.cross_entropy(output.logits, labels)


def several(dims, num_classes):
    return {name: Mine(dims, num_classes) for name in ("first", "second")}
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def test_heads_of_ones_own_are_tuned_like_all(
    compare: ModuleType, search: ModuleType, task: Any, own: str
) -> None:
    task = replace(task, models=(f"{own}:Mine", f"{own}:several"))
    assert task.rows()[:3] == ["Mine", "first", "second"]
    trials = search.settings("Mine", task, 6)
    assert {key for trial in trials for key in trial.head} == {"hidden_features"}
    assert all(trial.head == {} for trial in search.settings("first", task, 6))
    for name, width in (("Mine", trials[1].head["hidden_features"]), ("second", 8)):
        setting = search.settings(name, task, 2)[1]
        head = search.make_head(name, task, setting, task.pool.split, 0)
        assert head.hidden.out_features == width


@pytest.mark.parametrize(
    ("model", "message"),
    [("own.py:None", "no None"), ("nowhere.py:Mine", "FILE:NAME"), ("Mine", "FILE:NAME")],
)
def test_a_model_that_is_not_there(
    compare: ModuleType, task: Any, own: str, model: str, message: str
) -> None:
    model = model.replace("own.py", own)
    with pytest.raises(ValueError, match=message):
        replace(task, models=(model,)).rows()


def test_two_rows_of_one_name(compare: ModuleType, task: Any, own: str) -> None:
    with pytest.raises(ValueError, match="another row named 'Mine'"):
        replace(task, models=(f"{own}:Mine", f"{own}:Mine")).rows()


def test_a_features_file_of_any_modalities(compare: ModuleType, tmp_path: Path) -> None:
    folds = importlib.import_module("_cross_validation")
    arrays: dict[str, Any] = {
        "label": np.arange(50) % 3,
        "split": np.array(["train"] * 40 + ["val"] * 10),
        "group": np.repeat([f"user-{i}" for i in range(25)], 2),
        "audio_clean": np.random.default_rng(0).normal(size=(50, 4)),
        "lidar_clean": np.random.default_rng(1).normal(size=(50, 5)),
        "lidar_corrupt": np.zeros((2, 50, 5)),
    }
    np.savez(tmp_path / "sensors.npz", **arrays)
    pool = compare.load_own(tmp_path / "sensors.npz", training())
    assert len(pool.split) == 50
    assert pool.split.dims == {"audio": 4, "lidar": 5}
    assert folds.cells_of(pool.split) == ["clean", "audio D", "lidar D", "lidar C"]
    assert "all corrupted" not in folds.protocol_of(pool.split)
    where = folds.fold_of(pool, 3, 0)
    assert (where[::2] == where[1::2]).all()
    np.savez(tmp_path / "bare.npz", label=arrays["label"])
    with pytest.raises(ValueError, match="has no split"):
        compare.load_own(tmp_path / "bare.npz", training())


def test_one_command_writes_record_table_and_figure(
    compare: ModuleType,
    task: Any,
    own: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "out"
    source = str(tmp_path / "features.npz")
    words = ["compare.py", "--features", source, "--model", f"{own}:Mine"]
    words += ["--heads", "Concatenation", "Majority class", "--output-dir", str(folder)]
    words += ["--trials", "1", "--folds", "2", "--cache", str(tmp_path / "kept")]
    monkeypatch.setattr(sys, "argv", words)
    compare.main()
    name = f"compare_{tmp_path.name}"
    table = (folder / f"{name}.md").read_text()
    assert all(f"| {row} |" in table for row in ("Mine", "Concatenation", "Majority class"))
    assert "best" in table
    assert (folder / f"{name}.png").stat().st_size > 5000
    assert f"{name}.md" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--heads", "Conatenation"])
    with pytest.raises(SystemExit):
        compare.main()
    assert "no row 'Conatenation'" in capsys.readouterr().err
