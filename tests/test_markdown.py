"""Every python block of the README and of the pages runs."""

import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in its exporter
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sybil = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path=str(page.parent))
    document = sybil.parse(page)
    monkeypatch.chdir(tmp_path)  # whatever a block writes
    # As many as there are fences, so that a page whose blocks are not found cannot pass.
    assert len(list(document)) >= page.read_text().count("\n```python\n")
    for example in document:  # one namespace: a block sees what those before it defined
        example.evaluate()


def test_every_block_of_choosing_parts_runs_by_itself() -> None:
    text = (ROOT / "docs" / "pages" / "choosing-parts.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        exec(block, {})
