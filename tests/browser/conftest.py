"""A browser for each module, closed after it: while it is open, nothing else in this process may run an event loop."""

from __future__ import annotations

import pytest

from tests.support.browser import opened_browser


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as browser:
        from playwright.sync_api import expect

        expect.set_options(timeout=60_000)
        yield browser
