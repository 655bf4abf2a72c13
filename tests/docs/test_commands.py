"""Every command that README, CONTRIBUTING, the pages and the examples show can be typed."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    # The reference is built; its commands are those of the examples' docstrings.
    *sorted(p for p in (ROOT / "docs/pages").rglob("*.md") if "reference" not in p.parts),
    *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = {"torchrun": "torch.distributed.run", "pytest": "pytest"}
SCRIPTS = ("benchmarks/", "examples/")
TYPED = r"(?:(?:python|torchrun|pip) |\.ci/run|docs/\S+\.sh)"
OTHERS = {"source", "pre-commit", "ruff", "mypy"}  # programs of others, the whole line is theirs

# Many programs in one process: torch is imported once.
ASK_FOR_HELP = """
import contextlib, io, json, runpy, sys
found = {}
for program in sys.argv[1:]:
    kept, code = io.StringIO(), None
    sys.argv = [program, "--help"]
    with contextlib.redirect_stdout(kept):
        try:
            if program.endswith(".py"):
                sys.path[0] = program.rpartition("/")[0]
                runpy.run_path(program, run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
        except SystemExit as end:
            code = end.code
    found[program] = (code, kept.getvalue())
print(json.dumps(found))
"""


def commands(text: str, ending: str) -> list[list[str]]:
    """What is typed, word by word: lines of bash blocks, spans of code, examples of docstrings."""
    if ending == ".py":
        text = _joined(ast.get_docstring(ast.parse(text), clean=False) or "")
        lines = re.findall(rf"^    ({TYPED}.*)", text, re.M)
    else:
        block = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
        lines = _joined("\n".join(block.findall(text))).splitlines()
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
        lines += [span for span in spans if re.match(TYPED, span)]
    parts = [part for line in lines for part in re.split(r"&&|\|", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def _joined(text: str) -> str:
    return re.sub(r"\\\n\s*", "", text)


def problem(words: list[str], known: dict[str, set[str]]) -> str | None:
    """What stands against a command, given the options that each program knows."""
    program, *rest = words
    if program in OTHERS or words[:3] == ["pip", "install", "--upgrade"]:
        return None
    if words[:2] == ["pip", "install"]:
        for option, name in pairwise(rest):
            if option == "--group" and name not in PROJECT["dependency-groups"]:
                return f"no group {name}"
            if option == "-c" and not (ROOT / name).is_file():
                return f"no file {name}"
        return None  # extras have a test of their own
    if program.startswith((".ci/", "docs/")):
        return None if os.access(ROOT / program, os.X_OK) else f"{program} is no program"
    runs = [
        word for word in rest if word.endswith(".py") and word.startswith((*SCRIPTS, "tests/"))
    ]
    for path in runs:
        if not (ROOT / path).is_file():
            return f"no file {path}"
    if program == "python" and rest[0] == "-m":
        if importlib.util.find_spec(rest[1]) is None:
            return f"no module {rest[1]}"
        program, rest = rest[1], rest[2:]
    elif program == "python":
        if not runs or runs[0] != rest[0]:
            return f"{rest[0]} is not of this repository"
        program, rest = rest[0], rest[1:]
    elif program == "torchrun":
        at = rest.index(runs[0])
        return problem(["python", *rest[at:]], known) or _unknown(program, rest[:at], known)
    else:
        return f"what is {program}?"
    return _unknown(program, rest, known)


def _unknown(program: str, words: list[str], known: dict[str, set[str]]) -> str | None:
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    unknown = options - known.get(program, set())
    return f"{program} has no {unknown}" if unknown else None


def all_commands() -> dict[str, list[str]]:
    """The commands of all pages, each once."""
    found = [
        words
        for page in PAGES
        for words in commands(page.read_text(encoding="utf-8"), page.suffix)
    ]
    return {shlex.join(words): words for words in found}


COMMANDS = all_commands()


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The options in the help of every program that is run with options."""
    programs = {word for words in COMMANDS.values() for word in words if word in MODULES}
    for words in COMMANDS.values():
        if any(word.startswith("--") for word in words):
            programs.update(word for word in words if word.startswith(SCRIPTS))
    # Modules first: pytest wants to be there before what it rewrites. What parses no options is
    # not asked: it would run in full.
    asked = [MODULES[name] for name in sorted(programs & set(MODULES))]
    for name in sorted(programs - set(MODULES)):
        path = ROOT / name
        if path.is_file() and re.search("argparse|typer", path.read_text()):
            asked.append(name)
    answered = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP, *asked],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answered.returncode == 0, answered.stderr
    helps = json.loads(answered.stdout.splitlines()[-1])
    assert {name: code for name, (code, _) in helps.items() if code} == {}
    return {
        name: set(re.findall(r"--[a-z][\w-]*", helps[MODULES.get(name, name)][1]))
        for name in programs
        if MODULES.get(name, name) in helps
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_it_can_be_typed(command: str, known: dict[str, set[str]]) -> None:
    assert problem(COMMANDS[command], known) is None


def test_extras_are_those_of_the_project() -> None:
    code = [p for name in ("robustfusion", "tests") for p in (ROOT / name).rglob("*.py")]
    for page in {*PAGES, *code, *(ROOT / "examples").glob("*.ipynb")} - {Path(__file__)}:
        named = re.findall(r"(?:robustfusion|\.)\[([a-z,]+)\]", page.read_text(encoding="utf-8"))
        extras = {extra for names in named for extra in names.split(",")}
        assert extras <= set(PROJECT["project"]["optional-dependencies"]), page


def test_commands_are_found() -> None:
    text = "a `python\nexamples/a.py` b\n```bash\nx 1 && y \\\n  -z  # why\n```\n"
    assert commands(text, ".md") == [["x", "1"], ["y", "-z"], ["python", "examples/a.py"]]
    assert commands('"""What.\n\n    python examples/a.py\n"""\n', ".py") == [
        ["python", "examples/a.py"]
    ]
    assert "python examples/drf_mvsa.py" in COMMANDS
    assert "torchrun --nproc-per-node 2 examples/train_ddp.py" in COMMANDS
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(
    "command",
    [
        "python examples/gone.py",
        "python examples/drf_mvsa.py --epoch 2",
        "python benchmarks/quality.py --quick",
        "python -m pytest --longest",
        "python -m nosuchmodule",
        "torchrun --nproc-per-nodes 2 examples/train_ddp.py",
        "torchrun --nproc-per-node 2 examples/train_ddp.py --gone",
        "pip install --group nosuchgroup",
        "pip install -c gone.txt .",
        "docs/build.py",
        "nosuchprogram",
    ],
)
def test_a_wrong_command_is_found(command: str, known: dict[str, set[str]]) -> None:
    assert problem(command.split(), known) is not None
