"""For every test: Ctrl-C means what it means to a person at a terminal, and verdicts on tiny models are kept."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that: put Python's own handler back."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.cache is not None:  # whether a model splits is tried once for all processes, not in the user's own cache
        os.environ.setdefault("PRIVTUNE_CACHE", str(config.cache.mkdir("privtune")))
