"""Copy the search index into a script, which a page opened from disk can load.

Usage: ``python docs/search_from_disk.py site``. Material loads ``search/search_index.js`` when the
address begins with ``file:``; ``assets/search-from-disk.js`` does the rest.
"""

import sys
from pathlib import Path


def write(site: Path) -> Path:
    """Write ``search/search_index.js`` into the folder of the index that MkDocs wrote."""
    index = site / "search" / "search_index.json"
    script = index.with_suffix(".js")
    script.write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")
    return script


if __name__ == "__main__":
    write(Path(sys.argv[1]))
