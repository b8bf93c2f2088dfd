"""The site in a real headless Chromium, read from the disk: at desktop and at phone width.

    pytest -m browser tests/docs/test_site_browser.py

Needs chromium and chromium-driver (Debian's packages), selenium and the extra `docs`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from house.tree import REPOSITORY
from report.test_browser import FLAGS

pytestmark = [
    pytest.mark.browser,
    # 2026-11-29: selenium leaves the closing of its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config")
    folder = tmp_path_factory.mktemp("site")
    build.build(config.load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.fixture(scope="module", params=WIDTHS)
def browser(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    size = {"width": WIDTHS[request.param], "height": 900, "pixelRatio": 1.0}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": size})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service("/usr/bin/chromedriver")
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def requests(browser: Any) -> set[str]:
    """Addresses on a network that were asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"].endswith("requestWillBeSent")
    ]
    return {url for url in sent if url.startswith(("http:", "https:", "ws:", "wss:", "//"))}


def assert_fits(browser: Any, name: str) -> None:
    """By the screen: the window of a phone grows with its page."""
    wide, width = browser.execute_script(
        "return [document.documentElement.scrollWidth, screen.width]"
    )
    assert wide <= width, f"{name} is {wide} pixels wide on a screen of {width}"


def test_what_is_wrong_is_seen(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text("<div style='width:2000px'>x<img src='http://127.0.0.1:65000/x.png'></div>")
    browser.get(page.as_uri())
    assert requests(browser) == {"http://127.0.0.1:65000/x.png"}
    browser.get_log("browser")  # the next test begins with an empty one
    with pytest.raises(AssertionError, match=r"wrong\.html is 20\d\d pixels wide"):
        assert_fits(browser, page.name)


def test_every_page_fits_and_fetches_nothing(browser: Any, site: Path) -> None:
    pages = sorted(path for path in site.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 50
    for path in pages:
        browser.get(path.as_uri())
        assert_fits(browser, path.name)
        broken = browser.execute_script(
            "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        )
        assert broken == []
    assert requests(browser) == set()
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def test_search_finds_from_the_disk(browser: Any, site: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site / "index.html").as_uri() + "?q=saturated")
    results = ".md-search-result__item"
    WebDriverWait(browser, 60).until(lambda b: b.find_elements("css selector", results))
    assert requests(browser) == set()
