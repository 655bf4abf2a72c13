"""Run the short examples, and write a page for each example and one with thumbnails.

    python docs/gallery.py examples docs/pages/reference

Every file with a ``__main__`` gets a page, whose text is its docstring. The examples in
``gallery/``, a few others that take seconds, and a small version of the notebook are run, and
their pages show the printed output and the figures. Outputs of unchanged examples are cached in
``build/gallery``. An example that fails makes the build fail.
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
CACHE = ROOT / "build" / "gallery"
ALSO_RUN = ("compose_drf", "digits")
MAIN = ("main_job", "drf_mvsa")
FIGURES = {"drf_mvsa": "main-job.png"}  # from a recorded run, which takes minutes
SMALL = {"posts": 400, "epochs": 6, "seeds": (0,)}  # settings for the notebook
ACRONYMS = ("clip", "ddp", "drf", "fsdp", "mvsa", "onnx", "ood")
HEAD = """# Examples and notebook

Each example runs on a CPU. It generates its own data, or, like `predict`, `report` and
`export_run`, uses a run of the main job, `drf_mvsa`. The outputs on these pages were made when
the site was built, except for the figure of the main job, which is from a recorded run.
"""


def write(folder: Path, target: Path, cache: Path = CACHE) -> None:
    """Write ``examples.md`` with a card per example, and ``examples/`` with a page per example."""
    pages = target / "examples"
    pages.mkdir(parents=True, exist_ok=True)
    notebooks = sorted(folder.glob("*.ipynb"))
    paths = [*notebooks, *filter(is_program, folder.rglob("*.py"))]
    # Order: the main job, examples with a figure, the others.
    paths.sort(key=lambda path: (path.stem not in MAIN, -len(path.parts), path.name))
    short = [path for path in paths if path in notebooks or path.parent.name == "gallery"]
    short += [path for path in paths if path.stem in ALSO_RUN]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ran = dict(zip(short, pool.map(lambda path: run(path, folder, cache), short), strict=True))
    cards = []
    for path in paths:
        pictures = sorted(ran[path].glob("*.png")) if path in ran else []
        for picture in pictures:
            shutil.copy(picture, pages)
        figure = max(pictures, key=lambda picture: picture.stat().st_size).name if pictures else ""
        if path.stem in FIGURES:
            figure = f"../../assets/{FIGURES[path.stem]}"
        if path in notebooks:
            shutil.copy(ran[path] / f"{path.stem}.md", pages)
        else:
            printed = (ran[path] / "printed.txt").read_text("utf-8") if path in ran else ""
            (pages / f"{path.stem}.md").write_text(page(path, folder, figure, printed), "utf-8")
        cards.append(card(path, figure))
    text = "\n".join([HEAD, '<div class="cards" markdown>\n', *cards, "</div>"])
    (target / "examples.md").write_text(text + "\n", encoding="utf-8")


def is_program(path: Path) -> bool:
    """Return whether a file is a program."""
    return "__main__" in path.read_text(encoding="utf-8") and not path.name.startswith("_")


def run(path: Path, folder: Path, cache: Path) -> Path:
    """Run an example unless it is cached; return the folder of its figures and its output."""
    entry = cache / f"{path.stem}-{fingerprint(path, folder)}"
    if entry.is_dir():
        return entry
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch, "result")
        result.mkdir()
        if path.suffix == ".ipynb":
            for name, content in outputs(execute(path, Path(scratch), SMALL), path.stem).items():
                (result / name).write_bytes(content)
        else:
            paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "PYTHONPATH": paths}
            command = [sys.executable, str(path.resolve())]
            done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{path} fails:\n{done.stderr}")
            lines = [line for line in done.stdout.splitlines() if not line.startswith("figure: ")]
            (result / "printed.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            for picture in Path(scratch).glob("runs/*.png"):
                shutil.copy(picture, result)
        for old in cache.glob(f"{path.stem}-*"):
            shutil.rmtree(old)
        partial = Path(shutil.copytree(result, cache / f".{entry.name}", dirs_exist_ok=True))
        partial.rename(entry)
    return entry


def fingerprint(path: Path, folder: Path) -> str:
    """Return a digest of an example, all that it may import, torch, and this script."""
    helpers = [p for p in folder.rglob("*.py") if not is_program(p) or p.stem in ALSO_RUN]
    package = sorted((ROOT / "robustfusion").rglob("*.py"))
    digest = hashlib.sha256(version("torch").encode())
    for file in [path, *sorted(helpers), *package, Path(__file__)]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def execute(path: Path, scratch: Path, settings: dict[str, Any]) -> Any:
    """Run a notebook with other settings, but keep the stored settings in its text."""
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    from traitlets.config import Config

    read: Any = nbformat.read
    notebook = read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    stored = cell.source
    values = {**settings, "output_dir": str(scratch / "run")}
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    cell.source = "\n".join([stored, *lines, "output_dir = Path(output_dir)"])
    resources = {"metadata": {"path": str(path.parent)}}
    # The kernel opens no port, and runs in this interpreter rather than an installed kernel.
    config = Config(KernelManager={"transport": "ipc", "ip": str(scratch / "kernel")})
    client = NotebookClient(notebook, config=config, kernel_name="python3", resources=resources)
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    client.execute()
    cell.source = stored
    return notebook


def outputs(notebook: Any, name: str) -> dict[str, bytes]:
    """Turn an executed notebook into a page and its figures."""
    files: dict[str, bytes] = {}
    parts = []
    for cell in notebook.cells:
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
    note = f"The notebook is `examples/{name}.ipynb`; the outputs below were made with {small}."
    text = "\n\n".join([parts[0], note, *parts[1:]]) + "\n"
    return {**files, f"{name}.md": text.encode()}


def title(path: Path) -> str:
    """Turn the name of a file into a title."""
    words = path.stem.split("_")
    text = " ".join(word.upper() if word in ACRONYMS else word for word in words)
    return text[0].upper() + text[1:]


def describe(path: Path) -> tuple[str, str]:
    """Return the first sentence of the docstring of an example, and the rest."""
    if path.suffix == ".ipynb":
        return "The main job, cell by cell.", ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    first, _, rest = text.partition("\n\n")
    # In reStructuredText a block of code follows two colons.
    return " ".join(first.split()), re.sub(r"::$", ":", rest, flags=re.MULTILINE)


def card(path: Path, figure: str) -> str:
    """Return a card with the figure of an example, its title and its first sentence."""
    name = "Main job, notebook" if path.suffix == ".ipynb" else title(path)
    # The figure is in the folder of the pages, or its path is relative to them.
    source = figure.removeprefix("../") if figure.startswith("../") else f"examples/{figure}"
    image = f"![]({source})\n\n" if figure else ""
    text = f"{image}[**{name}**](examples/{path.stem}.md)\n\n{describe(path)[0]}"
    return f'<div class="card" markdown>\n\n{text}\n\n</div>\n'


def page(path: Path, folder: Path, figure: str, printed: str) -> str:
    """Return the page of an example: text, figure, printed output and code."""
    first, rest = describe(path)
    parts = [f"# {title(path)}", first, rest]
    if figure:
        parts.append(f"![{first}]({figure})")
    if printed:
        parts += ["It prints:", _fenced(printed, "text")]
    parts += [f"## {path.relative_to(folder).as_posix()}", _fenced(path.read_text("utf-8"))]
    return "\n\n".join(parts) + "\n"


def _fenced(text: str, language: str = "python") -> str:
    # With braces, the tests of the pages do not run the block.
    return f"```` {{ .{language} }}\n{text.rstrip()}\n````"


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
