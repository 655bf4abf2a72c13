"""Run records: every number in the docs comes from one of these files."""

import json
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
# Files that can change a number; a record that was just written must not mark the next one.
_MEASURED = ("robustfusion", "examples", "benchmarks/*.py", "constraints.txt")


def commit() -> str:
    """Return the commit that was measured, with a mark if its code has been changed since."""
    try:
        name = _git("describe", "--always", "--exclude=*")
        changed = _git("status", "--porcelain", "--", *_MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def version() -> str:
    """Return the version of this checkout, whatever is installed."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    return str(project["project"]["version"])


def write_record(
    name: str,
    results: dict[str, Any],
    *,
    data: str,
    seeds: list[int],
    folder: Path | None = None,
) -> Path:
    """Write ``<name>.json`` with what is needed to judge and repeat the numbers."""
    record = {
        "command": shlex.join(["python", *relative(sys.argv)]),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "data": data,
        "seeds": seeds,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "robustfusion": version(),
        },
        "results": results,
    }
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def read_record(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Read what :func:`write_record` wrote."""
    record: dict[str, Any] = json.loads(((folder or RESULTS) / f"{name}.json").read_text())
    return record


def relative(arguments: list[str]) -> list[str]:
    """Name files by what a reader of the repository would type, not by this machine's paths."""
    root = Path(__file__).parent.parent

    def shorter(argument: str) -> str:
        path = Path(argument)
        if not path.is_absolute():
            return argument
        return str(path.relative_to(root)) if path.is_relative_to(root) else f"DIR/{path.name}"

    return [shorter(argument) for argument in arguments]
