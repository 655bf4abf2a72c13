"""The comparison on a tiny made-up data set."""

import importlib
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
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
    text = "\n".join(page.protocol()["further, mvsa"])
    assert f"| HSAN | {ranking['HSAN']['accuracy']['clean']:.1f} |" in text
    assert "| all corrupted |" in text
    assert "conflict |" not in text


def test_every_page_is_what_its_records_make(compare: ModuleType) -> None:
    render = importlib.import_module("render")
    pages = render.pages()
    assert len(pages) == len(render.PAGES) == 11
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, path.name
        for picture in re.findall(r"!\[[^]]*\]\((\S+\.png)\)", text):
            if "reference/" not in picture:  # else it is made when the site is built
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


# -------------------------------------------------------------- what may come from the cache


def file_of(folder: Path, **changes: Any) -> Path:
    """The features of a small data set, with some arrays replaced."""
    with np.load(folder / "features.npz") as file:
        arrays = {key: file[key].astype(np.float32) if "_" in key else file[key] for key in file}
    path = folder / "changed.npz"
    np.savez(path, **arrays | changes)
    return path


@pytest.fixture
def jobs(
    compare: ModuleType, search: ModuleType, task: Any, tmp_path: Path, capsys: Any
) -> Callable[..., int]:
    """How many of two jobs of one's own head are read from the cache."""
    folds = importlib.import_module("_cross_validation")

    def run(code: str = OWN, pool: Any = task.pool, **training: Any) -> int:
        (tmp_path / "own.py").write_text(code)
        importlib.import_module("_heads").own_makers.cache_clear()
        pool = replace(pool, training=replace(pool.training, **training))
        one = replace(task, pool=pool, models=(f"{tmp_path / 'own.py'}:Mine",))
        make = partial(search.make_head, "Mine", one, search.Setting(pool.training))
        capsys.readouterr()
        folds.run(pool, make, tmp_path / "kept", folds=2, seeds=[0], cells=["clean"])
        words = re.search(r"(\d) of 2 jobs from cache", capsys.readouterr().out)
        return int(words[1]) if words else 0

    assert run() == 0
    return run


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("import torch\n", "import torch\n# a comment\n\n"),
        ("class Mine(nn.Module):\n", 'class Mine(nn.Module):\n    """Words."""\n'),
    ],
)
def test_what_changes_no_prediction_comes_from_the_cache(
    jobs: Callable[..., int], old: str, new: str
) -> None:
    assert jobs(OWN.replace(old, new, 1)) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.classifier(fused)", "0 * self.classifier(fused)"),
        ("hidden_features=8", "hidden_features=9"),
        ("torch.relu", "torch.tanh"),
        ("cross_entropy(output.logits, labels)", "cross_entropy(2 * output.logits, labels)"),
    ],
)
def test_a_changed_head_is_trained_again(jobs: Callable[..., int], old: str, new: str) -> None:
    assert jobs(OWN.replace(old, new)) == 0
    assert jobs() == 2


def test_changed_features_are_trained_on_again(
    compare: ModuleType, jobs: Callable[..., int], task: Any, tmp_path: Path
) -> None:
    noise = np.random.default_rng(9).normal(size=(72, 6)).astype(np.float32)
    changed = compare.load_own(file_of(tmp_path, image_clean=noise), task.pool.training)
    assert jobs(pool=changed) == 0
    same = compare.load_own(file_of(tmp_path), task.pool.training)
    assert jobs(pool=same) == 2
    groups = compare.load_own(file_of(tmp_path, group=np.arange(72) // 6), task.pool.training)
    assert jobs(pool=groups) == 0, "other folds"


@pytest.mark.parametrize("training", [{"epochs": 3}, {"lr": 1e-3}, {"weight_decay": 0.1}])
def test_another_training_is_not_from_the_cache(
    jobs: Callable[..., int], training: dict[str, Any]
) -> None:
    assert jobs(**training) == 0


def test_tables_of_the_paper_are_cached_by_the_same_key(
    compare: ModuleType, task: Any, tmp_path: Path
) -> None:
    tables = importlib.import_module("paper_tables")
    split = replace(task.pool.split, class_names=("a", "b", "c"))
    splits = {"train": split, "test": split.rows(torch.arange(20))}
    noisy = {"train": replace(split, labels=split.labels.roll(1)), "test": splits["test"]}
    job, path, brief = tables.Job("Concatenation", 0), tmp_path / "a.json", training(1)
    make = tables.ConcatenationHead
    assert tables.measure(job, make, brief, splits, path)
    assert not tables.measure(job, make, brief, splits, path)
    assert tables.measure(job, partial(make, dropout=0.2), training(1), splits, path)
    assert tables.measure(job, make, brief, noisy, path)
    assert tables.measure(job, make, training(2), noisy, path)
    assert not tables.measure(job, make, training(2), noisy, path)


# ------------------------------------------------------------------------ missing rows and NaN


def test_rows_of_nan_are_missing(
    compare: ModuleType, search: ModuleType, task: Any, tmp_path: Path
) -> None:
    with np.load(tmp_path / "features.npz") as file:
        image = file["image_clean"].astype(np.float32)
    gone = np.arange(72) % 4 == 1
    masked = file_of(tmp_path, image_clean=image, image_available=~gone)
    pools = [compare.load_own(masked, task.pool.training)]
    image[gone] = np.nan
    pools.append(compare.load_own(file_of(tmp_path, image_clean=image), task.pool.training))
    first, second = (
        search.run_row(name, replace(task, pool=pool), 1, 2, [0], tmp_path / "gaps")
        for pool in pools
        for name in ("Late mean",)
    )
    for cell, values in first["log_prob"].items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values, second["log_prob"][cell])
    missing = first["log_prob"]["image D"][:, gone[:60]]
    np.testing.assert_array_equal(first["log_prob"]["clean"][:, gone[:60]], missing)
    assert not np.array_equal(first["log_prob"]["clean"], first["log_prob"]["image D"])


@pytest.mark.parametrize("name", ["DRFHead", "QMF", "Concatenation", "PaperDRFHead"])
def test_heads_learn_in_spite_of_gaps(
    compare: ModuleType, search: ModuleType, task: Any, tmp_path: Path, name: str
) -> None:
    with np.load(tmp_path / "features.npz") as file:
        arrays = {f"{m}_clean": file[f"{m}_clean"].astype(np.float32) for m in ("image", "text")}
    arrays["image_clean"][::5] = np.nan
    arrays["text_clean"][1::5] = np.nan
    pool = compare.load_own(file_of(tmp_path, **arrays), training(20, 1e-2, 0.01, 12))
    row = search.run_row(name, replace(task, pool=pool), 1, 2, [0], tmp_path / "gaps")
    right = (row["log_prob"]["clean"].argmax(-1) == pool.split.labels.numpy()).mean()
    assert right > 0.55


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_clean", np.nan, "image_clean must be finite where the modality is available"),
        ("text_clean", np.inf, "text_clean must be finite"),
        ("image_corrupt", np.nan, "image_corrupt must be finite"),
        ("label", np.nan, "label must have a class for every sample"),
    ],
)
def test_nan_without_a_meaning_is_refused(
    compare: ModuleType, task: Any, tmp_path: Path, name: str, value: float, message: str
) -> None:
    with np.load(tmp_path / "features.npz") as file:
        array = file[name].astype(np.float32)
    array[(0, 2, 1)[: array.ndim] if array.ndim == 3 else (2, 1)[: array.ndim]] = value
    with pytest.raises(ValueError, match=message):
        compare.load_own(file_of(tmp_path, **{name: array}), task.pool.training)


def test_a_head_that_predicts_nan_is_refused(jobs: Callable[..., int]) -> None:
    with pytest.raises(ValueError, match=r"logits of Mine must be numbers, got NaN in \d+ of"):
        jobs(OWN.replace("self.classifier(fused)", "self.classifier(fused) * float('nan')"))


# --------------------------------------------------------------------------- how long to train


def test_ones_own_features_have_a_budget_in_steps(
    compare: ModuleType, search: ModuleType, task: Any, tmp_path: Path
) -> None:
    pool = compare.load_own(tmp_path / "features.npz", steps=100)
    assert pool.training.epochs == 100  # 40 samples of a fold are less than a batch of 64
    task = replace(task, pool=pool)
    epochs = [trial.training.epochs for trial in search.settings("DRFHead", task, 4)]
    assert epochs == [100, 200, 400, 100]
    assert len({trial.training.lr for trial in search.settings("DRFHead", task, 8)}) == 3


def test_epochs_and_rate_are_those_of_the_command(
    compare: ModuleType, task: Any, tmp_path: Path
) -> None:
    options = Namespace(
        mvsa=None, harmeme=None, uci=None, data=["thirds"], features=[tmp_path / "features.npz"]
    )
    plain = Namespace(**vars(options), model=[], steps=750, epochs=None, lr=None)
    assert [t.pool.training.epochs for t in compare.tasks(plain)] == [60, 750]
    plain.epochs, plain.lr = 7, 0.02
    for made in compare.tasks(plain):
        assert (made.pool.training.epochs, made.pool.training.lr) == (7, 0.02)


def test_a_longest_training_that_wins_is_remarked(
    compare: ModuleType,
    search: ModuleType,
    task: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, useless = (search.Setting(training(n, lr, 0.0, 12)) for n, lr in ((6, 1e-2), (2, 1e-9)))
    for tried in ([useless, good], [good, useless], [good]):
        monkeypatch.setattr(search, "settings", lambda *_, tried=tried: tried)
        rows = {"Late mean": search.run_row("Late mean", task, len(tried), 2, [0], tmp_path)}
        path = compare.finish(task, rows, len(tried), 2, [0], tmp_path / "out")
        compare.write_report(compare.read_record(path.stem, path.parent), path)
        words = "longest training was the best one for Late mean"
        assert (words in capsys.readouterr().out) == (len(tried) > 1)
        assert (words in path.with_suffix(".md").read_text()) == (len(tried) > 1)
    shorter = search.Setting(training(4, 1e-2, 0.0, 12))
    longer = search.Setting(training(6, 1e-9, 0.0, 12))
    monkeypatch.setattr(search, "settings", lambda *_: [shorter, longer])
    assert not search.run_row("Late mean", task, 2, 2, [0], tmp_path)["longest"]
