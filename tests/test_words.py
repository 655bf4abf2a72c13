"""The words of the house: the field's standard terms, one word a thing, and full sentences."""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("robustfusion", "examples", "benchmarks", "docs")
# What to write instead: unusual, outlier; damaged, of low quality; baseline; trust; statistically
# tied; predict; constant; use what is missing; fix; training samples; compared with.
BANNED = re.compile(
    r"\b(odd|odder|oddly|oddness|oddest|poor|poorer|poorly|poorest|rivals?|doubts?|doubted|"
    r"told apart|tells? of|telling of|alive|dead|peeks?|peeking|mend|mends|mended|mending|voters?|"
    r"beside|unlikeness|out of the ordinary|what is usual)\b",
    re.IGNORECASE,
)
NAMES = re.compile(
    r"made|found|kept|given|here|there|shown|even|alone|place|at|said|usual|look|spread|odd|unlike|"
    r"told|mixing|members"
)
PARTS = re.compile(r"(^|_)(alone|usual|odd|spread|doubts?|voters?|rivals?|poor)(_|$)")
BRITISH = re.compile(
    r"(centre|colour|behaviour|favour|neighbour|grey|labelled|modelling|catalogue|"
    r"(?:normal|standard|initial|optim|general|summar|recogn|organ|real|minim|maxim|serial|token|"
    r"regular|categor|visual)is(?:e|ed|er|ing|ation)(?:_|$))"
)
FRAGMENT = re.compile(r"(What|Whether|How|Of|That|Which) ")
pages = [
    *sorted((ROOT / "docs" / "pages").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
]
pages = [page for page in pages if "pages/reference" not in page.as_posix()]
modules = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def comments(source: str) -> Iterator[tuple[int, str]]:
    """The comments, neighboring lines of them joined, with the line of the first."""
    block, first, last = "", 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#! ")
        own = not token.line[: token.start[1]].strip()
        if own and line == last + 1:
            block, last = f"{block} {text}", line
            continue
        if block:
            yield first, block
        block, first, last = text, line, line if own else -1
    if block:
        yield first, block


def documented(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def bound(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that the code gives to something."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield node.lineno, name


@pytest.mark.parametrize("path", modules, ids=name_of)
def test_code_speaks_plain_english(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    wrong = [f"{line}: {m[0]!r}" for line, text in lines(source) for m in BANNED.finditer(text)]
    wrong += [
        f"{n}: comment begins {t[:30]!r}" for n, t in comments(source) if t[:3].lower() == "of "
    ]
    wrong += [f"{n}: no sentence: {t[:40]!r}" for n, t in documented(tree) if FRAGMENT.match(t)]
    for line, name in bound(tree):
        lower = name.lower().strip("_")
        if NAMES.fullmatch(lower) or PARTS.search(lower) or BRITISH.search(lower):
            wrong.append(f"{line}: name {name!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", pages, ids=name_of)
def test_pages_speak_plain_english(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    wrong = [f"{line}: {m[0]!r}" for line, part in lines(text) for m in BANNED.finditer(part)]
    assert not wrong, "\n".join(wrong)


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line, with the one behind it where a term of two words could be broken."""
    every = text.splitlines()
    for number, line in enumerate(every, 1):
        yield number, line
    for number, (line, after) in enumerate(itertools.pairwise(every), 1):
        broken = re.search(r"\b(told|tells?|telling|what is)$", line)
        if broken:
            yield number, f"{broken[0]} {after.lstrip('#> ')}"
