"""The same classifier under torchrun with accelerate, under Lightning and under the Trainer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FRAMEWORKS = {
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
    for name in (*FRAMEWORKS, "digits.py", "export_onnx.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < 100, name


@pytest.mark.parametrize(
    ("example", "arguments", "launcher"),
    [
        ("train_ddp.py", (), TORCHRUN),
        ("train_ddp.py", (), ()),
        ("train_fsdp.py", (), TORCHRUN),
        ("train_lightning.py", (), ()),
        ("train_lightning.py", ("--devices", "2"), ()),
        ("train_trainer.py", (), ()),
        ("train_trainer.py", (), TORCHRUN),
    ],
    ids=["ddp-2", "ddp-1", "fsdp-2", "lightning-1", "lightning-2", "trainer-1", "trainer-2"],
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
    short = {"train_ddp.py": 2, "train_fsdp.py": 2, "train_lightning.py": 1, "train_trainer.py": 1}
    if ranks != short[example] and not request.config.getoption("--long"):
        pytest.skip("a second number of ranks: with --long")
    output = run(tmp_path, *launcher, str(EXAMPLES / example), "--epochs", "3", *arguments)
    scores = accuracies(output)
    assert scores["nothing"] > 0.85
    assert min(scores["upper"], scores["lower"]) > 0.6
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"], "written to, and to nowhere else"
