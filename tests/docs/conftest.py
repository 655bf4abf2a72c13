"""The site, built once for all tests here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pages of this checkout in a copy, so that no other run is in the way."""
    copy = tmp_path_factory.mktemp("docs")
    for name in ("docs", "robustfusion", "examples", "CHANGELOG.md", "mkdocs.yml"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    # What examples that have not changed have drawn and printed is kept.
    kept = ROOT / "build" / "gallery"
    kept.mkdir(parents=True, exist_ok=True)
    (copy / "build").mkdir()
    (copy / "build" / "gallery").symlink_to(kept)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    built = subprocess.run(
        [copy / "docs" / "build.sh"],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(copy), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-4000:]
    return copy / "site"
