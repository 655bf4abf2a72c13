"""A run killed by SIGKILL anywhere goes on to the same weights and the same order, bit for bit."""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import resumable

if not hasattr(signal, "SIGKILL"):
    pytest.skip("this system has no SIGKILL", allow_module_level=True)

EXAMPLES = Path(__file__).parents[1] / "examples"
# Optimizers import the compiler: once for all processes, not in each.
PRELOAD = ["torch", "torch._dynamo", "torch._inductor.utils", "robustfusion"]
LINE = re.compile(r"(\d+): (\[[\d, ]+\])")


def start(folder: Path, kind: str) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder.mkdir(exist_ok=True)
    process = context.Process(target=resumable.train, args=(str(folder), kind))
    process.start()
    return process


def order(folder: Path) -> list[tuple[int, str]]:
    path = folder / "order.txt"
    text = path.read_text() if path.exists() else ""
    return [(int(step), rows) for step, rows in LINE.findall(text)]


def kill_within(process: BaseProcess, folder: Path, draw: random.Random) -> bool:
    """Kill after a random number of further steps, anywhere in one; False if it ended first."""
    goal = len(order(folder)) + draw.randint(0, 25)
    while process.is_alive() and len(order(folder)) < goal:
        time.sleep(0.0005)
    time.sleep(draw.random() * 0.02)
    if not process.is_alive():
        return False
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["default", "paper"])
def test_killed_training_ends_with_the_same_bits(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    long = request.config.getoption("--long")
    if kind == "paper" and not long:
        pytest.skip("large checkpoints: with --long")
    kills = 50 if long else 3
    whole = tmp_path / "whole"
    process = start(whole, kind)
    process.join(120)
    assert process.exitcode == 0
    expected, final = dict(order(whole)), (whole / "final.pt").read_bytes()
    assert sorted(expected) == list(range(resumable.STEPS))

    draw, killed, runs = random.Random(0), 0, 0
    while killed < kills:
        folder = tmp_path / f"run-{runs}"
        runs += 1
        while not (folder / "final.pt").exists():
            process = start(folder, kind)
            if killed < kills and kill_within(process, folder, draw):
                killed += 1
                continue
            process.join(120)
            assert process.exitcode == 0, "a killed run could not be gone on from"
        assert (folder / "final.pt").read_bytes() == final, f"after {killed} kills"
        seen = order(folder)
        assert {step for step, _ in seen} == set(expected)
        assert all(expected[step] == rows for step, rows in seen), "another order of the data"


def test_killed_main_job_ends_with_the_same_models(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--long"):
        pytest.skip("kills the main job again and again: with --long")
    for module in ("typer", "tqdm", "matplotlib", "PIL", "sklearn"):
        pytest.importorskip(module)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    small = ["--limit", "60", "--epochs", "6", "--batch-size", "4", "--save-every", "1"]

    def job(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, str(EXAMPLES / "drf_mvsa.py"), *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def models(folder: Path) -> list[bytes]:
        found = sorted(folder.glob("runs/drf_mvsa-001/models/*/model.safetensors"))
        assert len(found) == 2
        return [path.read_bytes() for path in found]

    def saves(folder: Path) -> tuple[int, ...]:
        return tuple(p.stat().st_mtime_ns for p in folder.glob("runs/*/training/*/check*"))

    assert job(tmp_path / "whole", *small).wait(600) == 0
    killed_folder, draw, killed, patience = tmp_path / "killed", random.Random(0), 0, 600.0
    while True:
        begun = (killed_folder / "runs" / "drf_mvsa-001").exists()
        process = job(killed_folder, *(["--resume"] if begun else small))
        # After so many checkpoints of the hundred that the whole job writes, or before the first.
        wanted, seen, last = draw.randint(0, 4), 0, saves(killed_folder)
        deadline = time.monotonic() + patience
        while process.poll() is None and seen <= wanted:
            assert time.monotonic() < deadline
            time.sleep(0.002)
            if saves(killed_folder) != last:
                seen, last = seen + 1, saves(killed_folder)
        time.sleep(draw.random() * 0.1)
        process.kill()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, "a killed job could not be gone on from"
        killed += 1
    assert killed >= 4
    assert models(killed_folder) == models(tmp_path / "whole")
