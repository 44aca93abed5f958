"""The page in a real browser: it sorts, filters, fits a telephone and a sheet of paper, and keeps the console clean."""

import base64
import json
import os
import shutil
from urllib.parse import urlparse

import pytest

from report_results import large_results
from topiarist.report import write_report

SIZES = {"desktop": (1280, 900), "telephone": (375, 812)}


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; where there is none the tests are skipped, but not in CI where it can be installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if lacking:
        told = f"no {' and no '.join(lacking)} here: apt-get install chromium chromium-driver"
        if os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0:
            pytest.fail(f"{told}, as .ci/run does")
        pytest.skip(told)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the report of a large study is."""
    return write_report(tmp_path_factory.mktemp("report"), large_results()).as_uri()


@pytest.fixture
def page(browser, address):
    """The report, opened anew; in the end nothing may be in the console, and no request may have failed."""
    browser.get(address)
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {urlparse(url).scheme for url in asked} <= {"file", "data"}
    assert not [event for event in events if event["method"] == "Network.loadingFailed"]


def column(page, table, heading):
    """The numbers in a column of the lines that are shown."""
    return page.execute_script(
        "const table = document.getElementById(arguments[0]);"
        "const at = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === arguments[1]);"
        "const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);"
        "return shown.map((row) => Number(row.cells[at].dataset.value))",
        table,
        heading,
    )


def head(page, table, heading):
    return page.find_element("xpath", f"//table[@id='{table}']//th[. = '{heading}']")


def sizes(page):
    return page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")


def resized(page, size, *, dark=False):
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "telephone"}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [feature]})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.by_day(2)
def test_a_heading_sorts_its_table_and_says_so(page, size):
    resized(page, size)
    before = column(page, "arms", "Accuracy, %")
    assert before != sorted(before)
    heading = head(page, "arms", "Accuracy, %")
    button = heading.find_element("tag name", "button")
    assert heading.get_attribute("aria-sort") == "none"
    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, "arms", "Accuracy, %") == sorted(before)
    button.send_keys("\ue007")  # the Enter key
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, "arms", "Accuracy, %") == sorted(before, reverse=True)
    head(page, "arms", "Method").find_element("tag name", "button").click()
    assert heading.get_attribute("aria-sort") == "none"
    sorted_heads = page.find_elements("css selector", "#arms th:not([aria-sort=none])")
    assert [each.text.strip() for each in sorted_heads] == ["Method"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.by_day(2)
def test_filters_hide_what_does_not_fit(page, size):
    resized(page, size)
    everything = len(column(page, "arms", "Seeds"))
    page.find_element("css selector", "select[name=method] option[value=l1]").click()
    rows = page.find_elements("css selector", "#arms tbody tr:not([hidden])")
    assert 0 < len(rows) < everything
    assert {row.get_attribute("data-method") for row in rows} == {"l1"}
    cards = page.find_elements("css selector", "article:not([hidden])")
    assert {card.get_attribute("data-method") for card in cards} == {"l1"}
    page.find_element("css selector", "select[name=arm] option[value=finetune]").click()
    rows = page.find_elements("css selector", "#arms tbody tr:not([hidden])")
    assert {row.get_attribute("data-arm") for row in rows} == {"finetune"}
    page.find_element("css selector", "select[name=method] option[value='']").click()
    page.find_element("css selector", "select[name=arm] option[value='']").click()
    assert len(column(page, "arms", "Seeds")) == everything
    page.find_element("css selector", "input[name=text]").send_keys("slimming scratch")
    rows = page.find_elements("css selector", "#arms tbody tr:not([hidden])")
    assert {row.get_attribute("data-arm") for row in rows} == {"scratch_e", "scratch_b"}
    assert "lines" in page.find_element("id", "shown").text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.by_day(3)
def test_the_page_never_scrolls_sideways(page, size, dark):
    resized(page, size, dark=dark)
    needed, there = sizes(page)
    assert there == SIZES[size][0]
    assert needed <= there
    wide = page.execute_script(
        "return [...document.querySelectorAll('svg.figure')].filter((figure) =>"
        " figure.getBoundingClientRect().right > window.innerWidth).length"
    )
    assert wide == 0
    ink, paper = page.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    assert (sum(rgb(ink)) > sum(rgb(paper))) == dark


def rgb(colour):
    return [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]


def test_on_paper_nothing_is_hidden_but_the_controls(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert not page.find_element("id", "controls").is_displayed()
    cut = page.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter((box) =>"
        " getComputedStyle(box).overflow !== 'visible' || getComputedStyle(box).maxHeight !== 'none').length"
    )
    assert cut == 0
    apart = page.execute_script(
        "return [...document.querySelectorAll('figure')].every((f) => getComputedStyle(f).breakInside === 'avoid')"
    )
    assert apart
    paper = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(paper["data"]).startswith(b"%PDF")


def test_without_scripts_everything_is_there_but_sorting_and_filtering(browser, address):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        assert not browser.find_element("id", "controls").is_displayed()
        assert not browser.find_elements("css selector", "th button")
        rows = browser.find_elements("css selector", "#arms tbody tr")
        assert len(rows) == len(large_results()["rows"])
        assert all(row.is_displayed() for row in rows)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        browser.get_log("browser")
