"""The device's REST client against the real control plane, and against other servers at its address."""

import socket
import threading
import time

import pytest

from privtune.device.link import rest as control_module
from privtune.device.link.rest import ControlPlane, job_spec, phase_of
from privtune.shared.errors import (
    CloudUnreachable,
    CutOutOfRange,
    InternalError,
    InvalidInput,
    JobConflict,
    JobNotFound,
    MessageTooLarge,
    ModelNotFound,
    PermissionDenied,
    Unauthenticated,
    VersionMismatch,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.versions import NEWEST
from tests.support.builders import LEAST, least_spec
from tests.support.plane import Plane

KEY = "pt-" + "k" * 40


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    made = Plane(tmp_path_factory.mktemp("plane"))
    yield made
    made.stop()


@pytest.fixture
def control(plane):
    with ControlPlane(plane.url, plane.key) as client:
        yield client


# ---- the real one


def test_a_job_comes_back_as_it_was_submitted(control):
    spec = JobSpec.model_validate(
        LEAST
        | {"cut": 2, "suffix": "mine", "validation_file": "device://dev", "mechanism": {"name": "gaussian"}}
        | {"train": {"seed": 7, "max_steps": 5}, "tuning": {"rank": 3, "targets": ["c_attn"]}}
    )
    job = control.create_job(spec)
    assert job_spec(job) == spec
    assert job_spec(control.get_job(job["id"])) == spec
    assert (job["status"], job["seed"]) == ("queued", 7)


def test_jobs_are_steered_and_their_events_read_once_in_order(control):
    job_id = control.create_job(least_spec())["id"]
    assert phase_of(control.pause(job_id)) == "held"
    assert control.resume(job_id)["status"] == "queued"
    events = control.events(job_id)
    assert [event["created_at"] for event in events] == sorted(event["created_at"] for event in events)
    assert "created" in events[0]["message"]
    assert control.cancel(job_id)["status"] == "cancelled"
    fresh = control.events(job_id, {event["id"] for event in events})
    assert len(fresh) == 1
    assert "cancelled" in fresh[0]["message"]


def test_listing_pages_filters_and_stops(plane, control, monkeypatch):
    monkeypatch.setattr(control_module, "PAGE", 3)
    mine = [plane.make() for _ in range(8)]
    control.cancel(mine[0])
    assert [job["id"] for job in control.list_jobs(limit=7)] == mine[::-1][:7]
    queued = {job["id"] for job in control.list_jobs(status=("queued",))}
    assert set(mine[1:]) <= queued
    assert mine[0] not in queued


def test_the_gateway_s_address_is_the_one_that_this_device_reaches(plane, control):
    assert control.info()["protocol_version"] == NEWEST
    assert control.grpc_address() == "127.0.0.1:4321"
    with ControlPlane(plane.url.replace("127.0.0.1", "localhost"), plane.key) as other:
        assert other.grpc_address() == "localhost:4321"


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": "gpt-9"}, ModelNotFound, "gpt-9"),
        ({"cut": 3}, CutOutOfRange, "0 to 2"),
        ({"train": {"max_length": 999}}, InvalidInput, "256"),
    ],
)
def test_refusals_arrive_as_the_errors_they_are(control, changes, kind, words):
    with pytest.raises(kind, match=words) as caught:
        control.create_job(least_spec(**changes))
    assert caught.value.param


def test_states_and_owners_are_respected(plane, control):
    job_id = plane.make()
    control.cancel(job_id)
    with pytest.raises(JobConflict, match="cancelled already"):
        control.pause(job_id)
    with pytest.raises(JobNotFound, match="ftjob-none"):
        control.get_job("ftjob-none")
    with (
        ControlPlane(plane.url, plane.keys.create("mallory").secret) as other,
        pytest.raises(JobNotFound),
    ):
        other.get_job(job_id)


def test_a_wrong_or_revoked_key(plane):
    with ControlPlane(plane.url, KEY) as client, pytest.raises(Unauthenticated, match="not known"):
        client.list_jobs()
    made = plane.keys.create("bob")
    plane.keys.revoke(made.key.id)
    with ControlPlane(plane.url, made.secret) as client, pytest.raises(Unauthenticated, match="revoked"):
        client.list_jobs()


def test_a_request_sent_again_after_a_lost_answer_makes_one_job(canned):
    """The first connection breaks before an answer; both requests carry the same Idempotency-Key."""
    server = canned(200, {"id": "ftjob-1", "status": "queued"}, drop=1)
    with ControlPlane(server.url, KEY) as client:
        assert client.create_job(least_spec())["id"] == "ftjob-1"
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in server.requests]
    assert len(keys) == 2
    assert keys[0] == keys[1]


# ---- before anything is sent


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must be like https://host:port"),
        ("cloud.example", "must be like https://host:port"),
        ("ftp://x", "must be like https://host:port"),
        ("https://", "must be like https://host:port"),
        ("https://user:pass@cloud.example", "must be like https://host:port"),
        ("http://cloud.example:8080", "Use https://"),
        ("http://192.168.1.2", "Use https://"),
        ("http://127.0.0.1.evil.example", "Use https://"),
    ],
)
def test_addresses_that_are_wrong_or_open_to_eavesdroppers(url, words):
    with pytest.raises(InvalidInput, match=words):
        ControlPlane(url, KEY)


@pytest.mark.parametrize("key", ["", "  ", "pt-ключ", "pt-a b", "pt-\x00"])
def test_keys_that_no_header_can_carry(key):
    with pytest.raises(Unauthenticated, match="API key"):
        ControlPlane("http://127.0.0.1:1", key)


def test_an_authority_file_that_is_none(tmp_path):
    (tmp_path / "ca.pem").write_text("not PEM")
    for file in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        with pytest.raises(InvalidInput, match=r"--ca-cert .* is not a readable PEM file"):
            ControlPlane("https://cloud.example", KEY, file)


@pytest.mark.parametrize("job_id", ["", "../x", "a/b", "ftjob-1/cancel", "a" * 200, "-x", "a\nb"])
def test_an_id_that_could_be_a_path_never_leaves(canned, job_id):
    server = canned(200, {})
    with ControlPlane(server.url, KEY) as client, pytest.raises(InvalidInput, match="is not a job id"):
        client.get_job(job_id)
    assert server.requests == []


# ---- what else may answer


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (404, b"<html>nothing here</html>", CloudUnreachable, "Is a PrivTune cloud there"),
        (502, b"Bad Gateway", CloudUnreachable, "HTTP 502"),
        (503, {"error": {"message": "busy", "code": None}}, CloudUnreachable, "busy"),
        (500, {"error": {"message": "oh no"}}, InternalError, "oh no"),
        (401, b"", Unauthenticated, "HTTP 401"),
        (403, {"detail": "no"}, PermissionDenied, "HTTP 403"),
        (413, b"too large", MessageTooLarge, "HTTP 413"),
        (404, {"error": {"message": "no such route", "code": "NOT_FOUND"}}, VersionMismatch, "no such route"),
        (400, {"error": {"message": "x", "code": "FROM_THE_FUTURE"}}, InvalidInput, "x"),
        (418, {"error": {"message": "teapot", "code": 7}}, InternalError, "teapot"),
        (429, {"error": "slow down"}, CloudUnreachable, "HTTP 429"),
        (200, b"<html>a captive portal</html>", VersionMismatch, "does not answer like a PrivTune cloud"),
        (200, [], VersionMismatch, "does not answer like a PrivTune cloud"),
        (
            200,
            {"protocol_version": 999},
            VersionMismatch,
            "the cloud protocol 999 .*Upgrade the device",
        ),
        (200, {"protocol_version": "x"}, VersionMismatch, "the cloud protocol 0 .*Upgrade the cloud"),
        (200, {}, VersionMismatch, "the cloud protocol 0"),
        (200, {"protocol_version": NEWEST}, VersionMismatch, "--grpc-address"),
        (200, {"protocol_version": 999, "oldest_protocol_version": NEWEST}, VersionMismatch, "--grpc-address"),
        (302, b"", CloudUnreachable, "HTTP 302"),
    ],
)
def test_each_answer_becomes_one_clear_error(canned, status, body, kind, words):
    server = canned(status, body)
    with ControlPlane(server.url, KEY) as client, pytest.raises(kind, match=words) as caught:
        client.grpc_address()
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        {"data": "none"},
        {"data": ["x"]},
        {"data": [{"id": 5, "status": "queued"}]},
        {"data": [{"id": "ftjob-1"}]},
        {},
    ],
)
def test_a_job_list_of_another_shape(canned, body):
    with ControlPlane(canned(200, body).url, KEY) as client, pytest.raises(VersionMismatch):
        client.list_jobs()


def test_a_job_id_of_the_cloud_can_not_name_a_folder_elsewhere(canned):
    body = {"id": "../../.ssh", "status": "queued"}
    with ControlPlane(canned(200, body).url, KEY) as client, pytest.raises(InvalidInput, match="is not a job id"):
        client.create_job(least_spec())


def test_a_listing_that_never_ends_ends(canned):
    body = {"data": [{"id": "ftjob-1", "status": "queued"}], "has_more": True}
    with ControlPlane(canned(200, body).url, KEY) as client:
        assert len(client.list_jobs()) == 2  # the second page ends where the first did


def test_texts_of_the_cloud_can_not_steer_a_terminal(canned):
    body = {"error": {"message": "\x1b[2Jgone\r\nroot#", "code": "JOB_CONFLICT"}}
    with ControlPlane(canned(409, body).url, KEY) as client, pytest.raises(JobConflict) as caught:
        client.get_job("ftjob-1")
    assert caught.value.message.isprintable()


def test_a_description_from_a_newer_cloud():
    for ours in ({}, {"spec": {}}, {"spec": {"model": "m", "training_file": "device://a", "new": 1}}):
        with pytest.raises(VersionMismatch, match="is the cloud newer"):
            job_spec({"id": "ftjob-1", "privtune": ours})


# ---- nobody there


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    began = time.monotonic()
    with ControlPlane(f"http://127.0.0.1:{port}", KEY) as client, pytest.raises(CloudUnreachable) as caught:
        client.list_jobs()
    assert "can't be reached (no connection). Check the address and that the cloud runs." in caught.value.message
    assert time.monotonic() - began < 10


def test_somebody_listens_and_never_answers(monkeypatch):
    monkeypatch.setattr(control_module, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(control_module, "ATTEMPTS", 1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ControlPlane(f"http://127.0.0.1:{silent.getsockname()[1]}", KEY) as client,
        pytest.raises(CloudUnreachable, match="no answer in time"),
    ):
        client.list_jobs()


def test_a_cloud_that_comes_back_between_two_attempts_is_not_missed(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    late = []

    def start():
        time.sleep(0.3)
        late.append(socket.create_server(("127.0.0.1", port)))
        connection, _ = late[0].accept()
        connection.recv(4096)
        body = b'{"data": [], "has_more": false}'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        connection.close()

    thread = threading.Thread(target=start)
    thread.start()
    with ControlPlane(f"http://127.0.0.1:{port}", KEY) as client:
        assert client.list_jobs() == []
    thread.join()
    late[0].close()
