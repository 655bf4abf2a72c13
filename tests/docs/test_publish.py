"""Sites of several versions lie beside each other, and the newest is the one that opens."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import publish


def make_site(folder: Path, text: str) -> Path:
    (folder / "guides").mkdir(parents=True)
    for page in (folder / "index.html", folder / "guides" / "own.html"):
        page.write_text(f'<script>{{"base": ".", "version": null}}</script>{text}')
    return folder


def test_versions_lie_beside_each_other_and_the_newest_opens(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for version in ("0.9.0", "0.10.0", "0.2.0"):
        site = make_site(tmp_path / f"site-{version}", f"this is {version}")
        versions = publish.publish(site, pages, version)
    assert versions == ["0.10.0", "0.9.0", "0.2.0"]
    listed = json.loads((pages / "versions.json").read_text())
    assert [(entry["version"], entry["aliases"]) for entry in listed] == [
        ("0.10.0", ["latest"]),
        ("0.9.0", []),
        ("0.2.0", []),
    ]
    assert 'url=0.10.0/index.html"' in (pages / "index.html").read_text()
    assert 'url=../0.10.0/index.html"' in (pages / "latest" / "index.html").read_text()
    for version in versions:
        page = (pages / version / "guides" / "own.html").read_text()
        assert f"this is {version}" in page
        assert '"version": {"provider": "mike"}' in page


def test_a_version_is_replaced_and_nothing_else_is_touched(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "CNAME").write_text("example.org")
    publish.publish(make_site(tmp_path / "old", "old"), pages, "1.0")
    (pages / "1.0" / "gone.html").touch()
    publish.publish(make_site(tmp_path / "new", "new"), pages, "1.0")
    assert "new" in (pages / "1.0" / "index.html").read_text()
    assert not (pages / "1.0" / "gone.html").exists()
    assert (pages / "CNAME").read_text() == "example.org"
    for version in ("../x", "latest", ""):
        with pytest.raises(ValueError, match="numbers and dots"):
            publish.publish(tmp_path / "new", pages, version)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="theme has changed"):
        publish.publish(tmp_path / "other", pages, "1.1")
