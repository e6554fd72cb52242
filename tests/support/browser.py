"""A real browser without a window, and what it says of a page: errors, accessibility, a picture."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVERY_LOOK = (("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390))
LOOKS = EVERY_LOOK if "PRIVTUNE_EVERY_LOOK" in os.environ else (("light", 1280), ("dark", 390))
_SCREENSHOTS = "PRIVTUNE_SCREENSHOTS"
_SERIOUS = ("serious", "critical")


@contextmanager
def opened_browser():
    """Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def log_in(browser, url, key):
    """A page that is logged in, in a profile of its own. What it logs as errors is in `page.errors`."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"{url}/")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Log in").click()
    return page


def check_looks(page, name, looks=LOOKS):
    """Raise for a serious finding of axe-core, or for a page wider than the screen, in light and dark and on a phone.

    With PRIVTUNE_EVERY_LOOK also in dark on a large screen and in light on a phone.
    With PRIVTUNE_SCREENSHOTS=FOLDER a picture of each is left there.
    """
    from axe_playwright_python.sync_playwright import Axe

    for scheme, width in looks:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        found = Axe().run(page).response["violations"]
        serious = [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in _SERIOUS]
        assert not serious, (name, scheme, width, serious)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} pixels wide on a screen of {width}"
        if folder := os.environ.get(_SCREENSHOTS):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{folder}/{name}-{scheme}-{width}.png", full_page=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
