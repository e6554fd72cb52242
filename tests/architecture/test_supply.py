"""What a build takes from elsewhere is named exactly, and what a release runs exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from privtune.cloud.server.server import DRAIN_S

ROOT = Path(__file__).resolve().parents[2]
PINNED = re.compile(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}")


def test_images_are_built_on_one_base_by_digest():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    bases = {
        re.fullmatch(r"\$\{PYTHON_IMAGE:-(.+)\}", service["build"]["args"]["PYTHON_IMAGE"])[1]
        for service in compose["services"].values()
    }
    for side in ("cloud", "device"):
        text = (ROOT / side / "Dockerfile").read_text(encoding="utf-8")
        bases |= set(re.findall(r"^ARG PYTHON_IMAGE=(.+)$", text, re.MULTILINE))
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
        assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert len(bases) == 1
    assert PINNED.fullmatch(bases.pop())


@pytest.mark.parametrize("name", ["ci", "release"])
def test_a_workflow_runs_what_is_here_and_may_do_little_else(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for command in (step["run"] for step in job["steps"] if "run" in step):
            if command.startswith("make "):
                assert set(command.split()[1:]) <= targets
            if command.startswith("."):
                assert (ROOT / command).exists()


def test_a_release_is_signed_and_has_what_was_built_from():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    [job] = yaml.safe_load(text)["jobs"].values()
    steps = [step.get("run", "") or step["uses"].partition("@")[0] for step in job["steps"]]
    made, signed = steps.index("make wheel sbom"), steps.index("actions/attest-build-provenance")
    published = next(place for place, step in enumerate(steps) if step.startswith("gh release create"))
    assert steps.index("make vulnerabilities") < made < signed < published
    assert job["steps"][signed]["with"]["subject-path"] == "dist/*"
    assert "dist/*" in steps[published]


def test_services_have_no_privileges_and_time_to_drain():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_S
