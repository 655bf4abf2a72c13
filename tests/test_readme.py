"""README and result pages agree with the records, and the quickstart prints what it says."""

import contextlib
import hashlib
import importlib
import io
import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("tqdm")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from typer import Typer
from typer.testing import CliRunner

from robustfusion.evaluation import RobustnessReport

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAIN_JOB = Path("docs", "pages", "results", "cross-validation.md")


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module("render")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            sys.modules.pop(name)


def test_it_is_what_the_records_make(render: ModuleType) -> None:
    assert render.readme(README) == README
    for path, text in render.pages().items():
        assert path.read_text() == text, path.name


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_the_quickstart_prints_what_its_comments_say() -> None:
    pytest.importorskip("sklearn")
    block = README.split("## Quickstart")[1].split("```python\n")[1].split("```")[0]
    expected = re.findall(r"\bprint\(.*  # (.*)", block)
    assert len(expected) == 3
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    for line, comment in zip(printed.getvalue().splitlines(), expected, strict=True):
        text, _, value = comment.rpartition(" ")
        assert line.startswith(f"{text} ")
        assert float(line.rpartition(" ")[2]) == pytest.approx(float(value), abs=0.02)


def test_the_main_job_is_the_one_of_the_record(render: ModuleType) -> None:
    record = render.read_record("main_job")
    figure = ROOT / "docs" / "pages" / "assets" / "main-job.png"
    found = hashlib.sha256(figure.read_bytes()).hexdigest()
    assert found == record["results"]["figure_sha256"]
    command = README.split("<!-- the main job -->")[1].split("```")[1]
    assert command.strip().endswith(record["command"])
    assert "under three minutes" in " ".join(README.split())
    assert record["results"]["seconds"] < 180


def test_goals_follow_from_the_seeds(render: ModuleType) -> None:
    record = render.read_record("main_job_seeds")
    results = record["results"]
    gaps: dict[str, float] = {}
    means: dict[str, float] = {}
    assert len(record["seeds"]) == 10
    for title, cell in results["cells"].items():
        gap = [a - b for a, b in zip(cell["ours"], cell["theirs"], strict=True)]
        gaps[title], means[title] = statistics.mean(gap), statistics.mean(cell["ours"])
        reach = 2.262 * statistics.stdev(gap) / 10**0.5
        interval = [gaps[title], gaps[title] - reach, gaps[title] + reach]
        assert cell["difference"] == pytest.approx(interval, abs=0.02)
    harm = min(means[f"{m} C"] - means[f"{m} D"] for m in ("image", "text"))
    expected = {"clean": gaps["clean"] >= -0.5, "corrupted": harm >= -1}
    expected["every cell"] = min(gaps.values()) >= -0.5
    assert {name: goal["met"] for name, goal in results["promises"].items()} == expected
    text = (ROOT / MAIN_JOB).read_text()
    block = text.split("<!-- seeds -->")[1].split("<!-- /seeds -->")[0]
    assert block.count("| yes |") == sum(expected.values())
    assert block.count("| **no** |") == len(expected) - sum(expected.values())


def test_a_run_is_kept(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Typer()
    app.command()(importlib.import_module("drf_mvsa").main)
    options = ["--limit", "40", "--epochs", "1", "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, repr(done.exception)
    run, figure = tmp_path / "drf_mvsa-001", tmp_path / "figure.png"
    readme, page = tmp_path / "README.md", tmp_path / MAIN_JOB.name
    readme.write_text(README.replace("| nothing wrong |", "| outdated |"))
    page.write_text((ROOT / MAIN_JOB).read_text().replace("What the main job", "An outdated job"))

    runs: Any = render._render_runs
    records = tmp_path / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", records)
    (records / "main_job.json").unlink()
    for module in (runs, importlib.import_module("_record")):
        monkeypatch.setattr(module, "RESULTS", records)
    monkeypatch.setitem(runs.FIGURES, "main_job", figure)
    monkeypatch.setattr(render, "README", readme)
    monkeypatch.setattr(render, "DOCS", tmp_path)
    monkeypatch.setattr(render, "MAIN_JOB", page.name)
    monkeypatch.setattr(render, "PAGES", {page.name: render.PAGES["results/cross-validation.md"]})
    monkeypatch.setattr(sys, "argv", ["render.py", "--main-job", str(run)])
    render.main()

    record = json.loads((records / "main_job.json").read_text())
    assert record.keys() == render.read_record("cross_validation").keys()
    assert record["machine"].keys() == render.read_record("cross_validation")["machine"].keys()
    assert figure.read_bytes() == (run / "accuracy.png").read_bytes()
    drf = RobustnessReport.load(run / "report-drf.json")
    accuracy = record["results"]["accuracy"]["DRF"]
    assert accuracy.keys() == drf.scores.keys()
    for key, cell in drf.scores.items():
        assert accuracy[key] == pytest.approx([100 * bound for bound in cell.accuracy], abs=0.051)
    assert record["results"]["majority"] == pytest.approx(100 * drf.majority.accuracy, abs=0.051)
    assert f"{record['command']}` at commit `{record['commit']}`" in page.read_text()
    assert "An outdated job" not in page.read_text()
    assert "| outdated |" not in readme.read_text()
