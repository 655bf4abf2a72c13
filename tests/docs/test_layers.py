"""The architecture page shows the layers that tests/test_api.py checks, and every module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import layers

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_table() -> None:
    text = layers.PAGE.read_text(encoding="utf-8")
    assert layers.page(text) == text


def test_every_module_has_one_layer() -> None:
    names = [name for _, modules in layers.LAYERS for name in modules] + layers.TOOLS
    package = ROOT / "robustfusion"
    files = {path.stem for path in package.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(names) == sorted(files | folders)
