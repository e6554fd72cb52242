"""For every test: Ctrl-C means what it means to a person at a terminal."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that: put Python's own handler back."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
