"""docker-compose.yml with every combination of its overlays: variables, secrets, privileges, and what reaches whom.

Files are merged as Docker does it: mappings by key, ports and volumes added up, anything else replaced. The images of
overlays are not run here.
"""

import itertools
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "docker-compose.yml"
OVERLAYS = sorted(ROOT.glob("docker-compose.*.yml"))
ADDED_UP = {"ports", "volumes", "secrets", "depends_on", "tmpfs", "cap_drop", "security_opt"}
COMBINATIONS = [some for size in range(len(OVERLAYS) + 1) for some in itertools.combinations(OVERLAYS, size)]
SECRET = re.compile("PASSWORD|SECRET|KEY(?!_ID$)|KEY_ID|TLS_KEY")
# Services whose image runs as root, and why. All capabilities are dropped from them as well.
AS_ROOT = {"minio": "its image gives /data to root"}
_VARIABLE = re.compile(r"\$\{(\w+)([^}]*)\}")
EXAMPLE = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def load(file):
    return yaml.safe_load(file.read_text())


def merged(one, other, key=""):
    """Two documents as Docker merges them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {name: merged(one[name], value, name) if name in one else value for name, value in other.items()}
    if isinstance(one, list) and isinstance(other, list) and key in ADDED_UP:
        return one + other
    return other


@pytest.fixture(params=COMBINATIONS, ids=lambda some: "+".join(one.name.split(".")[1] for one in some) or "base")
def deployment(request):
    whole = load(BASE)
    for overlay in request.param:
        whole = merged(whole, load(overlay))
    return whole


def test_no_overlay_is_missing():
    assert {one.name.split(".")[1] for one in OVERLAYS} == {"gpu", "observability", "postgres", "s3", "tls"}
    listed = set(re.findall(r"^#   (docker-compose\.\w+\.yml)", BASE.read_text(), re.MULTILINE))
    assert listed == {one.name for one in OVERLAYS}
    assert (
        set(re.findall(r"^# ---- (docker-compose\.\w+\.yml)", (ROOT / ".env.example").read_text(), re.MULTILINE))
        == listed
    )


@pytest.mark.parametrize("file", [BASE, *OVERLAYS], ids=lambda file: file.name)
def test_every_variable_is_in_the_example_with_its_default_and_no_secret_has_one(file):
    for name, rest in _VARIABLE.findall(file.read_text()):
        assert name in EXAMPLE, name
        if SECRET.search(name):
            assert rest.startswith(":?"), f"{name} has a default"
        elif rest.startswith((":-", "-")):
            default = rest.lstrip(":-").partition("@sha256")[0]
            assert EXAMPLE[name] == default, f"{name}: .env.example shows another default"
        else:
            assert rest.startswith(":?"), f"{name} has neither a default nor a reason"


def test_the_example_names_no_variable_that_nothing_reads():
    read = {name for file in (BASE, *OVERLAYS) for name, _ in _VARIABLE.findall(file.read_text())}
    assert set(EXAMPLE) == read


def test_no_secret_is_in_a_file(deployment):
    for name, service in deployment["services"].items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable) and not str(value).startswith("/run/secrets/"):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", value), f"{name}: {variable}"


def test_no_service_has_privileges(deployment):
    for name, service in deployment["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "pid", "network_mode", "ipc"} & set(service), name
        built = "build" in service  # test_supply.py sees that our images have a user
        assert built or name in AS_ROOT or service["user"] not in ("root", "0"), name


def test_only_loopback_is_published_unless_the_operator_says_so(deployment):
    for name, service in deployment["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith(("127.0.0.1:", "${PRIVTUNE_BIND:-127.0.0.1}:")), f"{name}: {port}"
            assert not port.endswith(":9464"), "the metrics name owners: they are for Prometheus alone"


def test_what_is_used_is_there(deployment):
    services, volumes = deployment["services"], set(deployment["volumes"])
    for name, service in services.items():
        assert "healthcheck" in service, name
        needed = service.get("depends_on", ())
        assert set(needed) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0] if not volume.startswith("${") else "."
            assert source in volumes or source.startswith("."), f"{name}: {volume}"
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
        assert set(service.get("secrets", ())) <= set(deployment.get("secrets", ()))


def test_the_cloud_never_sees_the_owners_data_and_the_device_no_key_of_the_cloud(deployment):
    services = deployment["services"]
    assert not [one for one in services["cloud"]["volumes"] if "PRIVTUNE_DATA" in one or "device-state" in one]
    assert not [one for one in services["device"]["volumes"] if "cloud-data" in one]
    assert "secrets" not in services["device"]
    assert not [name for name in services["device"]["environment"] if name.startswith("OTEL_")], "its own collector"
