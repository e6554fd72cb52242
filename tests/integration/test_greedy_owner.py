"""One owner takes what it can of a real cloud's control plane; others are served, and what it leaves is bounded."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import httpx
import pytest

from privtune.device.link.download import artifact_of
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rest import ControlPlane
from privtune.device.link.rpc import Link
from privtune.shared.errors import CloudUnreachable, PermissionDenied, PrivTuneError, RateLimited
from privtune.shared.manifest import write_manifest
from privtune.split.v1 import split_pb2 as pb
from tests.support.plane import read_stream
from tests.support.running import wait_until
from tests.support.sessions import request_for
from tests.support.world import ProcessCloud, build_world

pytestmark = pytest.mark.timeout(280)
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIVTUNE_CLOUD_MAX_CHANGES", "3000")
        built = build_world(tmp_path_factory.mktemp("greedy"), ProcessCloud)
    yield built
    built.cloud.stop()


def keys(world, *words):
    command = (sys.executable, "-m", "privtune.cloud.cli", "keys", *words, "--data", str(world.folder / "cloud"))
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True).stdout.strip()


def client(world, key):
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    return httpx.Client(base_url=world.cloud.http_url, headers=headers, timeout=30, limits=limits)


def body(world):
    spec = world.spec().model_dump(mode="json", exclude_none=True)
    top = {name: spec.pop(name) for name in ("model", "training_file")}
    return top | {"privtune": spec}


def create_many(control, spec, count):
    return [control.create_job(spec)["id"] for _ in range(count)]


def test_another_owner_gets_an_event_stream_when_one_has_taken_them_all(world):
    theirs = keys(world, "create", "--owner", "bob")
    with ExitStack() as stack:
        greedy, other = (stack.enter_context(client(world, key)) for key in (world.cloud.api_key, theirs))
        job_id, other_id = (one.post(JOBS, json=body(world)).json()["id"] for one in (greedy, other))
        path = f"{JOBS}/{job_id}/events/stream"
        held = [stack.enter_context(greedy.stream("GET", path)) for _ in range(256)]
        assert {response.status_code for response in held} == {200}
        assert greedy.get(path).status_code == 403
        response = stack.enter_context(other.stream("GET", f"{JOBS}/{other_id}/events/stream"))
        assert response.status_code == 200
        assert next(read_stream(response))[1]["type"] == "message"


def big_file(world, job_id):
    """Puts a file into a job's finished adapter that is larger than what waits between two machines."""
    folder = world.folder / "cloud" / "jobs" / job_id / "adapter"
    folder.mkdir(parents=True)
    (folder / "big.bin").write_bytes(bytes(64 << 20))
    write_manifest(folder)
    return "big.bin"


def test_files_that_an_owner_fetches_and_does_not_read_are_bounded(world):
    key, theirs = (keys(world, "create", "--owner", name) for name in ("frank", "grace"))
    with ExitStack() as stack:
        frank, grace = (
            stack.enter_context(Link(GatewayAccess(address=world.cloud.grpc_address, api_key=one)))
            for one in (key, theirs)
        )
        job_id, other_id = (
            stack.enter_context(ControlPlane(world.cloud.http_url, one)).create_job(world.spec())["id"]
            for one in (key, theirs)
        )
        file = big_file(world, job_id)
        held = [frank.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), file) for _ in range(16)]
        assert all(next(one) for one in held)
        with pytest.raises(CloudUnreachable, match="16 calls of this owner are under way"):
            next(frank.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), file))
        with pytest.raises(CloudUnreachable, match="16 calls"):
            frank.open(request_for(world, job_id, world.spec()))
        assert grace.open(request_for(world, other_id, world.spec())).session_epoch
        held.pop().close()
        wait_until(lambda: opens(frank, request_for(world, job_id, world.spec())))
        for one in held:
            one.close()


def opens(link, request):
    with suppress(CloudUnreachable):
        return link.open(request)


def test_a_revoked_key_ends_what_it_fetches(world):
    key = keys(world, "create", "--owner", "heidi")
    with (
        ControlPlane(world.cloud.http_url, key) as control,
        Link(GatewayAccess(address=world.cloud.grpc_address, api_key=key)) as link,
    ):
        job_id = control.create_job(world.spec())["id"]
        fetched = link.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), big_file(world, job_id))
        next(fetched)
        unread = [link.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), "big.bin") for _ in range(15)]
        assert all(next(one) for one in unread)
        keys(world, "revoke", key[:9])
        with Link(
            GatewayAccess(address=world.cloud.grpc_address, api_key=keys(world, "create", "--owner", "heidi"))
        ) as new:
            began = time.monotonic()
            wait_until(lambda: opens(new, request_for(world, job_id, world.spec())))
            assert time.monotonic() - began < 10, "what is not read ends as well"
        with pytest.raises(PrivTuneError, match="was revoked"):
            list(fetched)


def test_create_and_cancel_leave_a_small_database(world):
    with client(world, keys(world, "create", "--owner", "carol")) as carol:
        for _ in range(300):
            job_id = carol.post(JOBS, json=body(world)).json()["id"]
            assert carol.post(f"{JOBS}/{job_id}/cancel").status_code == 200
        listed, after = 0, None
        while True:
            page = carol.get(JOBS, params={"limit": 100} | ({"after": after} if after else {})).json()
            listed, after = listed + len(page["data"]), page["last_id"]
            if not page["has_more"]:
                break
    assert listed <= 201
    assert sum(file.stat().st_size for file in (world.folder / "cloud").glob("cloud.sqlite*")) < 8 << 20


def test_unfinished_jobs_are_bounded(world):
    with ControlPlane(world.cloud.http_url, keys(world, "create", "--owner", "dave")) as dave:
        newest = create_many(dave, world.spec(), 100)[-1]
        with pytest.raises(PermissionDenied, match="100 unfinished jobs"):
            dave.create_job(world.spec())
        dave.cancel(newest)
        dave.create_job(world.spec())


def test_a_loop_of_creations_is_told_when_to_go_on(tmp_path, monkeypatch, world):
    monkeypatch.setenv("PRIVTUNE_CLOUD_MAX_CHANGES", "60")
    cloud = ProcessCloud(tmp_path / "cloud", world.models)
    try:
        with client(world, cloud.api_key) as one:
            one.base_url = cloud.http_url
            answers, refused = [], []
            while len(refused) < 5 and len(answers) < 300:  # on a slow machine more come back meanwhile
                answers.append(one.post(JOBS, json=body(world)))
                refused = [answer for answer in answers if answer.status_code == 429]
            assert len(refused) == 5
            assert {answer.status_code for answer in answers} == {200, 429}
            assert len(answers) >= 60
            assert 1 <= int(refused[-1].headers["retry-after"]) <= 60
            error = refused[-1].json()["error"]
            assert (error["code"], error["type"]) == ("RATE_LIMITED", "rate_limit_error")
            job_id = answers[0].json()["id"]
            assert one.post(f"{JOBS}/{job_id}/cancel").status_code == 200
            with (
                ControlPlane(cloud.http_url, cloud.api_key) as device,
                pytest.raises(RateLimited, match="try again in"),
            ):
                create_many(device, world.spec(), 30)
            time.sleep(int(refused[-1].headers["retry-after"]))
            assert one.post(JOBS, json=body(world)).status_code == 200
    finally:
        cloud.stop()


def test_a_revoked_key_ends_its_event_streams_and_calls(world):
    key = keys(world, "create", "--owner", "erin")
    spec = world.spec()
    with (
        client(world, key) as erin,
        Link(GatewayAccess(address=world.cloud.grpc_address, api_key=key)) as link,
    ):
        job_id = erin.post(JOBS, json=body(world)).json()["id"]
        request = request_for(world, job_id, spec)
        training = link.stream(link.open(request), job_id, infer=False, patience=30)
        with erin.stream("GET", f"{JOBS}/{job_id}/events/stream") as response:
            events = read_stream(response)
            assert next(events)
            keys(world, "revoke", key[:9])
            began = time.monotonic()
            with suppress(StopIteration):
                while next(events):
                    pass
            with pytest.raises(PrivTuneError, match="was revoked"):
                training.receive()
            assert time.monotonic() - began < 5
        assert erin.get(JOBS).status_code == 401
        with pytest.raises(PrivTuneError, match="was revoked"):
            link.open(request)
