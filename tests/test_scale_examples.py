"""The same classifier under torchrun with accelerate, under Lightning and under the Trainer."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FRAMEWORKS = {
    "digits.py": ("sklearn", "typer"),
    "train_ddp.py": ("sklearn", "typer", "accelerate", "safetensors"),
    "train_fsdp.py": ("sklearn", "typer"),
    "train_lightning.py": ("sklearn", "typer", "lightning"),
    "train_trainer.py": ("sklearn", "typer", "accelerate", "transformers"),
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(EXAMPLES.parent),
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def accuracies(output: str) -> dict[str, float]:
    found = re.findall(r"accuracy, (\w+) missing: ([\d.]+)", output)
    assert len(found) == 3, "each number stands there once, whatever the number of ranks"
    return {lost: float(score) for lost, score in found}


def test_each_example_has_fewer_than_a_hundred_lines() -> None:
    for name in (*FRAMEWORKS, "export_onnx.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < 100, name


NEEDED = [
    ("digits.py", "sklearn.datasets", "examples"),
    ("train_lightning.py", "lightning", "examples,lightning"),
    ("train_trainer.py", "accelerate", "examples,trainer"),
    ("train_trainer.py", "transformers", "examples,trainer"),
    ("drf_mvsa.py", "typer", "examples"),
    ("predict.py", "typer", "examples"),
    ("report.py", "safetensors", "examples"),
    ("export_run.py", "typer", "examples,onnx"),
    ("demo_app.py", "streamlit", "examples,demo"),
    ("gallery/converter_alone.py", "matplotlib.figure", "examples"),
    ("gallery/ensemble.py", "sklearn.datasets", "examples"),
    ("gallery/out_of_distribution.py", "sklearn.metrics", "examples"),
    ("gallery/retrofit.py", "sklearn.neural_network", "examples"),
    ("gallery/three_modalities.py", "sklearn.feature_extraction.text", "examples,sklearn"),
    ("gallery/transformers_encoders.py", "transformers", "examples,hf"),
]


@pytest.mark.parametrize(("example", "module", "extra"), NEEDED)
def test_what_is_not_installed_is_told_in_a_sentence(
    example: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = EXAMPLES / example
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(path.parent))
    for name in [*sys.modules]:
        ours = getattr(sys.modules[name], "__file__", None) or ""
        if ours.startswith((str(EXAMPLES), str(EXAMPLES.parent / "robustfusion"))):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(SystemExit) as told:
        runpy.run_path(str(path))
    message = str(told.value.code)
    assert f'pip install -e ".[{extra}]"' in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("example", "arguments", "launcher"),
    [
        ("digits.py", (), ()),
        ("train_ddp.py", (), TORCHRUN),
        ("train_ddp.py", (), ()),
        ("train_fsdp.py", (), TORCHRUN),
        ("train_lightning.py", (), ()),
        ("train_lightning.py", ("--devices", "2"), ()),
        ("train_trainer.py", (), ()),
        ("train_trainer.py", (), TORCHRUN),
    ],
    ids=[
        "digits",
        "ddp-2",
        "ddp-1",
        "fsdp-2",
        "lightning-1",
        "lightning-2",
        "trainer-1",
        "trainer-2",
    ],
)
def test_the_example_learns(
    example: str,
    arguments: tuple[str, ...],
    launcher: tuple[str, ...],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    for module in FRAMEWORKS[example]:
        pytest.importorskip(module)
    ranks = 2 if launcher or arguments else 1
    short = 2 if example in ("train_ddp.py", "train_fsdp.py") else 1
    if ranks != short and not request.config.getoption("--long"):
        pytest.skip("a second number of ranks: with --long")
    output = run(tmp_path, *launcher, str(EXAMPLES / example), "--epochs", "3", *arguments)
    scores = accuracies(output)
    assert scores["nothing"] > 0.85
    assert min(scores["upper"], scores["lower"]) > 0.6
    written = [] if example == "digits.py" else [tmp_path / "runs"]
    assert list(tmp_path.iterdir()) == written, "written to, and to nowhere else"
