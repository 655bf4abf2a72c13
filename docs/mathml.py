"""Render formulas as MathML when the site is built, for Sphinx and for Python-Markdown.

A page then needs no script to show them. Sphinx loads this module as an extension
and renders ``:math:`` and ``.. math::`` with it; MkDocs loads it as a Markdown extension, which
reads ``$inline$`` and ``$$`` blocks. A command that cannot be rendered fails the build.
"""

import re
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from docutils import nodes
from latex2mathml.converter import convert
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

_COMMAND = re.compile(r"\\[A-Za-z]+")


def to_mathml(latex: str, *, display: bool = False) -> str:
    """Return the MathML of a LaTeX formula.

    Raises:
        ValueError: If it holds a command that is not known.
    """
    source = " ".join(latex.split())
    mathml = convert(source, display="block" if display else "inline")
    if unknown := _COMMAND.search(mathml):
        raise ValueError(f"cannot render {unknown[0]} in the formula {source}")
    mathml = _norm_bars(source, mathml)
    # Search results should not quote formulas letter by letter.
    mathml = mathml.replace("<math ", "<math data-search-exclude ", 1)
    # Bars need no space inside; a line over a formula is as wide as the formula.
    bar = '<mo stretchy="false">&#x0007C;</mo>'
    mathml = mathml.replace(bar, bar.replace(" ", ' lspace="0" rspace="0" ', 1))
    return mathml.replace('<mo accent="true">&#x02015;</mo>', '<mo stretchy="true">&#x0203E;</mo>')


def _norm_bars(source: str, mathml: str) -> str:
    """Mark each bar of a norm as opening or closing, so that browsers set it without space."""
    sides = re.findall(r"\\([lr])Vert", source)
    parts = mathml.split("<mo>&#x02016;</mo>")
    if len(parts) != len(sides) + 1:
        return mathml  # there are other bars, too: leave all unchanged
    forms = ["prefix" if side == "l" else "postfix" for side in sides]
    bars = [f'<mo form="{form}" stretchy="false">&#x02016;</mo>' for form in forms]
    return "".join(part + bar for part, bar in zip(parts, [*bars, ""], strict=True))


class _Inline(InlineProcessor):
    """Inline formulas: ``$x$`` on one line, without spaces next to the dollar signs."""

    PATTERN = r"(?<![\\$])\$(?![\s$])([^$\n]+?)(?<!\s)\$(?![\d$])"

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(to_mathml(m[1])), m.start(0), m.end(0)


class _Block(BlockProcessor):
    """Displayed formulas: a paragraph between ``$$`` and ``$$``."""

    PATTERN = re.compile(r"\A\$\$(.+)\$\$\Z", re.DOTALL)

    def test(self, parent: Element, block: str) -> bool:
        return bool(self.PATTERN.match(block.strip()))

    def run(self, parent: Element, blocks: list[str]) -> bool:
        match = self.PATTERN.match(blocks.pop(0).strip())
        assert match is not None
        formula = f'<div class="math">{to_mathml(match[1], display=True)}</div>'
        SubElement(parent, "p").text = self.parser.md.htmlStash.store(formula)
        return True


class MathExtension(Extension):
    """The extension of Python-Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:
        # Priority below code spans (190) and above escapes (180), so that backslashes remain.
        md.inlinePatterns.register(_Inline(_Inline.PATTERN, md), "mathml", 185)
        md.parser.blockprocessors.register(_Block(md.parser), "mathml", 75)


def makeExtension(**options: Any) -> MathExtension:
    """Return the Markdown extension; Python-Markdown looks for this name."""
    return MathExtension(**options)


def _visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def _visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    formula = to_mathml(node.astext(), display=True)
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
