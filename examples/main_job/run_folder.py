"""The folder of a run: where it is, its settings, and the record of what was run on what."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import MISSING, Field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from main_job.encoders import SetupError
from robustfusion.checkpoint import replace_file

PACKAGES = ("robustfusion", "torch", "numpy", "pillow", "safetensors", "transformers")


def new_run(output_dir: Path, settings: dict[str, Any]) -> Path:
    """Make the next numbered run folder and keep its settings there."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        folder = output_dir / f"drf_mvsa-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        write_json(folder / "settings.json", settings)
        return folder
    raise SetupError(f"{output_dir} holds 9,999 runs: choose another --output-dir")


def find_run(folder: Path | None, output_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Return a run folder, by default the latest, and its settings."""
    if folder is None:
        runs = sorted(output_dir.glob("drf_mvsa-*/settings.json"))
        if not runs:
            raise SetupError(f"there is no run to resume in {output_dir}")
        folder = max(runs, key=lambda path: (path.stat().st_mtime, path.parent.name)).parent
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"{folder} is not the folder of a run: no settings.json in it") from error
    if not isinstance(settings, dict):
        raise SetupError(f"{folder / 'settings.json'} must hold an object")
    return folder, settings


def kept_settings(folder: Path, settings: Any, expected: type, context: Any) -> dict[str, Any]:
    """Check the settings of a run; with --resume, other options would be ignored."""
    allowed = {"resume", "resume_dir", "output_dir", "save_every"}
    for name in sorted(set(context.params) - allowed):
        if context.get_parameter_source(name).name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise SetupError(f"--resume takes every option from the run: leave --{option} out")
    types = {field.name: field.type for field in fields(expected)}
    required = {field.name for field in fields(expected) if not has_default(field)}
    if not required <= set(settings) <= set(types):
        raise SetupError(f"{folder / 'settings.json'} is of another version of this example")
    for name, value in settings.items():
        choices, kind = get_args(types[name]), getattr(types[name], "__origin__", types[name])
        if value not in choices if kind is Literal else not isinstance(value, kind):
            raise SetupError(f"{folder / 'settings.json'}: {name} cannot be {value!r}")
    return dict(settings)


def has_default(field: Field[Any]) -> bool:
    """Return whether an older run may lack a setting."""
    return field.default is not MISSING or field.default_factory is not MISSING


class Stopwatch:
    """Record how long each stage of a run has taken, over all processes that worked on it.

    Args:
        path: File that keeps the seconds; it is written at each tick.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = time.perf_counter()
        try:
            seconds = json.loads(path.read_text(encoding="utf-8"))
            self.seconds = {str(stage): float(value) for stage, value in seconds.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self.seconds = {}

    def tick(self, stage: str) -> None:
        """Count the time since the last tick for a stage."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 3)
        self.last = now
        write_json(self.path, self.seconds)


def run_record(**extra: Any) -> dict[str, Any]:
    """Return command, commit, date, versions and machine, and what the caller adds."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: text for name in PACKAGES if (text := _version(name))},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
        **extra,
    }


def check_device(name: str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(f"--device {name} cannot be used here ({reason})") from error


def sha256(path: Path) -> str:
    """Return a file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def commit() -> str | None:
    """Return the commit of this file's checkout, marked where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def write_json(path: Path, content: Any) -> None:
    """Write JSON; a reader finds the old file or the new one."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
