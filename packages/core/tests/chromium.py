"""Headless Chromium for tests of pages, and the actions of a reader."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

needs_chromium = pytest.mark.needs("chromium or google-chrome", "chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium that logs its console and its requests, for tests that have the mark below."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield chromium
    chromium.quit()


def section(browser: Any, title: str) -> Any:
    """Return the panel with a title, after opening its stage."""
    browser.execute_script("document.querySelectorAll('details.stage').forEach(d => { d.open = true })")
    return browser.find_element("xpath", f"//section[h4='{title}']")


def seen(panel: Any, selector: str) -> list[str]:
    return [element.text for element in panel.find_elements("css selector", selector) if element.is_displayed()]


def click(panel: Any, selector: str) -> None:
    panel.parent.execute_script("arguments[0].click()", panel.find_element("css selector", selector))
