"""Limits of owners at both doors of a cloud, with clear errors."""

import pytest

from privtune.cloud.limits import OwnerLimits
from privtune.device.link.download import artifact_of
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rpc import Link
from privtune.shared.errors import JobNotFound, RateLimited, StorageFull
from tests.support.builders import LEAST
from tests.support.plane import Plane
from tests.support.sessions import request_for

JOBS = "/v1/fine_tuning/jobs"


def test_a_loop_of_requests_waits_as_long_as_it_is_told(plane):
    plane.jobs.limits.set("alice", requests_per_minute=1)
    with plane.http() as client:
        answers = [client.get("/v1/models") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert answers[-1].json()["error"]["code"] == "RATE_LIMITED"
    with plane.http(plane.keys.create("bob").secret) as other:
        assert other.get("/v1/models").status_code == 200


def test_an_owner_sees_and_uses_its_models_only(tmp_path):
    plane = Plane(tmp_path, names=("tiny", "large"))
    try:
        plane.jobs.limits.set("alice", models=["tiny"])
        with plane.http() as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
            assert client.post(JOBS, json=LEAST).status_code == 200
            teaching = {"model": "large", "corpus": "reviews", "cut": 1, "task": "causal-lm"}
            for refused in (
                client.get("/v1/models/large"),
                client.post(JOBS, json=LEAST | {"model": "large"}),
                client.post("/v1/privtune/teachings", json=teaching),
            ):
                assert refused.status_code == 404
                assert refused.json()["error"]["code"] == "MODEL_NOT_FOUND"
                assert "offer you" in refused.json()["error"]["message"]
        with plane.http(plane.keys.create("bob").secret) as other:
            assert other.get("/v1/models/large").status_code == 200
    finally:
        plane.stop()


def test_unfinished_jobs_of_one_owner(plane):
    plane.jobs.limits.set("alice", unfinished_jobs=1)
    with plane.http() as client:
        first = client.post(JOBS, json=LEAST).json()["id"]
        refused = client.post(JOBS, json=LEAST)
        assert refused.status_code == 403
        assert "1 unfinished job, the most" in refused.json()["error"]["message"]
        client.post(f"{JOBS}/{first}/cancel")
        assert client.post(JOBS, json=LEAST).status_code == 200


def test_a_full_owner_is_told_at_both_doors_and_no_job_is_lost(local_world, plane, monkeypatch):
    def full(*_):
        raise StorageFull("Your jobs take 2.00 GiB here, of 1.00 that this cloud allows you; delete some.")

    monkeypatch.setattr(OwnerLimits, "check_stored", full)
    with plane.http() as client:
        answer = client.post(JOBS, json=LEAST)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "STORAGE_FULL")
        assert answer.headers["x-should-retry"] == "false"
    spec = local_world.spec()
    job_id = local_world.cloud.create_job(spec)
    with (
        Link(GatewayAccess(address=local_world.cloud.grpc_address, api_key=local_world.cloud.api_key)) as link,
        pytest.raises(StorageFull, match=r"of 1\.00"),
    ):
        link.open(request_for(local_world, job_id, spec))
    assert local_world.cloud.status(job_id)[0] == "queued"
    assert "of 1.00" in local_world.cloud.jobs.events(job_id, newest_first=True).items[0].message


def test_calls_count_as_requests_do(local_world):
    local_world.cloud.jobs.limits.set("alice", requests_per_minute=1)
    with Link(GatewayAccess(address=local_world.cloud.grpc_address, api_key=local_world.cloud.api_key)) as link:
        with pytest.raises(JobNotFound):
            list(link.fetch(artifact_of(1, "ftjob-none"), ""))
        with pytest.raises(RateLimited, match="again in"):
            list(link.fetch(artifact_of(1, "ftjob-none"), ""))
