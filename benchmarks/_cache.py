"""Keys of finished trainings: a digest of everything that can change their predictions."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _data import Split
from _record import version
from torch import nn

ROOT = Path(__file__).parents[1]
# Code of this repository that every training runs through.
SHARED = (
    *sorted((ROOT / "robustfusion").glob("*.py")),
    *sorted((ROOT / "robustfusion" / "disruption").glob("*.py")),
    *(Path(__file__).with_name(name) for name in ("_train.py", "_data.py")),
)


def digest(head: nn.Module, splits: Sequence[Split], few: Split, settings: Any) -> str:
    """Sixteen hexadecimal digits of a head (code, options, weights), data, settings, versions.

    Args:
        head: the head before its training; it is put into evaluation mode.
        splits: training and held-out samples before any computation, whose last digits vary.
        few: some training samples as the head will see them.
        settings: everything else, such as the training and the seed, by its `repr`.
    """
    sha = hashlib.sha256(repr((version(), torch.__version__, settings)).encode())
    for path in sorted({*SHARED, *_files(head)}):
        sha.update(_code(path, path.stat().st_mtime_ns).encode())
    sha.update(repr(list(_options(head))).encode())
    for name, weight in sorted(head.named_parameters()):
        sha.update(f"{name}{tuple(weight.shape)}".encode())
        sha.update(weight.detach().contiguous().cpu().numpy().tobytes())
    for split in splits:
        sha.update(split.labels.numpy().tobytes())
        for arrays in (split.features, split.corrupted, split.available):
            for name, x in arrays.items():
                sha.update(f"{name}{tuple(x.shape)}".encode())
                sha.update(x.contiguous().numpy().tobytes())
    sha.update(_initial_logits(head, few).encode())
    return sha.hexdigest()[:16]


def _initial_logits(head: nn.Module, few: Split) -> str:
    """Untrained predictions on a few rows, which change with code that no file search finds."""
    few = few.rows(torch.arange(min(8, len(few))))
    with torch.random.fork_rng(), torch.no_grad():
        logits = head.eval()(few.features, few.masks()).logits
    return repr(logits.round(decimals=2).tolist())  # the last digits vary from run to run


def _files(head: nn.Module) -> set[Path]:
    """Files of the classes of a head, but for torch's, and modules next to a user's file."""
    classes = {base for module in head.modules() for base in type(module).__mro__}
    files = set()
    for kind in classes - {object}:
        if not kind.__module__.startswith(("torch.", "builtins")):
            files.add(Path(inspect.getfile(kind)).resolve())
    folders = {path.parent for path in files if not path.is_relative_to(ROOT)}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve().parent in folders:
            files.add(Path(file).resolve())
    return files


@cache
def _code(path: Path, modified: int) -> str:
    """The code of a file without comments, docstrings and layout, which change nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [line for line in body if not _is_text(line)]
    return f"{path.name}{ast.dump(tree)}"


def _is_text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def _options(head: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """The numbers and words that modules keep, such as a rate of dropout."""
    for name, module in head.named_modules():
        for key, value in sorted(vars(module).items()):
            if isinstance(value, int | float | str | tuple | None):
                yield name, key, value
