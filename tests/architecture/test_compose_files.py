"""The overlays of docker-compose.yml fit it, and .env.example names every variable. Their images are not run here."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "docker-compose.yml"
OVERLAYS = sorted(ROOT.glob("docker-compose.*.yml"))
_VARIABLE = re.compile(r"\$\{(\w+)([^}]*)\}")


@pytest.mark.parametrize("file", [BASE, *OVERLAYS], ids=lambda file: file.name)
def test_every_variable_is_in_the_example_and_no_secret_has_a_default(file):
    named = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for name, rest in _VARIABLE.findall(file.read_text()):
        assert name in named or name == "TORCH_GPU_INDEX", name
        assert rest.startswith(":?") or not re.search("PASSWORD|SECRET|KEY", name), f"{name} has a default"


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.name)
def test_an_overlay_changes_the_cloud_and_hardens_what_it_adds(file):
    base, overlay = (yaml.safe_load(one.read_text()) for one in (BASE, file))
    assert "cloud" in overlay["services"]
    volumes = {**base["volumes"], **overlay.get("volumes", {})}
    for name, service in overlay["services"].items():
        for needed in service.get("depends_on", ()):
            assert needed in base["services"] | overlay["services"]
        if name not in base["services"]:
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert "ports" not in service, "only the cloud and the device reach it"
            assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(volumes)
            assert "healthcheck" in service
