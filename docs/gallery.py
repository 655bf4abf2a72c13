"""Write the page of examples from the examples themselves: nothing to keep in step by hand.

Usage: ``python docs/gallery.py examples docs/pages/reference/examples.md``. A file is shown if it
can be run, that is, if it has a ``__main__``; its docstring becomes the text. The figure that it
draws is shown if ``docs/pages/assets/gallery`` has it.
"""

import ast
import re
import sys
from pathlib import Path

_ACRONYMS = ("clip", "ddp", "drf", "mvsa", "onnx", "ood")
HEAD = """# Examples

The files of `examples/`. Each runs as it is, on a CPU, with data it makes itself. A figure is what
the file draws, with `--output-dir docs/pages/assets/gallery`.
"""
_FIGURES = Path(__file__).parent / "pages" / "assets" / "gallery"


def page(folder: Path) -> str:
    """Return the page, one section a file, the short ones of the gallery first."""
    paths = sorted(folder.rglob("*.py"), key=lambda path: (-len(path.parts), path.name))
    return "\n".join([HEAD, *(section(path, folder) for path in paths if is_program(path))])


def is_program(path: Path) -> bool:
    """Whether a file can be run."""
    return "__main__" in path.read_text(encoding="utf-8") and not path.name.startswith("_")


def section(path: Path, folder: Path) -> str:
    """Return the title, the text and the folded code of one example."""
    source = path.read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or path.stem
    first, _, rest = text.partition("\n\n")
    words = path.stem.lstrip("0123456789_").split("_")
    title = " ".join(word.upper() if word in _ACRONYMS else word for word in words)
    title = title[0].upper() + title[1:]
    code = "\n".join(f"    {line}".rstrip() for line in source.splitlines())
    name = path.relative_to(folder).as_posix()
    folded = f'??? example "{name}"\n\n    ``` {{ .python }}\n{code}\n    ```\n'
    # Two colons before a block of code are reStructuredText.
    rest = re.sub(r"::$", ":", rest, flags=re.MULTILINE)
    return f"## {title}\n\n{first}\n\n{rest}\n\n{figure(path.stem, first)}{folded}"


def figure(stem: str, words: str) -> str:
    """Return the image of an example, or nothing."""
    if not (_FIGURES / f"{stem}.png").is_file():
        return ""
    words = " ".join(words.split())
    return f"![{words}](../assets/gallery/{stem}.png)\n\n"


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.write_text(page(Path(sys.argv[1])), encoding="utf-8")
