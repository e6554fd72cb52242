"""The lock files pin everything that pyproject.toml asks for, with hashes, and name no machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {
    "lock": (
        "device",
        "cloud",
        "postgres",
        "s3",
        "traces",
        "tail",
        "serve",
        "gguf",
        "quantised",
        "hub",
        "surrogates",
        "eval",
        "dev",
    ),
    "lock-device": ("device", "surrogates", "traces", "gguf"),
    "lock-cloud": ("cloud", "postgres", "s3", "traces", "gguf"),
    "lock-demo": (),
}
NOT_LOCKED = {"torch"}  # requirements/excluded.txt


def text(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")


def pinned(lock: str) -> dict[str, str]:
    """Version of each distribution in the lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text(lock), re.MULTILINE))


def asked(lock: str) -> list[Requirement]:
    """Requirements that the lock file must meet."""
    if lock == "lock-demo":
        lines = (ROOT / "requirements" / "demo.in").read_text(encoding="utf-8").splitlines()
        return [Requirement(line) for line in lines if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [Requirement(line) for line in sum((extras[name] for name in LOCKS[lock]), project["dependencies"])]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_in_its_range(lock):
    versions = pinned(lock)
    wanted = {canonicalize_name(need.name): need.specifier for need in asked(lock)}
    missing = {
        name: versions.get(name, "not pinned")
        for name, specifier in wanted.items()
        if name not in NOT_LOCKED and not (name in versions and specifier.contains(versions[name]))
    }
    assert not missing, "run `make lock` and commit requirements/"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_version_has_hashes_and_no_index_is_named(lock):
    entries = [entry for entry in re.split(r"^(?=[a-z0-9])", text(lock), flags=re.MULTILINE) if "==" in entry]
    assert entries, "an empty lock file"
    assert not [entry for entry in entries if "--hash=sha256:" not in entry]
    assert not re.findall(r"://|--index-url|--find-links|@ file", text(lock))


@pytest.mark.parametrize("side", ["lock-device", "lock-cloud"])
def test_images_get_the_versions_that_are_tested(side):
    tested = pinned("lock")
    assert {name: version for name, version in pinned(side).items() if tested.get(name) != version} == {}
