"""Each side imports with its own extra alone: everything that only other extras bring is blocked in a fresh process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("device", "cloud")
OURS = ("privtune", "research", "tests", "scripts")

# Runs in the fresh process: argv[1] is the side, argv[2] a JSON list of the top-level modules that are "not installed",
# argv[3] a JSON list of packages of the side whose modules need an extra of their own and are left out.
# `find_spec` answers None for those, as on a machine without them, so that libraries that only ask keep working.
PROBE = """
import importlib, json, pkgutil, sys

side, blocked = sys.argv[1], set(json.loads(sys.argv[2]))
left_out = tuple(name + "." for name in json.loads(sys.argv[3]))

def is_blocked(name):
    return name.partition(".")[0] in blocked or ".".join(name.split(".")[:2]) in blocked

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if is_blocked(name) else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
walked = pkgutil.walk_packages(importlib.import_module(side).__path__, side + ".")
names = [module.name for module in walked if not module.name.startswith(left_out)]
for name in names:
    if not name.endswith("__main__") and ".migrations." not in name:  # those run only inside alembic
        importlib.import_module(name)
print(json.dumps({"imported": names, "leaked": sorted(filter(is_blocked, sys.modules))}))
"""


def extras() -> dict[str, list[str]]:
    """Read the extras of pyproject.toml, with `all` left out: it only names others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name: needs for name, needs in project["optional-dependencies"].items() if name != "all"} | {
        "": project["dependencies"]
    }


def closure(requirements: list[str]) -> set[str]:
    """Canonical names of the distributions that pip installs for `requirements`, as far as they are installed here."""
    found: set[str] = set()
    todo = [(Requirement(line), "") for line in requirements]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in found:
            continue
        found |= {key, name}
        try:
            needs = requires(name) or []
        except ModuleNotFoundError:
            continue
        todo += [(Requirement(line), wanted) for line in needs for wanted in ("", *requirement.extras)]
    return {name for name in found if "[" not in name}


def blocked_modules(side: str, *more: str) -> list[str]:
    """Top-level modules that `pip install privtune[side,more]` would not bring, and the other side's own package."""
    table = extras()
    allowed = closure([line for extra in ("", side, *more) for line in table[extra]])
    owners = {top: {canonicalize_name(name) for name in names} for top, names in packages_distributions().items()}
    foreign = {top for top, names in owners.items() if not names & allowed and top not in OURS}
    keep = {"pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel"}
    return sorted(
        {top for top in foreign - keep if re.fullmatch(r"[A-Za-z_]\w*", top)}
        | {f"privtune.{other}" for other in SIDES if other != side}
    )


# What must be among the blocked for the test to mean anything.
ABSENT = {
    "device": {
        "privtune.cloud",
        "fastapi",
        "sqlalchemy",
        "alembic",
        "peft",
        "uvicorn",
        "sse_starlette",
        "cryptography",
        "gguf",
    },
    "cloud": {"privtune.device", "pyarrow", "datasets", "gguf"},
}


# What needs an extra beyond its side's own.
LEFT_OUT = {"serve": "privtune.device.endpoint", "keyring": "privtune.device.home.encryption"}


def probe(side: str, blocked: list[str], left_out: Iterable[str] = ()) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, f"privtune.{side}", json.dumps(blocked), json.dumps([*left_out])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("side", SIDES)
def test_a_side_imports_with_its_own_extra_alone(side):
    blocked = blocked_modules(side)
    missing = ABSENT[side] - set(blocked)
    assert not missing, f"the test no longer blocks {missing} for {side}: has an extra of pyproject.toml grown?"
    seen = probe(side, blocked, LEFT_OUT.values())
    assert f"privtune.{side}.cli" in seen["imported"]
    assert seen["leaked"] == []


@pytest.mark.parametrize(("extra", "module"), [("serve", "endpoint_server"), ("keyring", "conversion")])
def test_what_needs_an_extra_of_its_own_imports_with_it(extra, module):
    blocked = blocked_modules("device", extra)
    assert extras()[extra][0].partition(">")[0] not in blocked
    assert {"sqlalchemy", "peft", "privtune.cloud"} <= set(blocked)
    seen = probe("device", blocked, {*LEFT_OUT.values()} - {LEFT_OUT[extra]})
    assert f"{LEFT_OUT[extra]}.{module}" in seen["imported"]
    assert seen["leaked"] == []
