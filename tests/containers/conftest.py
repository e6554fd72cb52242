"""Fixtures of the container tests: tools, images and the composed services, made once and torn down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.composed import Composed
from tests.support.podman import Log, Podman, why_not

ROOT = Path(__file__).resolve().parents[2]
ROWS = 400


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman with its tools and the base image, logging to PRIVTUNE_COMPOSE_LOG (default: a temporary file)."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("containers")
    path = Path(os.environ.get("PRIVTUNE_COMPOSE_LOG") or work / "run.log")
    log = Log(path)
    tool = Podman(work, log)
    tool.prepare()
    yield tool
    log.close()
    print(f"\nlog of the run: {path}")


@pytest.fixture(scope="session")
def composed(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Both images built and both services up and healthy, on a sample of real sentences."""
    # What git knows or would add: a working copy has environments and data beside the code.
    folder = tmp_path_factory.mktemp("compose")
    list_files = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    sample = (sys.executable, str(ROOT / "scripts/compose_sample.py"), "--out", str(folder), "--rows", str(ROWS))
    podman.run(*sample)
    services = Composed(podman, folder)
    try:
        services.build()
        services.up()
        yield services
    finally:
        services.down()
