"""The notebook of the main job: it runs from top to bottom, and is stored without outputs."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import gallery

nbformat: Any = pytest.importorskip("nbformat")
for _name in ("nbclient", "ipykernel", "tqdm", "safetensors", "matplotlib", "PIL"):
    pytest.importorskip(_name)

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "main_job.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_outputs() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own event loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = gallery.execute(NOTEBOOK, tmp_path, {"posts": 60, "epochs": 1, "seeds": (0,)})
    shown = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in shown if o.get("name") == "stderr" and "Traceback" in o.text]
    tables = [o.data["text/markdown"] for o in shown if "text/markdown" in o.get("data", {})]
    assert "| modalities | rows | temperature |" in tables[0]
    assert "| condition | DRF | concatenation + modality dropout |" in tables[1]
    printed = "".join(o.text for o in shown if o.get("name") == "stdout")
    for name in ("image", "text"):
        assert f"{name}, intact: alarm for " in printed
        assert f"{name}, corrupted: alarm for " in printed
    pictures = [o for o in shown if "image/png" in o.get("data", {})]
    assert len(pictures) >= 5  # three posts, the comparison, the qualities
    assert (tmp_path / "run" / "table.md").exists()
