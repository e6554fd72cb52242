"""The compose file, for real: a job submitted over REST is trained by the composed cloud and device to its adapter."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.composed import Composed

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.timeout(2400)]

JOB = {
    "model": "minilm",
    "training_file": "device://reviews",
    "seed": 7,
    "hyperparameters": {"n_epochs": 1, "batch_size": 16},
}


def test_services_run_without_privileges(composed: Composed):
    for service in ("cloud", "device"):
        probe = "import os; print(os.getuid(), os.getgid(), [p for p in ('/', '/opt') if os.access(p, 2)])"
        assert composed.inside(service, "python", "-c", probe).strip() == "10001 10001 []"
        read_only = ("podman", "inspect", "--format", "{{.HostConfig.ReadonlyRootfs}}", composed.container(service))
        assert composed.podman.run(*read_only).strip() == "true"


def test_each_image_has_its_own_extra_only(composed: Composed):
    probe = "import importlib.util as u; print([m for m in {} if u.find_spec(m)])"
    foreign = {
        "cloud": ["pyarrow", "httpx", "pytest"],
        "device": ["fastapi", "sqlalchemy", "peft"],
    }
    for service, modules in foreign.items():
        assert composed.inside(service, "python", "-c", probe.format(modules)).strip() == "[]"


def test_the_device_never_sees_the_private_key_of_the_cloud(composed: Composed):
    listing = composed.inside("device", "ls", "-1", "/tls")
    assert "ca.pem" in listing
    assert "PRIVATE KEY" not in composed.inside("device", "sh", "-c", "cat /tls/*")


def test_a_job_over_rest_trains_to_its_adapter(composed: Composed):
    job = composed.rest("POST", "/v1/fine_tuning/jobs", JOB)
    ended = composed.wait_for_job(job["id"], timeout=900)
    events = composed.rest("GET", f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100")
    for event in reversed(events["data"]):
        composed.podman.log.raw(f"  {event['level']}: {event['message']}")
    assert ended["status"] == "succeeded", json.dumps(ended)
    composed.inside("device", "privtune", "export", job["id"], "/state/adapter")
    listing = composed.inside("device", "ls", "-l", "/state/adapter")
    assert re.search(r"\badapter_model\.safetensors\b", listing)
    assert re.search(r"\badapter_config\.json\b", listing)


def test_no_sentence_is_anywhere_in_the_cloud_volume(composed: Composed):
    lines = (composed.folder / "data/reviews.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["text"] for line in lines]
    probe = (
        "import pathlib, sys, json; needles = [s.encode() for s in json.loads(sys.argv[1])]; "
        "files = [p for p in pathlib.Path('/data').rglob('*') if p.is_file()]; "
        "print(len(files), [str(p) for p in files if any(n in p.read_bytes() for n in needles)])"
    )
    files, _, found = composed.inside("cloud", "python", "-c", probe, json.dumps(sentences[:100])).partition(" ")
    assert int(files) > 0
    assert found.strip() == "[]"
