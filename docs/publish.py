"""Add a built site to a folder with one site per version, for the version switcher of the theme.

    python docs/publish.py site pages 0.2.0

copies ``site`` to ``pages/0.2.0``, lists all versions in ``pages/versions.json``, and redirects
``pages/index.html`` and ``pages/latest`` to the newest one. An existing version is replaced. The
site of ``docs/build.sh`` itself has no switcher, since a site opened from disk has no such list.
"""

import json
import re
import shutil
import sys
from pathlib import Path

OFF, ON = '"version": null', '"version": {"provider": "mike"}'  # in the theme's configuration
FORWARD = """<!doctype html>
<meta charset="utf-8">
<title>robustfusion</title>
<meta http-equiv="refresh" content="0; url={target}">
<a href="{target}">robustfusion {version}</a>
"""


def publish(site: Path, pages: Path, version: str) -> list[str]:
    """Add one version, and return all of them, newest first."""
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise ValueError(f"version must be numbers and dots, got {version!r}")
    target = pages / version
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(site, target)
    switched = 0
    for page in target.rglob("*.html"):
        text = page.read_text()
        switched += OFF in text
        page.write_text(text.replace(OFF, ON))
    if not switched:
        raise ValueError(f"{site} has no page with {OFF}: the theme has changed")
    names = [path.name for path in pages.iterdir() if re.fullmatch(r"\d+(\.\d+)*", path.name)]
    versions = sorted(names, key=lambda name: [int(part) for part in name.split(".")])[::-1]
    listed = [
        {"version": v, "title": v, "aliases": ["latest"] * (not i)} for i, v in enumerate(versions)
    ]
    (pages / "versions.json").write_text(json.dumps(listed, indent=1) + "\n")
    for page, prefix in ((pages / "index.html", ""), (pages / "latest" / "index.html", "../")):
        page.parent.mkdir(exist_ok=True)
        page.write_text(
            FORWARD.format(target=f"{prefix}{versions[0]}/index.html", version=versions[0])
        )
    (pages / ".nojekyll").touch()  # otherwise GitHub ignores names that begin with an underscore
    return versions


if __name__ == "__main__":
    print(*publish(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
