"""The demo in a browser: sliders move the prediction, and nothing comes from elsewhere."""

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import needs_chromium, open_chromium

for _name in ("streamlit", "typer", "tqdm", "safetensors", "matplotlib", "PIL"):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"{_name} is not installed", allow_module_level=True)

EXAMPLES = Path(__file__).parents[1] / "examples"


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    options = ["--limit", "300", "--epochs", "4", "--output-dir", str(folder)]
    subprocess.run(
        [sys.executable, str(EXAMPLES / "drf_mvsa.py"), *options],
        env=environment(),
        check=True,
        capture_output=True,
    )
    return folder / "drf_mvsa-001"


@pytest.fixture(scope="module")
def server(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """The demo as a user starts it, but for the port and the browser; its address and its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.txt"
    options = [f"--server.port={port}", "--server.headless=true"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "demo_app.py"), str(run), *options],
            env={**environment(), "HOME": str(log.parent)},
            cwd=log.parent,
            stdout=output,
            stderr=output,
        )
    try:
        where = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"{where}/_stcore/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.2)
        yield where, process, log
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def address(server: tuple[str, subprocess.Popen[bytes], Path]) -> str:
    return server[0]


def listening(pid: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, at which a process waits for others."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it may be closed by now
            own.add(os.readlink(descriptor))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.add(fields[1].split(":")[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_listens_on_loopback_and_asks_nobody_for_its_address(
    server: tuple[str, subprocess.Popen[bytes], Path],
) -> None:
    _, process, log = server
    assert listening(process.pid) == {"0100007F"}  # 127.0.0.1
    printed = log.read_text()
    assert "127.0.0.1" in printed
    for word in ("Network URL", "External URL", "external IP"):
        assert word not in printed


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    pytest.importorskip("selenium")
    with open_chromium("1280,1100") as driver:
        yield driver


@pytest.fixture
def browser(driver: Any, address: str) -> Any:
    """The page, opened anew."""
    driver.get(address)
    return driver


def wait(browser: Any, condition: Any, seconds: float = 60) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException]
    return WebDriverWait(browser, seconds, ignored_exceptions=ignored).until(lambda _: condition())


def shown(browser: Any) -> dict[str, int]:
    """All bars of the page, once the server is done: name to percentage."""
    if browser.find_elements("css selector", "[data-testid=stStatusWidget]"):
        return {}
    texts = browser.find_elements("css selector", "[data-testid=stProgress]")
    found = [re.fullmatch(r"(.*): (\d+)%", text.text.strip()) for text in texts]
    return {match[1]: int(match[2]) for match in found if match}


def ready(browser: Any) -> dict[str, int]:
    found: dict[str, int] = wait(
        browser, lambda: len(shown(browser)) >= 8 and shown(browser), seconds=120
    )
    return found


def slide_to_the_end(browser: Any, label: str) -> None:
    """As by keyboard, until it is there: the page may be drawn anew while a key is on its way."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def at_the_end() -> bool:
        handles = browser.find_elements("css selector", f"input[aria-label='{label}']")
        if not handles:
            return False
        # The input itself is too small for the driver to send keys to.
        browser.execute_script("arguments[0].focus()", handles[0])
        ActionChains(browser).send_keys(Keys.END).perform()
        return bool(handles[0].get_attribute("value") == handles[0].get_attribute("max"))

    wait(browser, at_the_end)


@needs_chromium
def test_sliders_move_quality_and_weights(browser: Any) -> None:
    before = ready(browser)
    assert sum(before[name] for name in ("positive", "neutral", "negative")) in (99, 100, 101)
    slide_to_the_end(browser, "Severity of the image damage")
    # Bars change one after another, so what is waited for is the whole of what must follow.
    lower, higher = "Share of intact images at least as unusual (p-value)", "text trusted"
    wait(
        browser,
        lambda: (
            len(now := shown(browser)) >= 8
            and now[lower] < before[lower]
            and now[higher] > before[higher]
        ),
    )


@needs_chromium
def test_a_picture_can_be_dropped_and_left_out(browser: Any, run: Path, tmp_path: Path) -> None:
    ready(browser)
    field = browser.find_element("css selector", "input[type=file]")
    field.send_keys(str(run.parent / "posts-300-seed0" / "data" / "2.jpg"))
    wait(browser, lambda: "2.jpg" in browser.page_source)
    ready(browser)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    field = browser.find_element("css selector", "input[type=file]")
    field.send_keys(str(tmp_path / "broken.png"))
    wait(browser, lambda: "cannot be decoded" in browser.page_source)
    wait(browser, lambda: "The image is missing" in browser.page_source)
    # The numbers of the picture before stay on the page until the new ones are computed.
    wait(browser, lambda: shown(browser).get("text trusted") == 100)


@needs_chromium
def test_nothing_comes_from_elsewhere(browser: Any, address: str) -> None:
    import json

    ready(browser)
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        entry["params"]["request"]["url"]
        for entry in entries
        if entry["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    own = (address, "data:", "blob:")
    assert [url for url in urls if not url.startswith(own)] == []


def test_the_first_sight_is_an_intact_post_and_disruption_alarms(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlit.testing.v1 import AppTest

    monkeypatch.syspath_prepend(str(EXAMPLES))
    page = AppTest.from_string(
        f"import demo_app\ndemo_app.page({str(run)!r})", default_timeout=120
    ).run()
    assert not page.exception
    assert [box.value for box in page.success] == [
        "The image looks intact.",
        "The text looks intact.",
    ]
    assert not page.warning
    assert any("generated posts" in caption.value for caption in page.caption)
    (image,) = [s for s in page.slider if s.label == "Severity of the image damage"]
    image.set_value(0.6).run()
    assert not page.exception
    assert [box.value[:16] for box in page.warning] == ["Alarm: the image"]
    assert [box.value for box in page.success] == ["The text looks intact."]


def test_without_a_run_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo_app.py"), str(tmp_path / "nowhere")],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is not the folder of a run" in done.stderr


def test_buttons_damage_and_remove(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.testing.v1 import AppTest

    monkeypatch.syspath_prepend(str(EXAMPLES))
    page = AppTest.from_string(
        f"import demo_app\ndemo_app.page({str(run)!r})", default_timeout=120
    ).run()
    sliders = {slider.label: slider for slider in page.slider}
    assert {slider.value for slider in sliders.values()} == {0.0}
    page.button(key="image Blacken").click().run()
    assert not page.exception
    severity = {slider.label: slider.value for slider in page.slider}
    assert severity == {"Severity of the image damage": 1.0, "Severity of the text damage": 0.0}
    page.button(key="image Remove").click().run()
    assert any("The image is missing" in text.value for text in page.text)
    page.button(key="image Intact").click().run()
    page.button(key="text Garble").click().run()
    assert not page.exception
    boxes = {box.label: box.value for box in page.selectbox}
    assert boxes == {"Damage to the image": "mask", "Damage to the text": "mojibake"}
