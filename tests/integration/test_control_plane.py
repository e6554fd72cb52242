"""The control plane over real HTTP: what it refuses and how it says so, and what every answer carries."""

import json
import socket

import httpx
import openai
import pytest

from privtune.cloud.api import middleware
from privtune.device.link.rest import ControlPlane
from privtune.shared.errors import CloudUnreachable, JobConflict
from privtune.shared.versions import NEWEST
from tests.support.builders import LEAST
from tests.support.leases import begin
from tests.support.plane import Plane

# ---- refusals


def create_raw(plane, content, **headers):
    with plane.http(**headers) as client:
        return client.post("/v1/fine_tuning/jobs", content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON body"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "object"),
        (b"null", "body"),
        (b'{"model": "tiny"}', "training_file is missing"),
        (json.dumps(LEAST | {"n_epoch": 1}).encode(), "Unknown field 'n_epoch'"),
        (json.dumps(LEAST | {"privtune": {"train": {"steps": 1}}}).encode(), "'privtune.train.steps'"),
        (json.dumps(LEAST | {"privtune": {"mechanism": {"params": {"eta": float("inf")}}}}).encode(), "finite"),
        (json.dumps(LEAST | {"suffix": "\ud800"}).encode(), "suffix"),
        (json.dumps(LEAST | {"metadata": {"a": "\ud83d"}}).encode(), "metadata.a"),
        (json.dumps(LEAST | {"privtune": {"tuning": {"targets": ["\ud83d"]}}}).encode(), "half of a character (U+D83D"),
        (json.dumps(LEAST | {"privtune": {"mechanism": {"params": {"a": "\ud83d"}}}}).encode(), "half of a character"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_every_bad_body_gets_one_sentence_in_openais_shape(plane, content, words):
    answer = create_raw(plane, content)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert plane.jobs.list("alice").items == []


def test_problem_json_when_asked_for(plane):
    with plane.http(Accept="application/problem+json") as client:
        answer = client.get("/v1/fine_tuning/jobs/ftjob-none")
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"], problem["title"]) == (404, "JOB_NOT_FOUND", "Not Found")
    assert "ftjob-none" in problem["detail"]


def test_keys_are_wanted_everywhere_but_for_health(plane):
    routes = ["/v1/models", "/v1/fine_tuning/jobs", "/v1/privtune/info", "/v1/fine_tuning/jobs/x/events/stream"]
    for path in routes:
        answer = httpx.get(plane.url + path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.post(f"{plane.url}/v1/files", files={"file": b"x"}).status_code == 401
    assert httpx.get(f"{plane.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{plane.url}/readyz").json() == {"status": "ok"}


def test_a_revoked_key_is_shut_at_once(plane):
    with plane.http() as client:
        assert client.get("/v1/models").status_code == 200
        plane.keys.revoke(plane.keys.list()[0].id)
        answer = client.get("/v1/models")
    assert answer.status_code == 401
    assert "revoked" in answer.json()["error"]["message"]


def test_a_database_that_is_away_makes_the_cloud_unready_but_alive(tmp_path):
    def away():
        raise CloudUnreachable("the database does not answer")

    plane = Plane(tmp_path, check_ready=away)
    try:
        assert httpx.get(f"{plane.url}/readyz").status_code == 503
        assert httpx.get(f"{plane.url}/healthz").status_code == 200
    finally:
        plane.stop()


def test_large_bodies_are_refused_with_and_without_a_length(tmp_path):
    plane = Plane(tmp_path, max_request_bytes=2000)
    try:
        big = json.dumps(LEAST | {"metadata": {"a": "x" * 4000}}).encode()

        def pieces():
            for start in range(0, len(big), 500):
                yield big[start : start + 500]

        for content in (big, pieces()):
            answer = create_raw(plane, content)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "MESSAGE_TOO_LARGE"
        assert create_raw(plane, json.dumps(LEAST).encode()).status_code == 200
    finally:
        plane.stop()


def test_unknown_routes_methods_and_queries(plane):
    with plane.http() as client:
        assert client.get("/v1/nothing").json()["error"]["code"] == "NOT_FOUND"
        wrong = client.delete("/v1/models")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
        for query in ("limit=0", "limit=x", "limit=101", "after=ftjob-none", "status=asleep", "after=" + "x" * 200):
            answer = client.get(f"/v1/fine_tuning/jobs?{query}")
            assert answer.status_code == 400, query
            assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_a_wrong_method_is_told_all_the_right_ones(plane):
    with plane.http() as client:
        for path, allowed in (
            ("/v1/fine_tuning/jobs", "GET, POST"),
            ("/v1/files", "GET, POST"),
            ("/v1/models", "GET"),
            ("/v1/fine_tuning/jobs/x/cancel", "POST"),
        ):
            answer = client.put(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path


def test_a_listing_can_not_continue_after_what_is_not_there(plane):
    job_id, zeros = plane.make(), "0" * 24
    job = f"/v1/fine_tuning/jobs/{job_id}"
    with plane.http() as client:
        for path, unknown in (
            ("/v1/fine_tuning/jobs", f"ftjob-{zeros}"),
            (f"{job}/events", f"ftevent-{zeros}-1"),
            (f"{job}/checkpoints", f"ftckpt-{zeros}-1"),
        ):
            for after, status in ((unknown, 404), ("", 400), ("x", 400)):
                answer = client.get(path, params={"after": after})
                assert (answer.status_code, answer.json()["error"]["param"]) == (status, "after"), (path, after)


def test_files_and_tuned_models_answer_as_openais_do(plane):
    client = plane.openai()
    assert list(client.files.list()) == []
    job = client.fine_tuning.jobs.create(**LEAST)
    name = f"ft:{job.model}:{job.organization_id}::{job.id.removeprefix('ftjob-')}"
    for unfinished in (name, "ft:m:alice::none", "ft:", "ft:" + "x" * 600):
        with pytest.raises(openai.NotFoundError, match="no tuned model"):
            client.models.retrieve(unfinished)
    plane.jobs.succeed(job.id, begin(plane.jobs, job.id), adapter_sha256=None, tokens=1, steps=1)
    done = client.fine_tuning.jobs.retrieve(job.id)
    card = client.models.retrieve(done.fine_tuned_model)
    assert (card.id, card.object, card.owned_by, card.created) == (name, "model", "alice", done.finished_at)
    other = plane.openai(plane.keys.create("bob").secret)
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(name)


def test_the_documents_say_what_ids_look_like(plane):
    document = httpx.get(f"{plane.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in ("job_id", "after"):
                    kind = "teach" if "teachings" in path else "audit" if "audit-log" in path else "ft"
                    assert f'"pattern": "^{kind}' in json.dumps(parameter), (path, parameter)
    fields = document["components"]["schemas"]["CreateJobRequest"]["properties"]
    assert all("^device://" in json.dumps(fields[name]) for name in ("training_file", "validation_file"))


def test_internal_failures_tell_nothing(plane, monkeypatch):
    monkeypatch.setattr(plane.jobs, "get", lambda *_: 1 / 0)
    with plane.http() as client:
        answer = client.get("/v1/fine_tuning/jobs/x")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"


# ---- idempotency, identification, documents


def test_a_repeated_request_with_its_key_makes_no_second_job(plane):
    with plane.http(**{"Idempotency-Key": "abc"}) as client:
        first = client.post("/v1/fine_tuning/jobs", json=LEAST)
        second = client.post("/v1/fine_tuning/jobs", json=LEAST)
        other = client.post("/v1/fine_tuning/jobs", json=LEAST | {"seed": 3})
    assert first.json()["id"] == second.json()["id"]
    assert other.status_code == 409
    assert other.json()["error"]["param"] == "Idempotency-Key"
    assert len(plane.jobs.list("alice").items) == 1


def test_every_answer_carries_a_request_id(plane):
    with plane.http() as client:
        assert client.get("/v1/models").headers["x-request-id"].startswith("req-")
        assert client.get("/v1/models", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert client.get("/v1/models", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


def test_a_device_learns_where_grpc_is(plane):
    with plane.http() as client:
        info = client.get("/v1/privtune/info").json()
    assert (info["grpc_port"], info["tls"], info["protocol_version"]) == (4321, False, NEWEST)


def test_the_documents_describe_every_route_and_its_errors(plane):
    document = httpx.get(f"{plane.url}/openapi.json").json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert operation["description"], (path, method)
            assert operation["tags"], (path, method)
            if path.startswith("/v1"):
                # A device that enrols has no key yet, and whoever has no device asks for the authority.
                public = path == "/v1/privtune/enrolment"
                assert operation.get("security") or public, (path, method)
                assert "401" in operation["responses"] or (public and method == "get"), (path, method)
                assert "HTTPValidationError" not in json.dumps(operation), (path, method)
    assert httpx.get(f"{plane.url}/docs").status_code == 200


def test_a_body_that_never_ends_is_refused(plane, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_S", 0.5)
    host, port = plane.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as slow:
        slow.sendall(b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        slow.sendall(f"Authorization: Bearer {plane.key}\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b" 400 " in slow.recv(4096)


def test_an_owner_takes_a_job_from_its_device(plane):
    job_id = plane.make()
    begin(plane.jobs, job_id)
    with plane.http(plane.keys.create("bob").secret) as stranger:
        assert stranger.post(f"/v1/fine_tuning/jobs/{job_id}/release").status_code == 404
    assert plane.jobs.get(job_id).status == "running"
    with ControlPlane(plane.url, plane.key) as control:
        job = control.release(job_id)
        assert (job["status"], job["privtune"]["phase"]) == ("queued", "waiting_for_device")
        assert "taken from its device" in job["privtune"]["reason"]
        control.cancel(job_id)
        with pytest.raises(JobConflict, match="cancelled"):
            control.release(job_id)
