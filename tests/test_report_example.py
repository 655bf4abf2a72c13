"""examples/report.py: a saved run and a model of one's own give whole reports, or a reason."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("tqdm")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL.Image")

from main_job.posts import make_posts
from typer import Typer
from typer.testing import CliRunner, Result

from robustfusion.checkpoint import save_model
from robustfusion.datasets import MVSA, load_splits
from robustfusion.evaluation import RobustnessReport

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = {"report.md", "report.csv", "report.json", "report.npz", "rate_curves.png", "coverage.png"}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import one of the example's modules."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return importlib.import_module


def call(example: Any, *arguments: str) -> Result:
    app = Typer()
    app.command()(example("report").main)
    return CliRunner().invoke(app, list(arguments))


def documented() -> str:
    """The model file that the docstring shows."""
    source = (EXAMPLES / "report.py").read_text(encoding="utf-8")
    block = re.search(r"A whole ``my_model\.py``::\n\n(.*?)\n\nFor raw", source, re.DOTALL)
    assert block is not None
    return textwrap.dedent(block[1])


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "my_model.py"
    path.write_text(documented(), encoding="utf-8")
    return f"{path}:make"


@pytest.fixture
def run(tmp_path: Path, example: Any) -> Path:
    """The folder of a run as drf_mvsa.py leaves it, its models untrained."""
    parts = example("main_job.settings")
    make_posts(tmp_path / "posts-60-seed0", n=60, seed=0)
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
        "limit": 60,
        "seed": 0,
        "device": "cpu",
        "threads": 1,
    }
    folder = example("main_job.run_folder").new_run(tmp_path, settings)
    names = ["positive", "neutral", "negative"]
    given = parts.Settings(**settings)
    for kind in parts.NAMES:
        model = parts.make_model(kind, parts.make_encoders(given), 3, given)
        save_model(model, folder / "models" / kind, {"class_names": names})
    return Path(folder)


def _test_labels(run: Path) -> list[int]:
    """From the posts themselves."""
    dataset = MVSA(run.parent / "posts-60-seed0")
    known = dict(zip(dataset.ids, dataset.labels, strict=True))
    splits = load_splits(dataset.root / "splits.json")
    return [known[post_id] for post_id in splits.open_test("a test")]


def test_the_documented_model_is_short_and_gets_a_whole_report(
    example: Any, own: str, tmp_path: Path
) -> None:
    code = [line for line in documented().splitlines() if line.strip()]
    assert len(code) <= 22
    result = call(example, "--model", own, "--output-dir", str(tmp_path / "out"), "--seeds", "2")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    report = RobustnessReport.load(tmp_path / "out" / "report.json")
    assert report.name == "MyModel"
    assert report.seeds == (0, 1)
    assert len(report.scores) == 1 + 3 * (2 + 5)


def test_a_run_is_measured_with_its_own_posts_and_models(example: Any, run: Path) -> None:
    result = call(example, str(run))
    assert result.exit_code == 0, result.output
    folder = run / "report"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "comparison.md",
        "rate_curves.png",
    }
    for kind in ("drf", "concatenation-modality-dropout"):
        assert {path.name for path in (folder / kind).iterdir()} >= FILES
    assert (folder / "drf" / "quality.png").exists()
    report = RobustnessReport.load(folder / "drf" / "report.json")
    assert report.labels.tolist() == _test_labels(run)
    again = call(example, str(run))
    assert again.exit_code == 2
    assert "--overwrite" in again.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--model", "nowhere.py:make"), "file must exist"),
        (("--model", "{own}x"), "has no function makex"),
        (("--model", "{own}", "{run}"), "either"),
        ((), "either"),
        (("{run}/models",), "not the folder of a run"),
        (("{run}", "--data", "nowhere"), "--data"),
        (("--model", "{own}", "--device", "cuda:99"), "--device"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    example: Any, own: str, run: Path, tmp_path: Path, change: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "out"
    arguments = [part.format(own=own, run=run) for part in change]
    result = call(example, *arguments, "--output-dir", str(out))
    assert result.exit_code == 2, result.output
    assert "error:" in result.output
    assert words in result.output
    assert not out.exists()


def test_a_model_of_the_wrong_kind_is_refused(example: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "wrong.py", tmp_path / "out"
    path.write_text(documented().replace("logits=", "scores="), encoding="utf-8")
    result = call(example, "--model", f"{path}:make", "--output-dir", str(out))
    assert result.exit_code == 2
    assert "must have logits" in result.output
    path.write_text("def make():\n    return 3\n", encoding="utf-8")
    result = call(example, "--model", f"{path}:make", "--output-dir", str(out))
    assert result.exit_code == 2
    assert "must return (model, data)" in result.output
    assert not out.exists()


def test_it_starts_as_a_script(own: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "report.py"), "--model", own, "--seeds", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "# Robustness of MyModel" in done.stdout
    assert (tmp_path / "runs" / "report" / "report.json").exists()
