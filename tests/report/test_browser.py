"""report.html in a real headless Chromium: no errors, nothing fetched, every control works.

    pytest -m browser tests/report/test_browser.py

Needs chromium and chromium-driver (Debian's packages) and selenium.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.sample import RESULTS, recording_rows
from report.test_what_if import model_rows
from unitscale.report import Curve, group, write_html

pytestmark = [
    pytest.mark.browser,
    # 2026-11-24: selenium leaves the closing of its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --window-size=1280,900 "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service("/usr/bin/chromedriver")
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    faulty = recording_rows(layers=12, steps=range(0, 300, 50), fault_at=100, layer=7)
    held = [row | {"held_log2": 2} if "name" in row else row for row in recording_rows(steps=[0])]
    curves = [
        Curve(
            recipe=name,
            losses=[3 - i / 40 for i in range(80)],
            diverged=name == "fp8-none",
            unit_scaled=name == "fp8",
        )
        for name in ("fp32", "fp8", "fp8-none")
    ]
    recordings = [group(faulty, label="faulty"), group(held, label="held")]
    write_html(recordings, path, results=RESULTS, curves=curves)
    return path


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda b: ready(b))
    return browser


def ready(browser: Any) -> bool:
    return browser.execute_script("return document.documentElement.dataset.ready") == "yes"


def choose(browser: Any, control: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", control)).select_by_value(value)


def rows(browser: Any) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#table tbody tr')].map(r => r.cells[0].innerText)"
    )
    return list(browser.execute_script(script))


def test_page_opens_without_an_error_and_draws_every_chart(opened: Any) -> None:
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert opened.find_element("id", "failure").text == ""
    for chart in ("loss-chart", "heat", "histogram", "history", "depth-chart"):
        assert opened.find_elements("css selector", f"#{chart} .main-svg"), chart
    requests = opened.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in requests if not name.startswith(("data:", "blob:"))] == []


def test_worst_tensor_is_shown_first(opened: Any) -> None:
    assert opened.find_element("id", "detail-title").text == "layers.7.linear · gradient"
    assert "100 % flushed to zero" in opened.find_element("id", "detail-text").text


def test_search_filters_heat_map_and_table(opened: Any) -> None:
    opened.find_element("id", "search").send_keys(r"layers\.(3|4)\.add")
    assert rows(opened) == [f"layers.{i}.add{end}" for end in ("", " · gradient") for i in (3, 4)]
    assert opened.find_element("id", "count").text.startswith("4 of 48 tensors")
    assert opened.execute_script("return document.getElementById('heat').data[0].y.length") == 4


def test_unfinished_regular_expression_is_searched_as_text(opened: Any) -> None:
    opened.find_element("id", "search").send_keys("(")
    assert len(rows(opened)) == 0 or all("·" in name for name in rows(opened))


def test_heading_sorts_both_ways(opened: Any) -> None:
    def click(title: str) -> Any:
        for button in opened.find_elements("css selector", "#table thead button"):
            if button.text.startswith(title):
                button.click()
                return
        raise AssertionError(title)

    click("Lost")
    assert rows(opened)[0] == "layers.7.linear · gradient"
    header = opened.find_element("css selector", "#table th[aria-sort='descending']")
    assert header.text.startswith("Lost")
    click("Lost")
    assert rows(opened)[0] != "layers.7.linear · gradient"
    click("Tensor")
    names = rows(opened)
    assert names.index("layers.2.add") < names.index("layers.10.add")


def test_keyboard_reaches_search_rows_and_tensor(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    def active() -> Any:
        return opened.switch_to.active_element

    opened.find_element("tag name", "body").send_keys("/")
    assert active().get_attribute("id") == "search"
    opened.find_element("css selector", "#table tbody button").send_keys(Keys.ARROW_DOWN)
    assert active().text == "layers.0.add"
    active().send_keys(Keys.ENTER)
    assert opened.find_element("id", "detail-title").text == "layers.0.add"
    opened.find_element("id", "next").send_keys(Keys.ENTER)
    assert opened.find_element("id", "detail-title").text == "layers.1.linear"


def test_every_quantity_format_and_order_is_drawn(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select

    for control in ("quantity", "format", "direction", "order"):
        for option in Select(opened.find_element("id", control)).options:
            choose(opened, control, option.get_attribute("value"))
        choose(
            opened,
            control,
            Select(opened.find_element("id", control)).options[0].get_attribute("value"),
        )
    choose(opened, "order", "worst")
    first = opened.execute_script("return document.getElementById('heat').data[0].y[0]")
    assert first == "layers.7.linear · gradient"
    assert [e for e in opened.get_log("browser") if e["level"] == "SEVERE"] == []


def test_click_on_a_cell_shows_its_tensor(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    heat = opened.find_element("css selector", "#heat .nsewdrag")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", heat)
    ActionChains(opened).move_to_element_with_offset(heat, 0, -heat.size["height"] // 2 + 3).pause(
        0.5
    ).click().perform()
    assert opened.find_element("id", "detail-title").text == "layers.0.linear"
    assert opened.find_elements("css selector", "#heat .hovertext")


def test_other_run_and_histogram_before_units(opened: Any) -> None:
    choose(opened, "run", "1")
    bars = "return document.getElementById('histogram').data.map(t => t.name)"
    assert opened.execute_script(bars) == ["as held", "before units"]
    opened.find_element("id", "true-values").click()
    assert opened.execute_script(bars) == ["as held"]
    assert "before units" in opened.find_element("id", "depth-text").text


def test_layers_are_named_beside_a_heat_map_of_many_rows(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    path = tmp_path / "many.html"
    write_html(recording_rows(layers=20, steps=[0, 50]), path)
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda b: ready(b))
    ticks = browser.execute_script("return document.getElementById('heat').layout.yaxis.ticktext")
    # A row has 6 pixels, a layer two rows, and a name needs 13 pixels.
    assert ticks[:3] == ["layers.0", "layers.1", "layers.3"]
    assert ticks[-1].endswith(" · gradient")
    panels = browser.execute_script(
        "const l = document.getElementById('depth-chart').layout;"
        "return [l.yaxis.title.text, l.yaxis2.title.text]"
    )
    assert panels == ["log2 RMS<br>values, E4M3FN", "log2 RMS<br>gradients, E5M2"]


def test_single_step_has_no_history(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    path = tmp_path / "single.html"
    write_html(recording_rows(steps=[0]), path)
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda b: ready(b))
    assert not browser.find_element("id", "history").is_displayed()
    assert not browser.find_element("id", "step-control").is_displayed()
    assert browser.find_element("id", "histogram").is_displayed()
    assert "1 step" in browser.find_element("id", "count").text
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def test_theme_toggles(opened: Any) -> None:
    toggle = opened.find_element("id", "theme")
    colors = set()
    for _ in range(3):
        toggle.click()
        colors.add(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colors == {"rgb(255, 255, 255)", "rgb(21, 24, 28)"}


def test_phone_needs_no_sideways_scrolling(browser: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(page.as_uri())
        WebDriverWait(browser, 60).until(lambda b: ready(b))
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_500_tensors_at_200_steps_stay_responsive(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    path = tmp_path / "big.html"
    write_html(recording_rows(layers=125, steps=range(0, 10_000, 50), noise=True), path)
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda b: ready(b))
    redraw = "const t = performance.now(); drawHeat(); drawTable(); return performance.now() - t"
    times = sorted(browser.execute_script(redraw) for _ in range(5))
    assert times[2] < 2000, times
    print("redraw of heat map and table, ms:", [round(t) for t in times])


def test_recipes_are_columns_that_sort(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    path = tmp_path / "report.html"
    write_html([*recording_rows(steps=[0, 50]), *model_rows()], path)
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda b: ready(b))
    rows = "[...document.querySelectorAll('#answers tbody tr')]"
    cells = f"return {rows}.map((row) => row.cells[3].textContent)"
    assert browser.execute_script(cells)[-1] == "14"  # the last product of the model
    head = browser.find_elements("css selector", "#answers thead button")
    assert [button.text for button in head] == ["Product", "Work, %", "mxfp8", "nvfp4"]
    head[3].click()
    found = [float(text) for text in browser.execute_script(cells)]
    assert found == sorted(found)
    assert found[0] == 14
    browser.find_elements("css selector", "#answers thead button")[3].click()
    assert [float(text) for text in browser.execute_script(cells)] == found[::-1]
    bad = browser.execute_script("return document.querySelectorAll('#answers td.bad').length")
    assert bad == 2
    choose(browser, "answer", "flushed")
    assert set(browser.execute_script(cells)) == {"25"}
    search = browser.find_element("id", "product-search")
    search.send_keys("layers.11.")
    assert len(browser.execute_script(cells)) == 2
    assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
