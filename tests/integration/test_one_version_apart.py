"""A device and a cloud one version apart, each way: a wheel of the version before, as a process of its own.

Either the job ends well, or one line names both versions and says what to do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.world import ProcessCloud, build_world

BEFORE = "24b64f3"  # the last commit of the version before; move it with each release
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, **kwargs).stdout


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with the packages of that version; what they need is in this environment."""
    known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{BEFORE}^{{commit}}"]
    if subprocess.run(known, capture_output=True, check=False).returncode:
        pytest.skip(f"the history has no commit {BEFORE} (a shallow clone)")
    source, packages = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("packages")
    archive = run(["git", "-C", str(ROOT), "archive", BEFORE])
    run(["tar", "-x", "-C", str(source)], input=archive)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(source / "dist"), str(source)])
    [wheel] = (source / "dist").glob("*.whl")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), str(wheel)])
    return packages


def environment_of(packages):
    """In which Python imports that version of PrivTune."""
    environment = os.environ | {"PYTHONPATH": str(packages)}
    said = run([sys.executable, "-c", "import privtune.shared as it; print(it.__file__)"], env=environment, cwd="/")
    assert said.decode().startswith(str(packages))
    return environment


@pytest.fixture(params=["old device", "old cloud"])
def pair(request, before, tmp_path):
    """A world, and the environment of its device."""
    old, new = environment_of(before), dict(os.environ)
    device, cloud = (old, new) if request.param == "old device" else (new, old)

    class ThatCloud(ProcessCloud):
        def __init__(self, *arguments, **more):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", cloud.get("PYTHONPATH", ""))
                super().__init__(*arguments, threads=None, **more)

    world = build_world(tmp_path, ThatCloud)
    yield world, device | world.environment
    world.cloud.stop()


def test_a_job_runs_or_one_line_names_both_versions_and_what_to_do(pair):
    world, environment = pair
    command = [sys.executable, "-m", "privtune.device.cli", "finetune", "--model", "enc", "--protect", "none"]
    command += ["--data", world.data.path, "--batch-size", "8", "--max-length", "16", "--max-steps", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode in (0, 9), done.stderr
    if done.returncode == 0:
        [job] = world.cloud.control.list_jobs()
        assert job["status"] == "succeeded"
        predict = [*command[:3], "predict", job["id"], "--text", "w5 w6 w7"]
        asked = subprocess.run(predict, env=environment, capture_output=True, text=True, check=False, cwd="/")
        assert asked.returncode == 0, asked.stderr
    else:
        [line] = done.stderr.strip().splitlines()
        assert line.count("protocol") + line.count("PrivTune") >= 2
        assert "pgrade" in line
