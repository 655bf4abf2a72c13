"""Write a page for each example from the example itself, and one of thumbnails.

    python docs/gallery.py examples docs/pages/reference
    python docs/gallery.py run examples/gallery

A file is shown if it can be run, that is, if it has a ``__main__``; its docstring becomes the
text. The second command runs the short ones and keeps what they draw and print, which the pages
show, in ``docs/pages/assets/gallery``.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

_ACRONYMS = ("clip", "ddp", "drf", "fsdp", "mvsa", "onnx", "ood")
HEAD = """# Examples and notebook

Each runs as it is, on a CPU, with data it makes itself. Those with a picture are short; the main
job also exists as a [notebook](examples/main_job.md).
"""
_MADE = Path(__file__).parent / "pages" / "assets" / "gallery"


def write(folder: Path, target: Path) -> None:
    """Write ``examples.md``, with a card an example, and ``examples/`` with a page for each."""
    paths = sorted(folder.rglob("*.py"), key=lambda path: (-len(path.parts), path.name))
    pages = target / "examples"
    pages.mkdir(parents=True, exist_ok=True)
    cards = []
    for path in filter(is_program, paths):
        (pages / f"{path.stem}.md").write_text(page(path, folder), encoding="utf-8")
        cards.append(card(path))
    for path in sorted(folder.glob("*.ipynb")):
        (pages / f"{path.stem}.md").write_text(notebook(path), encoding="utf-8")
    text = "\n".join([HEAD, '<div class="cards" markdown>\n', *cards, "</div>"])
    (target / "examples.md").write_text(text + "\n", encoding="utf-8")


def is_program(path: Path) -> bool:
    """Whether a file can be run."""
    return "__main__" in path.read_text(encoding="utf-8") and not path.name.startswith("_")


def title(path: Path) -> str:
    """The name of a file in words."""
    words = path.stem.split("_")
    text = " ".join(word.upper() if word in _ACRONYMS else word for word in words)
    return text[0].upper() + text[1:]


def describe(path: Path) -> tuple[str, str]:
    """The first sentence of an example, and the rest of what it says of itself."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    first, _, rest = text.partition("\n\n")
    # Two colons before a block of code are reStructuredText.
    return " ".join(first.split()), re.sub(r"::$", ":", rest, flags=re.MULTILINE)


def card(path: Path) -> str:
    """The thumbnail of an example, its name and its first sentence."""
    figure = ""
    if (_MADE / f"{path.stem}.png").is_file():
        figure = f"![](../assets/gallery/{path.stem}.png)\n\n"
    link = f"[**{title(path)}**](examples/{path.stem}.md)"
    return f'<div class="card" markdown>\n\n{figure}{link}\n\n{describe(path)[0]}\n\n</div>\n'


def page(path: Path, folder: Path) -> str:
    """Text, figure, what is printed, and the code."""
    first, rest = describe(path)
    parts = [f"# {title(path)}", first, rest]
    if (_MADE / f"{path.stem}.png").is_file():
        parts.append(f"![{first}](../../assets/gallery/{path.stem}.png)")
    printed = _MADE / f"{path.stem}.txt"
    if printed.is_file():
        parts += ["It prints:", _fenced(printed.read_text(encoding="utf-8"), "text")]
    parts += [f"## {path.relative_to(folder).as_posix()}", _fenced(path.read_text("utf-8"))]
    return "\n\n".join(parts) + "\n"


def notebook(path: Path) -> str:
    """The cells of a notebook, with what they printed if it was saved."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else _fenced(text))
        for output in cell.get("outputs", []):
            found = output.get("text") or output.get("data", {}).get("text/plain", [])
            parts.append(_fenced("".join(found), "text"))
    name = f"The notebook is `examples/{path.name}`."
    return "\n\n".join([parts[0], name, *parts[1:]]) + "\n"


def _fenced(text: str, language: str = "python") -> str:
    # With braces: only what is shown, not what tests of the pages run.
    return f"```` {{ .{language} }}\n{text.rstrip()}\n````"


def run(folder: Path) -> None:
    """Run every example and keep its figure and what it prints."""
    for path in filter(is_program, sorted(folder.glob("*.py"))):
        command = [sys.executable, str(path), "--output-dir", str(_MADE)]
        env = {**os.environ, "TERM": "dumb"}
        made = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        lines = [line for line in made.stdout.splitlines() if not line.startswith("figure: ")]
        (_MADE / f"{path.stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]))
    else:
        write(Path(sys.argv[1]), Path(sys.argv[2]))
