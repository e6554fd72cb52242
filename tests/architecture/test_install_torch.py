"""Which build of torch a machine gets: the small one without a GPU, and always one."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPU = "--index-url https://download.pytorch.org/whl/cpu"


@pytest.fixture
def machine(tmp_path):
    """Installs on a made-up machine; returns what pip was asked for, call by call."""

    def tool(name, body):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def install(*, gpu=False, system="Linux", reachable=True, arguments=(), **environment):
        asked = tmp_path / "asked"
        tool("uname", f"echo {system}")
        tool("nvidia-smi", "exit 0" if gpu else "exit 9")
        refuse = "" if reachable else 'case "$*" in *whl/cpu*) exit 1;; esac'
        tool("python", f'echo "$*" >> {asked}\n{refuse}')
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_")}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        command = [str(ROOT / "scripts" / "install_torch.sh"), "python", *arguments]
        subprocess.run(command, env=clean | environment | {"PATH": path}, check=True, capture_output=True)
        return asked.read_text().splitlines()

    return install


def test_without_a_gpu_the_cpu_build(machine):
    (asked,) = machine(arguments=("--quiet",))
    assert asked == f"-m pip install {CPU} --retries 1 --timeout 10 --quiet torch==2.13.0"


def test_where_that_index_is_away_the_configured_one(machine):
    assert machine(reachable=False)[1:] == ["-m pip install torch==2.13.0"]


@pytest.mark.parametrize("what", [{"gpu": True}, {"system": "Darwin"}, {"TORCH_INDEX": ""}])
def test_elsewhere_the_configured_one(machine, what):
    assert machine(**what) == ["-m pip install torch==2.13.0"]


def test_an_index_and_a_version_of_ones_own(machine):
    asked = machine(gpu=True, TORCH_INDEX="https://mine.example", TORCH_VERSION="2.9.1")
    assert asked == ["-m pip install --index-url https://mine.example torch==2.9.1"]


def test_one_version_everywhere():
    named = {}
    for file in ("scripts/install_torch.sh", "Makefile", "device/Dockerfile", "cloud/Dockerfile", "docker-compose.yml"):
        named[file] = re.search(
            r"TORCH_VERSION(?: \?=|=|:-|: \$\{TORCH_VERSION:-) ?([\d.]+)", (ROOT / file).read_text()
        )[1]
    assert len(set(named.values())) == 1, named
