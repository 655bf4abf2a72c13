"""Check a built site: every link and anchor leads somewhere, and no page fetches from outside.

Usage: ``python docs/check_site.py site``. MkDocs checks the links of Markdown and Sphinx its own;
this looks at the pages as a browser gets them, and at the inventory, so nothing falls between.
"""

import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

_FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}
_HOST = "site:"  # stands for the root of the site


class Page(HTMLParser):
    """Anchors, links and fetched addresses of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        for name, value in given.items():
            if (tag, name) in _FETCHED or (tag == "link" and name == "href" and _loads(given)):
                self.fetched.append(value)
            elif name in ("href", "src"):
                self.links.append(value)


def _loads(link: dict[str, str]) -> bool:
    """Whether a browser fetches a ``<link>`` by itself."""
    return link.get("rel", "") in ("stylesheet", "icon", "preload", "preconnect", "dns-prefetch")


def check(site: Path) -> list[str]:
    """Return what is wrong, one line each."""
    pages = {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    # The page for unknown addresses is served anywhere, so its links are absolute.
    found = [
        problem
        for name, page in pages.items()
        if name != "404.html"
        for problem in _page_problems(site, name, page, pages)
    ]
    return found + _inventory_problems(site, pages)


def _page_problems(site: Path, name: str, page: Page, pages: dict[str, Page]) -> list[str]:
    found = [f"{name} fetches {address}" for address in page.fetched if urlsplit(address).netloc]
    for address in page.links + page.fetched:
        if urlsplit(address).scheme or urlsplit(address).netloc:
            continue
        if reason := _broken(site, name, address, pages):
            found.append(f"{name} links to {address}: {reason}")
    return found


def _broken(site: Path, name: str, address: str, pages: dict[str, Page]) -> str:
    parts = urlsplit(urljoin(f"/{name}", address))
    target, anchor = unquote(parts.path).lstrip("/"), unquote(parts.fragment)
    if target.endswith("/") or not target:
        target += "index.html"
    if not (site / target).is_file():
        return "no such file"
    if anchor and not anchor.startswith("__") and target in pages:
        return "" if anchor in pages[target].anchors else "no such anchor"
    return ""


def _inventory_problems(site: Path, pages: dict[str, Page]) -> list[str]:
    path = site / "objects.inv"
    if not path.is_file():
        return ["objects.inv is not there"]
    found = []
    for line in inventory(path):
        name, address = line.split()[0], line.split()[3].replace("$", line.split()[0])
        if reason := _broken(site, "", address, pages):
            found.append(f"objects.inv places {name} at {address}: {reason}")
    return found


def inventory(path: Path) -> list[str]:
    """Return the lines of a Sphinx inventory: name, kind, priority, address, title."""
    content = path.read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return [line for line in lines if line.split()[1].startswith("py:")]


def main() -> int:
    """Print what is wrong, and fail if anything is."""
    site = Path(sys.argv[1])
    problems = check(site)
    for problem in problems:
        print(problem, file=sys.stderr)
    count = len(list(site.rglob("*.html")))
    print(f"{count} pages, {len(problems)} problems")
    return min(len(problems), 1)


if __name__ == "__main__":
    sys.exit(main())
