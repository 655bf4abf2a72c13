"""A Sphinx builder that writes Markdown pages for Material for MkDocs.

Sphinx reads docstrings, resolves references and writes the inventory. This builder writes every
page as a ``.md`` file: titles and names of members become Markdown headings, for the table of
contents and the search of Material, and the rest is the HTML of Sphinx.
"""

import html
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.writers.html5 import HTML5Translator

_ROOT = Path(__file__).parents[2]


class MaterialTranslator(HTML5Translator):
    """Writes HTML without nested sections and descriptions, with Markdown headings."""

    def __init__(self, document: nodes.document, builder: Any) -> None:
        super().__init__(document, builder)
        self.described = 0  # depth of nested descriptions: 1 in a class, 2 in its methods
        self.page_title = ""

    def heading(self, level: int, text: str, anchor: str) -> None:
        """Write a Markdown heading."""
        self.body.append(f"\n\n{'#' * level} {text} {{ #{anchor} }}\n\n")

    def visit_section(self, node: nodes.Element) -> None:
        self.section_level += 1

    def depart_section(self, node: nodes.Element) -> None:
        self.section_level -= 1

    def visit_title(self, node: nodes.Element) -> None:
        if not isinstance(node.parent, nodes.section):
            super().visit_title(node)
            return
        text = "".join(
            f"`{part.astext()}`" if isinstance(part, nodes.literal) else html.escape(part.astext())
            for part in node.children
        )
        if self.section_level == 1:
            self.page_title = node.astext()
        self.heading(self.section_level, text, node.parent["ids"][0])
        raise nodes.SkipNode

    def visit_desc(self, node: nodes.Element) -> None:
        self.described += 1

    def depart_desc(self, node: nodes.Element) -> None:
        self.described -= 1

    def visit_desc_signature(self, node: nodes.Element) -> None:
        anchor = node["ids"][0] if node["ids"] else ""
        name = node.get("fullname", "").rpartition(".")[2]
        identity = f' id="{anchor}"' if anchor else ""
        if anchor and name != self.page_title and self.described <= 2:
            self.heading(self.section_level + self.described, f"`{name}`", anchor)
            identity = ""  # the heading has it
        kind = node.parent["objtype"]
        self.body.append(f'<div class="signature {kind}"{identity} data-search-exclude><code>')
        self.protect_literal_text += 1

    def depart_desc_signature(self, node: nodes.Element) -> None:
        self.protect_literal_text -= 1
        self.body.append("</code></div>\n")

    def visit_desc_content(self, node: nodes.Element) -> None:
        pass

    def depart_desc_content(self, node: nodes.Element) -> None:
        self.body.append("\n")

    def visit_literal_block(self, node: nodes.Element) -> None:
        """Write a block as ``<pre><code>``, for which Material adds a copy button."""
        language = node.get("language", "python")
        if ">>>" in node.rawsource:
            language = "pycon"
        block = self.highlighter.highlight_block(node.rawsource, language, location=node)
        body = block.partition("<pre>")[2].rpartition("</pre>")[0].removeprefix("<span></span>")
        # A blank line could end the block of raw HTML.
        body = body.rstrip("\n").replace("\n\n", "\n<span></span>\n")
        self.body.append(f'<div class="highlight"><pre><code>{body}\n</code></pre></div>\n')
        raise nodes.SkipNode

    visit_doctest_block = visit_literal_block


def _title(text: str) -> str:
    """Return the title of a Markdown page, up to a colon."""
    match = re.search("^# ([^:\n]*)", text, re.MULTILINE)
    return match[1] if match else ""


def _best(worth: dict[Path, int], count: int = 4) -> list[Path]:
    """Return the pages of highest worth, without those of none; ties are in navigation order."""
    order = (_ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = sorted(
        (path for path in worth if worth[path]),
        key=lambda path: (-worth[path], order.find(path.name), path.name),
    )
    return pages[:count]


def _sources(files: list[str]) -> str:
    """Return a section with the source files, folded, which search ignores."""
    if not files:
        return ""
    blocks = [
        f'??? example "{file}"\n\n    ```` {{ .python }}\n    --8<-- "{file}"\n    ````\n'
        for file in files
    ]
    return "\n\n".join(["\n\n## Source { #source data-search-exclude }", *blocks])


class MaterialBuilder(StandaloneHTMLBuilder):
    """Write ``<docname>.md`` for each page, and ``objects.inv`` for the site."""

    name = "material"
    out_suffix = ".md"
    default_translator_class = MaterialTranslator
    search = False
    copysource = False

    def handle_page(
        self,
        pagename: str,
        addctx: dict[str, Any],
        templatename: str = "page.html",
        outfilename: Any = None,
        event_arg: Any = None,
    ) -> None:
        if "body" not in addctx:
            return  # it is a general index or the like
        path = Path(self.outdir) / f"{pagename}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        heading, _, rest = addctx["body"].lstrip().partition("\n")
        links, files = self.links(pagename)
        text = f"{heading}\n\n{links}\n\n{rest}{_sources(files)}"
        path.write_text(text, encoding="utf-8")

    def links(self, pagename: str) -> tuple[str, list[str]]:
        """Return a line with links to guides, examples and source of a page, and its files."""
        objects = self.env.domains.python_domain.objects
        named = {
            name: entry.objtype
            for name, entry in objects.items()
            if entry.docname == pagename and entry.objtype in ("class", "function", "module")
        }
        words = re.compile("|".join(rf"\b{name.rpartition('.')[2]}\b" for name in named) or "(?!)")
        stem, files = pagename.rpartition("/")[2], {}
        link = re.compile(rf"reference/{stem}\.md")

        def guides(names: str) -> list[str]:
            pages = {p: p.read_text(encoding="utf-8") for p in (_ROOT / "docs/pages").glob(names)}
            # A link counts more than mentions, of which many are no better than a few.
            worth = {
                p: 5 * min(len(link.findall(t)), 2) + min(len(words.findall(t)), 3)
                for p, t in pages.items()
            }
            return [
                f"[{_title(pages[p])}](../{p.relative_to(_ROOT / 'docs/pages').as_posix()})"
                for p in _best(worth)
            ]

        programs = {p: p.read_text("utf-8") for p in (_ROOT / "examples").rglob("[!_]*.py")}
        worth = {p: len(words.findall(t)) for p, t in programs.items() if "__main__" in t}
        examples = [f"[{path.stem}](examples/{path.stem}.md)" for path in _best(worth)]
        for name, kind in named.items():
            owner, _, attribute = name.rpartition(".")
            module = (
                name if kind == "module" else getattr(import_module(owner), attribute).__module__
            )
            file = f"{module.replace('.', '/')}.py"
            if (_ROOT / file).is_file():
                files[file] = None
        # Prefer guides; then the page about choosing; then pages of background.
        pages = ("guides/*.md", "choosing-parts.md", "about/comparison.md", "about/method.md")
        links = next(filter(None, map(guides, pages)), [])
        parts = {
            "Guide": links,
            "Example": examples,
            "Source": [f"[{file}](#source)" for file in files],
        }
        line = " · ".join(f"{kind}: {', '.join(links)}" for kind, links in parts.items() if links)
        return (f"{line}\n{{ .links }}" if line else ""), list(files)

    def finish(self) -> None:
        self.dump_inventory()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the builder."""
    app.add_builder(MaterialBuilder)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
