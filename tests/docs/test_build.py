"""What the build of the documentation promises."""

import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import markdown
import pytest
from fontTools.ttLib import TTFont

ROOT = Path(__file__).parents[2]
MODULES = (
    "robustfusion",
    "robustfusion.baselines",
    "robustfusion.datasets",
    "robustfusion.disruption",
    "robustfusion.evaluation",
)
# Aliases of types have no page of their own.
NOT_DOCUMENTED = {"SampleId", "Severity"}


def load(path: str) -> ModuleType:
    """A script of ``docs/`` as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "docs" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checker = load("check_site.py")


def test_nothing_is_broken_and_nothing_is_fetched(site: Path) -> None:
    assert checker.check(site) == []


def test_the_site_has_few_pages(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) <= 130


def test_every_public_name_has_a_place_in_the_inventory(site: Path) -> None:
    documented = {line.split()[0] for line in checker.inventory(site / "objects.inv")}
    for module in MODULES:
        public = set(importlib.import_module(module).__all__) - NOT_DOCUMENTED
        missing = {name for name in public if f"{module}.{name}" not in documented}
        assert not missing, f"{module}: {sorted(missing)} have no reference page"


def test_every_public_name_has_an_example() -> None:
    for module in map(importlib.import_module, MODULES):
        for name in set(module.__all__) - NOT_DOCUMENTED:
            text = inspect.getdoc(getattr(module, name)) or ""
            if isinstance(getattr(module, name), ModuleType | tuple) or ">>>" in text:
                continue
            # A record: the example is at what returns it, and there is a link to that.
            link = re.search(r":(?:class|func):`[~\w.]*?(\w+)`", text)
            assert link, f"{module.__name__}.{name} has neither an example nor a link to one"
            assert ">>>" in (inspect.getdoc(getattr(module, link[1])) or ""), name


def test_every_reference_page_says_when_not_to_use_it(site: Path) -> None:
    pages = [
        page
        for page in (site / "reference").glob("*.html")
        if page.name not in ("index.html", "examples.html")
    ]
    assert len(pages) > 30
    for page in pages:
        assert 'id="when-not-to-use-' in page.read_text(encoding="utf-8"), page.name


def test_members_are_headings_that_search_finds(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"]: entry for entry in index["docs"]}
    entry = places["reference/feature-queue.html#robustfusion.FeatureQueue.enqueue"]
    assert "overwriting the oldest" in entry["text"]


def test_reference_page_is_flat(site: Path) -> None:
    page = (site / "reference" / "feature-queue.html").read_text(encoding="utf-8")
    body = page[page.index("<article") : page.index("</article>")]
    assert "<section" not in body
    assert '<h2 id="robustfusion.FeatureQueue.enqueue">' in body or (
        '<h3 id="robustfusion.FeatureQueue.enqueue">' in body
    )
    assert 'id="robustfusion.FeatureQueue"' in body
    assert "<pre><code>" in body


def test_long_examples_are_included_from_their_files(site: Path) -> None:
    page = (site / "choosing-parts.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", "", page)
    assert "class ImageTextDRF(nn.Module):" in text


def test_gallery_has_a_page_for_every_program(site: Path) -> None:
    index = (site / "reference" / "examples.html").read_text(encoding="utf-8")
    programs = [p for p in (site.parent / "examples").rglob("*.py") if "__main__" in p.read_text()]
    assert len(programs) > 15
    for path in programs:
        assert f'href="examples/{path.stem}.html"' in index, path
        page = (site / "reference" / "examples" / f"{path.stem}.html").read_text(encoding="utf-8")
        text = re.sub(r"<(pre|code).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
        assert ":: " not in text
        assert "__main__" in page
    assert (site / "reference" / "examples" / "main_job.html").is_file()


def test_gallery_shows_what_the_short_ones_draw_and_print(site: Path) -> None:
    programs = [p for p in (ROOT / "examples/gallery").glob("*.py") if "__main__" in p.read_text()]
    assert len(programs) > 5
    index = (site / "reference" / "examples.html").read_text(encoding="utf-8")
    folder = site / "reference" / "examples"
    for path in programs:
        page = (folder / f"{path.stem}.html").read_text(encoding="utf-8")
        assert f'src="examples/{path.stem}.png"' in index
        assert f'src="{path.stem}.png"' in page
        assert (folder / f"{path.stem}.png").stat().st_size > 5_000
        assert "It prints:" in page


def test_notebook_is_shown_with_its_outputs(site: Path) -> None:
    page = (site / "reference" / "examples" / "main_job.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 5
    assert "<table>" in page
    assert "alarm for " in page
    assert "posts = 1500" in re.sub(r"<[^>]*>", "", page)  # what is stored, not what was run
    assert "posts = 400" in page


class TestGallery:
    """What examples draw and print is made once, and one that fails is an error."""

    def make(self, folder: Path, code: str) -> Path:
        example = folder / "examples" / "gallery" / "counted.py"
        example.parent.mkdir(parents=True, exist_ok=True)
        example.write_text(f'"""Counts."""\n\nif __name__ == "__main__":\n    {code}\n')
        return folder / "examples"

    def page(self, folder: Path, examples: Path) -> str:
        load("gallery.py").write(examples, folder / "pages", folder / "kept")
        return (folder / "pages" / "examples" / "counted.md").read_text()

    def test_runs_what_has_changed_only(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        code = f"print(open({str(log)!r}, 'a').write('x'), 'figure')"
        for _ in range(2):
            assert "1 figure" in self.page(tmp_path, self.make(tmp_path, code))
        assert log.read_text() == "x"
        assert "1 figure" in self.page(tmp_path, self.make(tmp_path, f"{code}  # changed"))
        assert log.read_text() == "xx"
        assert len(list((tmp_path / "kept").iterdir())) == 1

    def test_failure_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"(?s)counted\.py fails.*ZeroDivisionError"):
            self.page(tmp_path, self.make(tmp_path, "1 / 0"))
        assert not list((tmp_path / "kept").iterdir())


def test_reference_pages_lead_to_guides_examples_and_source(site: Path) -> None:
    page = (site / "reference" / "monitor.html").read_text(encoding="utf-8")
    line = page[page.index('class="links"') :].partition("</p>")[0]
    assert '"../guides/monitoring.html"' in line
    assert '"examples/drift_monitor.html"' in line
    assert '"#source"' in line
    source = page[page.index('id="source"') :]
    assert "robustfusion/monitor.py" in source
    assert "def update" in re.sub(r"<[^>]*>", "", source)


def test_every_reference_page_leads_to_a_guide_and_to_its_source(site: Path) -> None:
    for page in (site / "reference").glob("*.html"):
        if page.name in ("index.html", "examples.html"):
            continue
        text = page.read_text(encoding="utf-8")
        line = text[text.index('class="links"') :].partition("</p>")[0]
        assert "Guide: <a" in line, page.name
        assert "Source: <a" in line, page.name


def test_formulas_are_mathml(site: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    for page in pages:
        body = re.sub(r"<(pre|code|math).*?</\1>", "", page, flags=re.DOTALL)
        assert not re.search(r"\$\$|\\frac|\\lVert|:math:", body)
    assert sum(page.count("<math") for page in pages) > 100


def test_formulas_use_only_the_glyphs_that_are_shipped(site: Path) -> None:
    font = TTFont(site / "assets" / "math.woff2")
    known = set(font.getBestCmap())
    for path in site.rglob("*.html"):
        for formula in re.findall(r"<math.*?</math>", path.read_text(encoding="utf-8"), re.DOTALL):
            text = re.sub(r"<[^>]*>", "", formula)
            text = re.sub(r"&#x([0-9A-Fa-f]+);", lambda m: chr(int(m[1], 16)), text)
            unknown = {c for c in text if ord(c) not in known and not c.isspace()} - {"&"}
            assert not unknown, f"{path.name}: {unknown} in {formula}"


def test_files_in_git_are_small() -> None:
    large = [
        path
        for path in (ROOT / "docs").rglob("*")
        if path.is_file() and "reference" not in path.parts and path.stat().st_size > 200_000
    ]
    assert large == []


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<a href="gone.html">x</a>', "no such file"),
        ('<a href="other.html#gone">x</a>', "no such anchor"),
        ('<script src="https://cdn.example/x.js"></script>', "fetches https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "fetches"),
    ],
)
def test_checker_finds(tmp_path: Path, page: str, problem: str) -> None:
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "other.html").write_text('<h2 id="here">x</h2>')
    found = [line for line in checker.check(tmp_path) if line.startswith("index.html")]
    assert len(found) == 1
    assert problem in found[0]


def test_checker_passes_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<a href="other.html#here">x</a><a href="https://a.b">y</a>'
    )
    (tmp_path / "other.html").write_text('<h2 id="here">x</h2><a href="#here">x</a>')
    assert checker.check(tmp_path) == ["objects.inv is missing"]


class TestFormulas:
    def test_unknown_command_is_an_error(self) -> None:
        mathml = load("mathml.py")
        with pytest.raises(ValueError, match="cannot render"):
            mathml.to_mathml(r"\nosuchcommand{x}")

    def test_norm_bars_have_sides(self) -> None:
        formula = load("mathml.py").to_mathml(r"\lVert x \rVert_2")
        assert formula.index('form="prefix"') < formula.index('form="postfix"')

    def test_other_bars_are_left_alone(self) -> None:
        formula = load("mathml.py").to_mathml(r"\lVert x \rVert \Vert y \| z")
        assert formula.count("form=") == 2

    def test_dollars_in_code_are_left_alone(self) -> None:
        extension = load("mathml.py").MathExtension()
        html = markdown.markdown("`$x$` costs $5 and $y$.\n\n$$\nz\n$$", extensions=[extension])
        assert html.count("<math") == 2
        assert "<code>$x$</code> costs $5" in html
        assert 'display="block"' in html


def test_script_tells_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text('<a href="gone.html">x</a>')
    monkeypatch.setattr(sys, "argv", ["check_site.py", str(tmp_path)])
    assert checker.main() == 1
    assert "gone.html: no such file" in capsys.readouterr().err
