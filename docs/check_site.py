"""Check a built site: no link or anchor is broken, and no page loads anything from other hosts.

Usage: ``python docs/check_site.py site``. MkDocs checks the links of its Markdown and Sphinx those
of the reference; this script checks the final HTML pages and the inventory.
"""

import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

_FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}
_HOST = "site:"  # the root of the site


class Page(HTMLParser):
    """Anchors, links and fetched addresses of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        for name, value in values.items():
            if (tag, name) in _FETCHED or (tag == "link" and name == "href" and _loads(values)):
                self.fetched.append(value)
            elif name in ("href", "src"):
                self.links.append(value)


def _loads(link: dict[str, str]) -> bool:
    """Return whether a browser loads the target of a ``<link>``."""
    return link.get("rel", "") in ("stylesheet", "icon", "preload", "preconnect", "dns-prefetch")


def check(site: Path) -> list[str]:
    """Return the problems, one line each."""
    pages = {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    # The page for unknown addresses has absolute links, since it is served for any address.
    problems = [
        problem
        for name, page in pages.items()
        if name != "404.html"
        for problem in _page_problems(site, name, page, pages)
    ]
    return problems + _inventory_problems(site, pages)


def _page_problems(site: Path, name: str, page: Page, pages: dict[str, Page]) -> list[str]:
    problems = [
        f"{name} fetches {address}" for address in page.fetched if urlsplit(address).netloc
    ]
    for address in page.links + page.fetched:
        if urlsplit(address).scheme or urlsplit(address).netloc:
            continue
        if reason := _broken(site, name, address, pages):
            problems.append(f"{name} links to {address}: {reason}")
    return problems


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
        return ["objects.inv is missing"]
    problems = []
    for line in inventory(path):
        name, address = line.split()[0], line.split()[3].replace("$", line.split()[0])
        if reason := _broken(site, "", address, pages):
            problems.append(f"objects.inv places {name} at {address}: {reason}")
    return problems


def inventory(path: Path) -> list[str]:
    """Return the lines of a Sphinx inventory: name, kind, priority, address, title."""
    content = path.read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return [line for line in lines if line.split()[1].startswith("py:")]


def main() -> int:
    """Print the problems; return 1 if there are any."""
    site = Path(sys.argv[1])
    problems = check(site)
    for problem in problems:
        print(problem, file=sys.stderr)
    count = len(list(site.rglob("*.html")))
    print(f"{count} pages, {len(problems)} problems")
    return min(len(problems), 1)


if __name__ == "__main__":
    sys.exit(main())
