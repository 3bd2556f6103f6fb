"""The report in a real browser: what its script adds, and that nothing is missing without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chromium import browser, click, needs_chromium, section, seen
from report_world import ODD, Elements, photo, run
from vfm.interfaces import ImagesPanel, PanelImage, TablePanel
from vfm.report import RunSummary, write_report

__all__ = ["browser", "run"]
pytestmark = needs_chromium


@pytest.fixture
def page(run: RunSummary, tmp_path: Path) -> Path:
    """The page of the run, with a longer table and with answers, right and wrong by turns."""
    directory = run.stages[1].directory
    counts = [1200, -3, 0.5, 20, 3, 100, 7, 8, 9, None]
    rows: list[list[str | float | int | None]] = [[f"row {row}", count] for row, count in enumerate(counts)]
    TablePanel(title="Ten rows", columns=["name", "count", "w" * 60], rows=[[*row, "x" * 60] for row in rows]).save(
        directory
    )
    photo(directory / "answer.png", 32, 32)
    names = ["zero", "one", "two", "three", "four", "five"]
    pictures = [
        PanelImage(file="answer.png", caption=f"{name} {place}", right=place % 2 == 0)
        for place, name in enumerate(names)
    ]
    ImagesPanel(title="Answers", pictures=pictures).save(directory)
    path = tmp_path / "report.html"
    write_report(run, path)
    return path


def test_a_browser_shows_all_of_it_and_fetches_nothing(run: RunSummary, tmp_path: Path, browser: Any) -> None:
    path = tmp_path / "report.html"
    write_report(run, path)
    browser.get_log("performance")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert path.as_uri() in asked
    assert [
        url for url in asked if url != path.as_uri() and not url.startswith(("data:", "chrome:", "chrome-untrusted:"))
    ] == []  # its own icons
    headings = browser.execute_script("return [...document.querySelectorAll('h2')].map(h => h.innerText)")
    assert headings == ["Results", "Stages", "Bad samples", "Warnings", "Provenance"]
    assert browser.execute_script("return document.title") == "odd <b>run</b> · vfm run", "no script of the data ran"
    browser.find_element("xpath", "//button[text()='Open all']").click()
    titles = browser.execute_script("return [...document.querySelectorAll('h4')].map(h => h.textContent)")
    assert {"Few curves", "Bars", "Table", ODD[1], "Text", "What was asked"} <= set(titles)
    widths = browser.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert widths == [32, 256, 32]
    boxes = browser.execute_script("return [...document.querySelectorAll('.chart svg')].map(s => s.getBBox().width)")
    assert len(boxes) == 4  # one is of the differences that more items would show
    assert min(boxes) > 100


PHONE = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}


def test_a_phone_needs_no_sideways_scrolling(page: Path, browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.get(page.as_uri())
    folded = browser.execute_script("return document.documentElement.scrollWidth")
    above = (
        "return [...document.querySelectorAll('summary .head')].map(h => h.parentElement.offsetHeight - h.offsetHeight)"
    )
    heights = browser.execute_script(above)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    opened = browser.execute_script("return document.documentElement.scrollWidth")
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
    )
    texts = browser.execute_script(
        "return [...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().left)"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert (folded, opened) == (390, 390)
    assert wide >= 1, "a wide table scrolls in its own box"
    assert min(texts) >= 0, "no label of an axis is cut off"
    assert max(heights) < 10  # the triangle has no line of its own


def test_links_unfold_the_stage_and_the_artifact_that_they_lead_to(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    is_open = "return document.querySelector(arguments[0]).closest('details').open"
    for target, link in (("#stage-curated", ".ran"), ("#made-stage-curated", "#stage-curated")):
        assert not browser.execute_script(is_open, target)
        browser.find_element("css selector", f"{link} a[href='{target}']").click()
        assert browser.execute_script(is_open, target)
    assert browser.execute_script("return document.querySelector('#made-stage-curated').checkVisibility()")


def test_tables_are_sorted_and_filtered(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    panel = section(browser, "Ten rows")
    original = seen(panel, "td:first-child")
    counts = [1200, -3, 0.5, 20, 3, 100, 7, 8, 9]
    click(panel, "th:nth-child(2)")
    ascending = [f"row {counts.index(count)}" for count in sorted(counts)]
    assert seen(panel, "td:first-child") == [*ascending, "row 9"], "numbers by size, what is unknown last"
    click(panel, "th:nth-child(2)")
    assert seen(panel, "td:first-child") == [*ascending[::-1], "row 9"]
    click(panel, "th:first-child")
    assert seen(panel, "td:first-child") == original
    panel.find_element("css selector", "input").send_keys("1,200")
    assert seen(panel, "td:first-child") == ["row 0"]
    assert seen(panel, "[role=status]") == ["1 of 10"]


def test_the_keyboard_sorts_a_table(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    panel = section(browser, "Ten rows")
    heading = panel.find_element("css selector", "th:nth-child(2)")
    for key, order, first in ((" ", "ascending", "row 1"), ("\ue007", "descending", "row 0")):
        heading.find_element("css selector", "button").send_keys(key)
        assert heading.get_attribute("aria-sort") == order
        assert seen(panel, "td:first-child")[0] == first


def _soon(browser: Any, holds: Any) -> None:
    """Wait for at most ten seconds until something holds."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(lambda _: holds())


def test_everything_is_unfolded_for_printing_and_folded_again(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    fold, folded = browser.find_elements("css selector", "nav button")[1], "details:not([open])"
    before = len(browser.find_elements("css selector", folded))
    assert before > len(browser.find_elements("css selector", "details.stage"))
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.find_elements("css selector", folded) == []
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert len(browser.find_elements("css selector", folded)) == before
    assert fold.text == "Open all"
    for summary in browser.find_elements("css selector", "details.stage > summary"):
        summary.click()
    _soon(browser, lambda: fold.text == "Fold all")  # the browser says later that something was unfolded by hand
    fold.click()
    assert len(browser.find_elements("css selector", folded)) == before


def test_results_are_sorted_by_whole_metrics(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    table = browser.find_element("css selector", "#results ~ .scroll table.results")
    assert seen(table, "th.metric")[0].startswith("top-1 accuracy")
    click(table, "thead th:nth-child(3)")
    assert seen(table, "th.metric")[0].startswith("logit"), "its value is below zero"
    assert seen(table, "tbody:last-child th[scope=row]") == ["clip", "diva"]


def test_samples_are_browsed_by_outcome_and_words(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    panel = section(browser, "Answers")
    assert seen(panel, ".tools button") == ["all", "right", "wrong"]
    click(panel, ".tools button:nth-of-type(3)")
    assert [text.split()[-1] for text in seen(panel, "figcaption")] == ["1", "3", "5"]
    panel.find_element("css selector", "input").send_keys("five")
    assert [text.split()[-1] for text in seen(panel, "figcaption")] == ["5"]


def test_figures_are_enlarged_and_escape_closes_them(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    panel, body = section(browser, "Answers"), browser.find_element("css selector", "body")
    opened = "return document.querySelector('dialog').open"
    assert not browser.execute_script(opened)
    browser.execute_script("arguments[0].scrollIntoView()", panel)
    panel.find_element("css selector", "img").click()
    assert browser.execute_script(opened)
    caption = "dialog figcaption"
    assert browser.find_element("css selector", caption).text.endswith("zero 0")
    body.send_keys("\ue014")  # the right arrow
    assert browser.find_element("css selector", caption).text.endswith("one 1")
    body.send_keys("\ue00c")  # escape
    assert not browser.execute_script(opened)
    for key in ("\ue007", " "):  # the return key, and the space key
        panel.find_element("css selector", "img").send_keys(key)
        assert browser.execute_script(opened)
        assert browser.find_elements("css selector", "dialog [tabindex]") == [], "the copy opens nothing"
        browser.find_element("xpath", "//dialog/button[text()='Close']").click()
        assert not browser.execute_script(opened)


def test_curves_are_switched_off_and_on(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    panel = section(browser, "Few curves")
    shown = "return [...arguments[0].querySelectorAll('.chart [data-curve]')].map(c => c.style.display)"
    click(panel, ".legend li:first-child button")
    assert browser.execute_script(shown, panel) == ["none", "none", ""], "the band goes with its curve"
    click(panel, ".legend li:first-child button")
    assert browser.execute_script(shown, panel) == ["", "", ""]


def test_the_theme_follows_the_system_and_a_choice_is_remembered(page: Path, browser: Any) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    stroke = "return getComputedStyle(document.querySelector('.strip line.axis')).stroke"
    colours = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page.as_uri())
        colours[scheme] = browser.execute_script(ground), browser.execute_script(stroke)
    assert colours["light"] == ("rgb(255, 255, 255)", "rgb(227, 231, 235)")
    assert colours["dark"] == ("rgb(20, 24, 29)", "rgb(46, 54, 62)")
    browser.find_element("xpath", "//nav//button[text()='Light']").click()
    assert browser.execute_script(ground) == colours["light"][0]
    browser.refresh()
    assert browser.execute_script(ground) == colours["light"][0]
    browser.execute_script("localStorage.clear()")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def words_of(browser: Any) -> str:
    """All text of the page in the browser, without the script's tools."""
    text = browser.execute_script(
        "const copy = document.body.cloneNode(true);"
        "copy.querySelectorAll('.tools, dialog, script').forEach(e => e.remove());"
        "return copy.textContent"
    )
    return "".join(text.split())


def test_without_scripts_nothing_is_missing(page: Path, browser: Any) -> None:
    whole = "".join(Elements(page.read_text(encoding="utf-8")).text.split())
    browser.get(page.as_uri())
    assert browser.find_elements("css selector", ".tool")
    assert whole.endswith(words_of(browser)), "the script adds and removes no words"
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert browser.find_elements("css selector", ".tool") == []
        assert whole.endswith(words_of(browser))
        summary = browser.find_element("css selector", "details.stage > summary")
        assert not summary.find_element("xpath", "../div").is_displayed()
        summary.click()
        assert summary.find_element("xpath", "../div").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_no_script_but_its_own_can_run(page: Path, browser: Any) -> None:
    """Were the escaping to fail, the page's policy would still stop the script."""
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>"), encoding="utf-8")
    browser.get(page.as_uri())
    assert browser.title == "odd <b>run</b> · vfm run"
    assert browser.find_elements("css selector", ".tool")
    assert any("Content Security Policy" in line["message"] for line in browser.get_log("browser"))
