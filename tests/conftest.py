"""For every test: Ctrl-C means what it means to a person at a terminal, and verdicts on tiny models are kept.

For all of them together: what takes longest begins first, and no collection of garbage looks at what is imported.
"""

from __future__ import annotations

import gc
import os
import signal

import pytest

# Files that take longest. Begun last, they would leave one process of `make test` with nothing to do.
FIRST = ("tests/e2e/", "tests/integration/", "tests/security/", "tests/unit/shared/modeling/")


gc.disable()  # until everything is imported: it makes objects by the million, and all of them stay


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that: put Python's own handler back."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.cache is not None:  # whether a model splits is tried once for all processes, not in the user's own cache
        os.environ.setdefault("PRIVTUNE_CACHE", str(config.cache.mkdir("privtune")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of `FIRST` come first; `make test` starts files in this order."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_collection_finish() -> None:
    """From here on garbage is collected, but never searched for among torch, transformers and the tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server; see `tests.support.postgres`."""
    from tests.support.postgres import Postgres

    server = Postgres()
    yield server
    server.stop()
