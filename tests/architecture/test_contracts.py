"""Who imports whom, how large files grow, and whether the generated stubs are fresh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("device", "cloud", "shared", "research", "tests", "scripts")
MAX_LINES = 500


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment in the repository root, its bin folder first on PATH."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_import_contracts_hold():
    done = run("lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_protobuf_stubs_are_fresh():
    done = run("bash", "scripts/check_protos.sh")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_is_too_long(room):
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / room).rglob("*.py")}
    too_long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert lengths, f"no Python file in {room}/"
    assert not too_long, f"split these, the cap is {MAX_LINES} lines: {too_long}"
