"""Run the short examples, and write a page for each example and one of thumbnails.

    python docs/gallery.py examples docs/pages/reference

A file is shown if it can be run, that is, if it has a ``__main__``; its docstring becomes the
text. Those of ``gallery/``, a few more that take seconds, and a small version of the notebook are
run, and their pages show what they print and draw. What an unchanged one made is kept in
``build/gallery``. One that fails fails the build.
"""

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "gallery"
ALSO_RUN = ("compose_drf", "digits")
MAIN = ("main_job", "drf_mvsa")
FIGURES = {"drf_mvsa": "main-job.png"}  # a run of minutes, recorded: README says at which commit
SMALL = {"posts": 400, "epochs": 6, "seeds": (0,)}  # of the notebook
ACRONYMS = ("clip", "ddp", "drf", "fsdp", "mvsa", "onnx", "ood")
HEAD = """# Examples and notebook

Each runs on a CPU, with data that it makes itself or, as `predict`, `report` and `export_run`,
with a run of the main job, `drf_mvsa`. What the pages show as printed or drawn was made when this
site was built; but the main job takes minutes: its picture is of a recorded run.
"""


def write(folder: Path, target: Path, kept: Path = KEPT) -> None:
    """Write ``examples.md``, with a card an example, and ``examples/`` with a page for each."""
    pages = target / "examples"
    pages.mkdir(parents=True, exist_ok=True)
    notebooks = sorted(folder.glob("*.ipynb"))
    paths = [*notebooks, *filter(is_program, folder.rglob("*.py"))]
    # The main job, then what has a picture, then the others.
    paths.sort(key=lambda path: (path.stem not in MAIN, -len(path.parts), path.name))
    short = [path for path in paths if path in notebooks or path.parent.name == "gallery"]
    short += [path for path in paths if path.stem in ALSO_RUN]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(short, pool.map(lambda path: run(path, folder, kept), short), strict=True))
    cards = []
    for path in paths:
        pictures = sorted(made[path].glob("*.png")) if path in made else []
        for picture in pictures:
            shutil.copy(picture, pages)
        figure = max(pictures, key=lambda picture: picture.stat().st_size).name if pictures else ""
        if path.stem in FIGURES:
            figure = f"../../assets/{FIGURES[path.stem]}"
        if path in notebooks:
            shutil.copy(made[path] / f"{path.stem}.md", pages)
        else:
            printed = (made[path] / "printed.txt").read_text("utf-8") if path in made else ""
            (pages / f"{path.stem}.md").write_text(page(path, folder, figure, printed), "utf-8")
        cards.append(card(path, figure))
    text = "\n".join([HEAD, '<div class="cards" markdown>\n', *cards, "</div>"])
    (target / "examples.md").write_text(text + "\n", encoding="utf-8")


def is_program(path: Path) -> bool:
    """Whether a file can be run."""
    return "__main__" in path.read_text(encoding="utf-8") and not path.name.startswith("_")


def run(path: Path, folder: Path, kept: Path) -> Path:
    """Run an example unless it has been; return where its figures and what it printed lie."""
    place = kept / f"{path.stem}-{fingerprint(path, folder)}"
    if place.is_dir():
        return place
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        if path.suffix == ".ipynb":
            for name, content in outputs(execute(path, Path(scratch), SMALL), path.stem).items():
                (made / name).write_bytes(content)
        else:
            paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "PYTHONPATH": paths}
            command = [sys.executable, str(path.resolve())]
            ran = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
            if ran.returncode:
                raise SystemExit(f"{path} fails:\n{ran.stderr}")
            lines = [line for line in ran.stdout.splitlines() if not line.startswith("figure: ")]
            (made / "printed.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            for picture in Path(scratch).glob("runs/*.png"):
                shutil.copy(picture, made)
        for old in kept.glob(f"{path.stem}-*"):
            shutil.rmtree(old)
        beside = Path(shutil.copytree(made, kept / f".{place.name}", dirs_exist_ok=True))
        beside.rename(place)
    return place


def fingerprint(path: Path, folder: Path) -> str:
    """Name what an example shows: its file, what it may import, torch, and this script."""
    helpers = [p for p in folder.rglob("*.py") if not is_program(p) or p.stem in ALSO_RUN]
    package = sorted((ROOT / "robustfusion").rglob("*.py"))
    digest = hashlib.sha256(version("torch").encode())
    for file in [path, *sorted(helpers), *package, Path(__file__)]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def execute(path: Path, scratch: Path, settings: dict[str, Any]) -> Any:
    """Run a notebook with other settings, which it does not show."""
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    from traitlets.config import Config

    read: Any = nbformat.read
    made = read(path, as_version=4)
    (cell,) = [cell for cell in made.cells if "parameters" in cell.metadata.get("tags", ())]
    shown = cell.source
    given = {**settings, "output_dir": str(scratch / "run")}
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    cell.source = "\n".join([shown, *lines, "output_dir = Path(output_dir)"])
    resources = {"metadata": {"path": str(path.parent)}}
    # No port is opened, and the kernel is none that is installed but one of this interpreter.
    config = Config(KernelManager={"transport": "ipc", "ip": str(scratch / "kernel")})
    client = NotebookClient(made, config=config, kernel_name="python3", resources=resources)
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    client.execute()
    cell.source = shown
    return made


def outputs(made: Any, name: str) -> dict[str, bytes]:
    """Turn a notebook that was run into a page and its pictures."""
    files: dict[str, bytes] = {}
    parts = []
    for cell in made.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else _fenced(cell.source))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                files[f"{name}-{len(files) + 1}.png"] = base64.b64decode(data["image/png"])
                parts.append(f"![]({list(files)[-1]})")
            elif "text/markdown" in data:
                parts.append(data["text/markdown"])
            elif output.get("name") == "stdout":
                parts.append(_fenced(output.text, "text"))
    small = ", ".join(f"`{key} = {value}`" for key, value in SMALL.items())
    note = f"The notebook is `examples/{name}.ipynb`; what it shows here was made with {small}."
    text = "\n\n".join([parts[0], note, *parts[1:]]) + "\n"
    return {**files, f"{name}.md": text.encode()}


def title(path: Path) -> str:
    """The name of a file in words."""
    words = path.stem.split("_")
    text = " ".join(word.upper() if word in ACRONYMS else word for word in words)
    return text[0].upper() + text[1:]


def describe(path: Path) -> tuple[str, str]:
    """The first sentence of an example, and the rest of what it says of itself."""
    if path.suffix == ".ipynb":
        return "The main job, cell by cell.", ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    first, _, rest = text.partition("\n\n")
    # Two colons before a block of code are reStructuredText.
    return " ".join(first.split()), re.sub(r"::$", ":", rest, flags=re.MULTILINE)


def card(path: Path, figure: str) -> str:
    """The thumbnail of an example, its name and its first sentence."""
    name = "Main job, notebook" if path.suffix == ".ipynb" else title(path)
    # Beside the pages, or at a place seen from them.
    source = figure.removeprefix("../") if figure.startswith("../") else f"examples/{figure}"
    image = f"![]({source})\n\n" if figure else ""
    text = f"{image}[**{name}**](examples/{path.stem}.md)\n\n{describe(path)[0]}"
    return f'<div class="card" markdown>\n\n{text}\n\n</div>\n'


def page(path: Path, folder: Path, figure: str, printed: str) -> str:
    """Text, figure, what is printed, and the code."""
    first, rest = describe(path)
    parts = [f"# {title(path)}", first, rest]
    if figure:
        parts.append(f"![{first}]({figure})")
    if printed:
        parts += ["It prints:", _fenced(printed, "text")]
    parts += [f"## {path.relative_to(folder).as_posix()}", _fenced(path.read_text("utf-8"))]
    return "\n\n".join(parts) + "\n"


def _fenced(text: str, language: str = "python") -> str:
    # With braces: only what is shown, not what tests of the pages run.
    return f"```` {{ .{language} }}\n{text.rstrip()}\n````"


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
