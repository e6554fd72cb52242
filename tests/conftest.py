"""For every test: Ctrl-C means what it means to a person at a terminal, and verdicts on tiny models are kept.

For all of them together: what takes longest begins first, and no collection of garbage looks at what is imported.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What fails because its cloud has ended says how that ended."""
    report = yield
    if report.failed and (world := sys.modules.get("tests.support.world")) is not None:
        report.sections += [("a cloud that has ended", told) for told in world.ended_clouds()]
    return report


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server; see `tests.support.postgres`."""
    from tests.support.postgres import Postgres

    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server():
    """A server that speaks S3; see `tests.support.s3`."""
    from tests.support.s3 import S3

    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The server, whose address and key this process has in its environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.down.unlink(missing_ok=True)
