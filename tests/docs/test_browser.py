"""The site as a reader uses it: search, navigation, copy buttons, both schemes, a phone."""

import functools
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import needs_chromium, open_chromium
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import publish

pytestmark = needs_chromium

PAGES = (
    "index.html",
    "getting-started.html",
    "choosing-parts.html",
    "guides/damaged-inputs.html",
    "guides/from-csv.html",
    "guides/train-well.html",
    "guides/missing-modalities.html",
    "guides/your-encoders.html",
    "reference/index.html",
    "reference/examples.html",
    "reference/drf-head.html",
    "reference/feature-queue.html",
    "results/index.html",
    "results/comparison.html",
    "results/mvsa.html",
    "about/method.html",
    "about/coming-from.html",
    "about/comparison.html",
    "about/faq.html",
    "about/glossary.html",
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with open_chromium("1280,900") as driver:
        yield driver


@pytest.fixture
def desktop(driver: Any) -> Any:
    driver.set_window_size(1280, 900)
    driver.get_log("browser")
    driver.get_log("performance")
    return driver


def wait(driver: Any, condition: Any, seconds: float = 30) -> Any:
    ignored = [StaleElementReferenceException]
    return WebDriverWait(driver, seconds, ignored_exceptions=ignored).until(lambda _: condition())


def find(driver: Any, selector: str) -> list[Any]:
    """The elements that a reader sees."""
    return [e for e in driver.find_elements("css selector", selector) if e.is_displayed()]


def search(driver: Any, words: str) -> list[str]:
    """Type the words, and return where the results lead, the best first."""
    field = wait(driver, lambda: find(driver, "input.md-search__input"))[0]
    field.send_keys(words)
    found = wait(driver, lambda: find(driver, ".md-search-result__link"), seconds=60)
    return [link.get_attribute("href") for link in found]


def requested(driver: Any) -> list[str]:
    entries = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        entry["params"]["request"]["url"]
        for entry in entries
        if entry["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("FeatureQueue", "reference/feature-queue.html"),
        ("missing modalities", "guides/missing-modalities.html"),
        ("assert_ignores_missing", "reference/assert-ignores-missing.html"),
    ],
)
def test_search_finds(desktop: Any, address: str, words: str, page: str) -> None:
    desktop.get(f"{address}/index.html")
    assert any(f"/{page}" in link for link in search(desktop, words)[:3])


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("deploy", "guides/deployment.html"),
        ("threshold", "guides/deployment.html"),
        ("GPU", "guides/scale-and-save.html"),
        ("notebook", "reference/examples.html"),  # it begins with the notebook
        ("missing image", "guides/missing-modalities.html"),
        ("corrupted image", "guides/damaged-inputs.html"),
        ("black image", "guides/damaged-inputs.html"),
        ("imbalance", "guides/train-well.html"),
    ],
)
def test_search_finds_first(desktop: Any, address: str, words: str, page: str) -> None:
    desktop.get(f"{address}/index.html")
    assert f"/{page}" in search(desktop, words)[0]


def test_search_works_from_disk(desktop: Any, site: Path) -> None:
    desktop.get((site / "guides" / "damaged-inputs.html").as_uri())
    found = search(desktop, "FeatureQueue")
    assert any("reference/feature-queue.html" in link for link in found[:3])
    desktop.get(found[0].split("?")[0])
    wait(desktop, lambda: find(desktop, "h1"))


def test_navigation_leads_from_home_to_a_class(desktop: Any, address: str) -> None:
    desktop.get(f"{address}/index.html")
    for text in ("Reference", "FeatureQueue"):
        links = wait(
            desktop,
            lambda text=text: [
                link
                for link in find(desktop, ".md-tabs__link, .md-nav--primary .md-nav__link")
                if link.text.strip() == text and link.tag_name == "a"
            ],
        )
        links[0].click()
    wait(desktop, lambda: desktop.current_url.endswith("/reference/feature-queue.html"))
    wait(desktop, lambda: any(h.text.startswith("FeatureQueue") for h in find(desktop, "h1")))


def test_reference_page_has_what_a_reader_needs(desktop: Any, address: str) -> None:
    desktop.get(f"{address}/reference/drf-head.html")
    article = wait(desktop, lambda: find(desktop, "article"))[0].text
    for word in ("dims", "num_classes", "Raises", "Example", "available", "arxiv.org"):
        assert word in article, word
    assert find(desktop, "article math")
    inside = [
        link.get_attribute("href")
        for link in find(desktop, "article a[href]")
        if "reference/quality-estimator.html" in link.get_attribute("href")
    ]
    desktop.get(inside[0])
    wait(desktop, lambda: any("QualityEstimator" in h.text for h in find(desktop, "h1")))


def test_copy_button_copies_the_code(desktop: Any, address: str) -> None:
    desktop.get(f"{address}/getting-started.html")
    block = wait(desktop, lambda: find(desktop, ".highlight pre"))[0]
    code = block.find_element("css selector", "code").text
    button = wait(desktop, lambda: block.find_elements("css selector", "button[title^='Copy']"))[0]
    ActionChains(desktop).move_to_element(block).click(button).perform()
    field = find(desktop, "input.md-search__input")[0]
    field.click()
    field.send_keys(Keys.CONTROL, "v")
    wait(desktop, lambda: field.get_attribute("value").strip() == code.strip())


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", PAGES)
def test_page_fits_and_fetches_nothing_from_elsewhere(
    desktop: Any, address: str, page: str, width: int
) -> None:
    desktop.set_window_size(width, 900)
    desktop.get(f"{address}/{page}")
    wait(desktop, lambda: desktop.execute_script("return document.readyState") == "complete")
    urls = requested(desktop)
    assert urls
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
    assert [entry["message"] for entry in desktop.get_log("browser")] == []
    # What is wider than the page scrolls in a box of its own.
    wide, inner = desktop.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= inner
    broken = desktop.execute_script(
        "return [...document.images].filter(i => !i.naturalWidth && i.offsetParent)"
        ".map(i => i.src)"
    )
    assert broken == []


def test_scheme_can_be_switched_and_stays(desktop: Any, address: str) -> None:
    def scheme() -> tuple[str, str]:
        name, color = desktop.execute_script(
            "return [document.body.dataset.mdColorScheme,"
            " getComputedStyle(document.body).backgroundColor]"
        )
        return name, color

    desktop.get(f"{address}/index.html")
    before = scheme()
    wait(desktop, lambda: find(desktop, "label[title^='Switch to']"))[0].click()
    wait(desktop, lambda: scheme()[0] != before[0] and scheme()[1] != before[1])
    switched = scheme()[0]
    desktop.get(f"{address}/getting-started.html")
    wait(desktop, lambda: scheme()[0] == switched)


def test_phone_has_navigation_and_search(desktop: Any, address: str) -> None:
    desktop.set_window_size(390, 844)
    desktop.get(f"{address}/index.html")
    wait(desktop, lambda: find(desktop, "label[for='__drawer']"))[0].click()
    for text in ("Guides", "Train", "Damaged inputs: noise, blur, masks"):
        links = wait(
            desktop,
            lambda text=text: [
                link
                for link in find(desktop, ".md-nav--primary .md-nav__link")
                if link.text.strip() == text
            ],
        )
        wait(desktop, lambda links=links: links[0].is_enabled())
        desktop.execute_script("arguments[0].click()", links[0])
    wait(desktop, lambda: desktop.current_url.endswith("/guides/damaged-inputs.html"))
    wait(desktop, lambda: find(desktop, "label.md-header__button[for='__search']"))[0].click()
    assert any("reference/feature-queue.html" in link for link in search(desktop, "FeatureQueue"))


def test_names_in_tables_are_not_broken_on_a_phone(desktop: Any, address: str) -> None:
    desktop.set_window_size(390, 844)
    for page in ("choosing-parts.html", "reference/index.html", "about/comparison.html"):
        desktop.get(f"{address}/{page}")
        broken = desktop.execute_script(
            "const codes = [...document.querySelectorAll('article table code')];"
            "return [codes.length, codes.filter(c => !/[ ,/]/.test(c.textContent)"
            " && c.getClientRects().length > 1).map(c => c.textContent)]"
        )
        assert broken[0] > 10, page
        assert broken[1] == [], page


def test_versions_can_be_switched(desktop: Any, site: Path, tmp_path: Path) -> None:
    for version in ("0.1.0", "0.2.0"):
        publish.publish(site, tmp_path, version)
    with served(tmp_path) as address:
        desktop.get(f"{address}/")  # the newest
        wait(desktop, lambda: desktop.current_url == f"{address}/0.2.0/index.html")
        desktop.get(f"{address}/0.2.0/guides/monitoring.html")
        current = wait(desktop, lambda: find(desktop, ".md-version__current"))[0]
        assert current.text == "0.2.0"
        ActionChains(desktop).move_to_element(current).perform()
        links = wait(desktop, lambda: find(desktop, ".md-version__link"))
        assert [link.text for link in links] == ["0.2.0", "0.1.0"]
        links[1].click()
        wait(desktop, lambda: desktop.current_url.startswith(f"{address}/0.1.0/"))
        assert wait(desktop, lambda: find(desktop, ".md-version__current"))[0].text == "0.1.0"
