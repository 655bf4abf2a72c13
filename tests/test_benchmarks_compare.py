"""The comparison on a tiny made-up data set, and its statistics against slow oracles."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
        if not name.startswith(("torch", "numpy", "robustfusion", "scipy", "sklearn")):
            sys.modules.pop(name, None)


@pytest.fixture
def task(compare: ModuleType, tmp_path: Path) -> Any:
    """Posts of two classes that either modality tells apart."""
    rng = np.random.default_rng(0)
    count = 60
    label = rng.integers(0, 3, count)
    centres = {"image": rng.normal(size=(3, 6)), "text": rng.normal(size=(3, 4))}
    arrays: dict[str, Any] = {
        "id": np.arange(count),
        "label": label,
        "split": np.array(["train"] * 36 + ["val"] * 12 + ["test"] * 12),
    }
    for name, centre in centres.items():
        clean = 3 * centre[label] + rng.normal(size=(count, centre.shape[1]))
        arrays[f"{name}_clean"] = clean.astype(np.float16)
        arrays[f"{name}_corrupt"] = rng.normal(size=(2, *clean.shape)).astype(np.float16)
    np.savez(tmp_path / "features.npz", **arrays)
    path = tmp_path / "features.npz"
    return compare.Task("made", "made up", path, (3, 2), 1e-2, 12, 0.5)


def test_every_head_makes_a_row(compare: ModuleType, task: Any) -> None:
    for name in task.rows():
        known, held_out, conditions = compare._evaluation(task, 0)
        setting = compare.Setting(1, 1e-3, 0.0)
        head = compare.fit(name, known, setting, task, 0, disrupted=True)
        for inputs in conditions.values():
            assert compare.predict(head, inputs).shape == (len(held_out),), name


def test_a_row_is_counted_right(compare: ModuleType, task: Any) -> None:
    row = compare.run_row("Concatenation", task, [0, 1], 2, False)
    assert len(row["trials"]) == 2
    assert len(row["accuracy"]) == 7
    right = sum(ord(c) - 48 for c in row["hits"])
    total = sum(sum(values) for values in row["accuracy"].values()) * len(row["hits"])
    assert right == pytest.approx(total, abs=0.1)
    clean = sum(ord(c) - 48 for c in row["clean_hits"])
    assert clean == pytest.approx(sum(row["accuracy"]["clean"]) * 12, abs=0.1)
    assert np.mean(row["score"]) > 0.5
    assert row == compare.run_row("Concatenation", task, [0, 1], 2, False) | {
        key: row[key] for key in ("microseconds", "inference_ratio", "training_ratio")
    }


def test_trials_are_the_same_for_all_heads(compare: ModuleType, task: Any) -> None:
    names = task.rows()
    for trials in zip(*(compare.settings(name, task, 4) for name in names), strict=True):
        assert len({(t.epochs, t.lr, t.weight_decay) for t in trials}) == 1


def test_qmf_is_given_the_rows_of_its_batch(compare: ModuleType, task: Any) -> None:
    known, _, _ = compare._evaluation(task, 0)
    head = compare.fit("QMF", known, compare.Setting(2, 1e-3, 0.0), task, 3, disrupted=True)
    qmf = head.head.head
    counts = [b for b in qmf.buffers() if b.shape[:1] == (len(known),)]
    assert counts
    assert any(bool((b > 0).any()) for b in counts)
    wrong = compare.RowOrder(qmf, known, task.batch_size, 4).train()
    rows = torch.arange(task.batch_size)
    with pytest.raises(RuntimeError, match="does not hold the rows"):
        wrong({name: values[rows] for name, values in known.features.items()})


def test_paired_p_values_match_enumeration(compare: ModuleType) -> None:
    first, second = np.array([3, 2, 3, 1, 3, 2, 3, 3]), np.array([1, 2, 0, 2, 1, 1, 2, 0])

    def row(counts: Any) -> dict[str, str]:
        return {"hits": "".join(chr(48 + c) for c in counts)}

    difference = first - second
    flips = np.array(list(itertools.product([-1, 1], repeat=8))) @ difference
    exact = float(np.mean(np.abs(flips) >= abs(difference.sum())))
    found = compare.paired_p_values({"a": row(first), "b": row(second)})
    assert found == {"b": pytest.approx(exact, abs=0.01)}


def test_macro_f1(compare: ModuleType) -> None:
    classes, labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    # Class 0: 1 of 2 and 2; class 1: 1 of 1 and 2; class 2 has no sample.
    assert compare.macro_f1(classes, labels) == pytest.approx((2 / 4 + 2 / 3) / 2, abs=1e-4)


def test_noise_hits_half_of_the_views(compare: ModuleType) -> None:
    features = {name: torch.zeros(5, 3) for name in "abcdef"}
    split = compare.Split(features, torch.zeros(5, dtype=torch.long), tuple(range(5)))
    noisy = compare.noisy_views(split, 0)
    hit = torch.stack([values.any(1) for values in noisy.values()], dim=1)
    assert hit.sum(1).tolist() == [3] * 5


def test_the_page(compare: ModuleType, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = importlib.import_module("_record")
    page = importlib.import_module("_render_compare")
    results = task.source.parent / "results"
    for module in (record, page, compare):
        monkeypatch.setattr(module, "RESULTS", results)
    names = ("Concatenation", "Majority class", "HSAN")
    rows = {name: compare.run_row(name, task, [0], 1, False) for name in names}
    mvsa = replace(task, name="mvsa")
    compare.finish(mvsa, "clean", rows, [0])
    text = page.render()
    ranked = sorted(rows, key=lambda name: -rows[name]["score"][0])
    places = [text.index(f"| {name} |") for name in ranked]
    assert places == sorted(places)
    assert f"| HSAN | 69.9 | {100 * rows['HSAN']['accuracy']['clean'][0]:.1f} |" in text
    assert "| best |" in text


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


def test_heads_of_ones_own_are_tuned_like_all(compare: ModuleType, task: Any, own: str) -> None:
    task = replace(task, models=(f"{own}:Mine", f"{own}:several"))
    assert task.rows()[:3] == ["Mine", "first", "second"]
    trials = compare.settings("Mine", task, 6)
    assert {key for trial in trials for key in trial.head} == {"hidden_features"}
    assert all(trial.head == {} for trial in compare.settings("first", task, 6))
    for name, width in (("Mine", trials[1].head["hidden_features"]), ("second", 8)):
        known, _, conditions = compare._evaluation(task, 0)
        setting = trials[1] if name == "Mine" else compare.settings(name, task, 2)[1]
        head = compare.fit(name, known, setting, task, 0, disrupted=False)
        assert head.head.hidden.out_features == width
        assert compare.predict(head, conditions["clean"]).shape == (12,)


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
    data = importlib.import_module("_data")
    arrays: dict[str, Any] = {
        "id": np.array([f"sample-{i}" for i in range(50)]),
        "label": np.arange(50) % 3,
        "split": np.array(["train"] * 40 + ["val"] * 10),
        "audio_clean": np.random.default_rng(0).normal(size=(50, 4)),
        "lidar_clean": np.random.default_rng(1).normal(size=(50, 5)),
        "lidar_corrupt": np.zeros((2, 50, 5)),
    }
    np.savez(tmp_path / "sensors.npz", **arrays)
    splits = data.load_features(tmp_path / "sensors.npz")
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 32,
        "val": 8,
        "test": 10,
    }
    assert splits["test"].ids == tuple(range(40, 50))
    assert splits["train"].dims == {"audio": 4, "lidar": 5}
    assert splits["val"].corrupted["lidar"].shape == (2, 8, 5)
    task = compare.Task("sensors", "made up", tmp_path / "sensors.npz", (1,), 1e-2, 8, 0.5)
    names = list(task.conditions(splits["test"], 0))
    assert names == ["clean", "audio D", "lidar C", "lidar D", "lidar C+D"]
    np.savez(tmp_path / "bare.npz", id=arrays["id"], label=arrays["label"])
    with pytest.raises(ValueError, match="has no split"):
        data.load_features(tmp_path / "bare.npz")


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
    words = ["compare.py", "--features", str(task.source), "--model", f"{own}:Mine"]
    words += ["--heads", "Concatenation", "Majority class", "--output-dir", str(folder)]
    words += ["--seeds", "1", "--trials", "1", "--families", "clean"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(compare, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    compare.main()
    name = f"compare_{tmp_path.name}_clean"
    table = (folder / f"{name}.md").read_text()
    assert all(f"| {row} |" in table for row in ("Mine", "Concatenation", "Majority class"))
    assert "best" in table
    assert (folder / f"{name}.png").stat().st_size > 5000
    assert f"{name}.md" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--heads", "Conatenation"])
    with pytest.raises(SystemExit):
        compare.main()
    assert "no row 'Conatenation'" in capsys.readouterr().err
