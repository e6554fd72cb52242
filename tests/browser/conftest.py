"""One browser for all tests, and a cloud with a dashboard for each module."""

from __future__ import annotations

import pytest

from tests.support.browser import opened_browser


@pytest.fixture(scope="session")
def browser():
    with opened_browser() as browser:
        from playwright.sync_api import expect

        expect.set_options(timeout=60_000)
        yield browser
