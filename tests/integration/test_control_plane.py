"""The control plane over real HTTP: OpenAI's own client, raw requests, event streams, and whole processes."""

import json
import socket
import threading
import time

import httpx
import openai
import pytest
import uvicorn

from privtune.cloud.api.app import create_app
from privtune.cloud.auth import ApiKeys
from privtune.cloud.catalog import Catalog
from privtune.cloud.db.store import Store, sqlite_url
from privtune.cloud.jobs.notify import Notifier
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.settings import Settings
from privtune.shared.errors import CloudUnreachable
from privtune.shared.job_spec import JobSpec

LEAST = {"model": "tiny", "training_file": "device://reviews"}


class Plane:
    """A control plane on loopback, in a thread of this process."""

    def __init__(self, folder, *, max_event_streams=8, check_ready=None, **limits):
        model = folder / "tiny"
        model.mkdir(exist_ok=True)
        config = {"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "vocab_size": 99, "n_positions": 256}
        (model / "config.json").write_text(json.dumps(config))
        (model / "model.safetensors").write_bytes(b"")
        self.store = Store(sqlite_url(folder / "cloud.sqlite"))
        self.store.upgrade()
        self.jobs = Jobs(self.store, notifier=Notifier(max_event_streams), max_active_per_owner=50)
        self.keys = ApiKeys(self.store)
        self.key = self.keys.create("alice").secret
        settings = Settings(data_folder=folder, grpc_port=4321, **limits)
        app = create_app(
            self.jobs, self.keys, Catalog([f"tiny={model}"]), settings, check_ready=check_ready or self.store.ping
        )
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.socket]), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def http(self, key=None, **headers):
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key or self.key}"} | headers, timeout=20
        )

    def openai(self, key=None):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def make(self, **fields):
        return self.jobs.create("alice", JobSpec(**LEAST), **fields).id

    def stop(self):
        self.jobs.close()
        self.server.should_exit = True
        self.thread.join(15)
        assert not self.thread.is_alive(), "an open stream must not keep the server from stopping"
        self.store.close()


@pytest.fixture
def plane(tmp_path):
    made = Plane(tmp_path)
    yield made
    made.stop()


# ---- OpenAI's own client


def test_openais_client_creates_lists_retrieves_cancels_and_reads_events(plane):
    client = plane.openai()
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file="device://reviews",
        validation_file="device://held-out",
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        extra_body={"privtune": {"cut": 1, "train": {"max_length": 64}}},
    )
    assert job.object == "fine_tuning.job"
    assert (job.status, job.seed, job.hyperparameters.n_epochs, job.method.type) == ("queued", 7, 2, "supervised")
    assert job.metadata == {"team": "a"}
    again = client.fine_tuning.jobs.retrieve(job.id)
    assert again == job
    spec = JobSpec.model_validate(again.privtune["spec"])
    assert (spec.train.max_length, spec.train.epochs, spec.suffix) == (64, 2, "mine")
    assert spec.fingerprint() == again.privtune["spec_fingerprint"]
    assert [item.id for item in client.fine_tuning.jobs.list()] == [job.id]
    assert [item.id for item in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [job.id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "b"})) == []
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    assert cancelled.finished_at >= cancelled.created_at
    events = list(client.fine_tuning.jobs.list_events(job.id))
    assert [event.level for event in events] == ["info", "info"]
    assert "cancelled" in events[0].message, "newest first, as OpenAI's"
    assert "created" in events[1].message


def test_openais_client_pauses_resumes_and_sees_our_own_status(plane):
    client, job_id = plane.openai(), plane.make()
    assert client.fine_tuning.jobs.pause(job_id).status == "paused"
    assert client.fine_tuning.jobs.retrieve(job_id).status == "paused"
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"


def test_openais_client_sees_how_a_job_ended(plane):
    client = plane.openai()
    good, bad = plane.make(), plane.make()
    plane.jobs.start(good)
    plane.jobs.progress(good, step=3, total_steps=6)
    plane.jobs.record_checkpoint(good, 3)
    running = client.fine_tuning.jobs.retrieve(good)
    assert (running.status, running.privtune["phase"], running.privtune["progress"]["step"]) == (
        "running",
        "training",
        3,
    )
    plane.jobs.succeed(good, adapter_sha256="a" * 64, tokens=123, steps=6)
    plane.jobs.fail(bad, "NON_FINITE", "Training produced NaN in step 4.")
    done = client.fine_tuning.jobs.retrieve(good)
    assert (done.status, done.trained_tokens) == ("succeeded", 123)
    assert done.fine_tuned_model == f"ft:tiny:alice::{good.removeprefix('ftjob-')}"
    failed = client.fine_tuning.jobs.retrieve(bad)
    assert (failed.error.code, failed.error.message) == ("NON_FINITE", "Training produced NaN in step 4.")
    checkpoints = client.fine_tuning.jobs.checkpoints.list(good)
    assert [item.step_number for item in checkpoints] == [3]
    metrics = [event for event in client.fine_tuning.jobs.list_events(good) if event.type == "metrics"]
    assert metrics[0].data["step"] == 3


def test_openais_client_pages_by_itself(plane):
    made = [plane.make() for _ in range(25)]
    client = plane.openai()
    assert [job.id for job in client.fine_tuning.jobs.list(limit=10)] == made[::-1]
    for number in range(30):
        plane.jobs.add_event(made[0], "info", str(number))
    told = [event.message for event in client.fine_tuning.jobs.list_events(made[0], limit=7)]
    assert told[:30] == [str(number) for number in range(29, -1, -1)]
    assert len(told) == 31


def test_openais_client_lists_models(plane):
    client = plane.openai()
    assert [model.id for model in client.models.list()] == ["tiny"]
    model = client.models.retrieve("tiny")
    assert model.privtune["cuts"] == {"min": 0, "max": 2}
    assert model.owned_by == "privtune-cloud"


def test_openais_client_gets_its_own_exceptions(plane):
    client, job_id = plane.openai(), plane.make()
    create = client.fine_tuning.jobs.create
    with pytest.raises(openai.NotFoundError, match="/v1/models") as unknown:
        create(model="gpt-9", training_file="device://a")
    assert (unknown.value.code, unknown.value.param) == ("MODEL_NOT_FOUND", "model")
    with pytest.raises(openai.BadRequestError, match="0 to 2") as cut:
        create(model="tiny", training_file="device://a", extra_body={"privtune": {"cut": 3}})
    assert cut.value.code == "CUT_OUT_OF_RANGE"
    with pytest.raises(openai.BadRequestError, match="device://NAME"):
        create(model="tiny", training_file="file-abc123")
    with pytest.raises(openai.BadRequestError, match="stays on the device"):
        client.files.create(file=b"secret text" * 100_000, purpose="fine-tune")
    with pytest.raises(openai.AuthenticationError, match="not known"):
        plane.openai("pt-" + "x" * 43).models.list()
    with pytest.raises(openai.NotFoundError):
        plane.openai(plane.keys.create("mallory").secret).fine_tuning.jobs.retrieve(job_id)
    client.fine_tuning.jobs.cancel(job_id)
    began = time.monotonic()
    with pytest.raises(openai.ConflictError, match="cancelled already"):
        openai.OpenAI(base_url=f"{plane.url}/v1", api_key=plane.key).fine_tuning.jobs.pause(job_id)
    assert time.monotonic() - began < 5


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
    assert other.status_code == 400
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
    assert (info["grpc_port"], info["tls"], info["protocol_version"]) == (4321, False, 2)


def test_the_documents_describe_every_route_and_its_errors(plane):
    document = httpx.get(f"{plane.url}/openapi.json").json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert operation["description"], (path, method)
            assert operation["tags"], (path, method)
            if path.startswith("/v1"):
                assert operation["security"], (path, method)
                assert "401" in operation["responses"], (path, method)
                assert "HTTPValidationError" not in json.dumps(operation), (path, method)
    assert httpx.get(f"{plane.url}/docs").status_code == 200


# ---- event streams


def read_stream(response):
    """(id, event) pairs of a server-sent stream."""
    found = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name in ("id", "data", "event"):
            found[name] = value
        elif not line and "data" in found:
            yield found["id"], json.loads(found["data"])
            found = {}


def test_a_stream_tells_everything_live_and_ends_with_the_job(plane):
    job_id = plane.make()

    def work():
        time.sleep(0.3)
        plane.jobs.start(job_id)
        for number in range(150):
            plane.jobs.add_event(job_id, "info", f"number {number}")
        plane.jobs.succeed(job_id, adapter_sha256="a" * 64, tokens=1, steps=1)

    thread = threading.Thread(target=work)
    thread.start()
    with plane.http() as client, client.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/events/stream") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = list(read_stream(response))
    thread.join()
    expected = plane.jobs.events(job_id, limit=100).items + plane.jobs.events(job_id, limit=100, after=100).items
    assert [event["message"] for _, event in told] == [event.message for event in expected]
    assert all(identity == event["id"] for identity, event in told)


def test_a_stream_goes_on_behind_the_last_event_and_then_says_no_more(plane):
    job_id = plane.make()
    for number in range(5):
        plane.jobs.add_event(job_id, "info", str(number))
    plane.jobs.cancel(job_id)
    path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
    with plane.http() as client:
        events = client.get(f"/v1/fine_tuning/jobs/{job_id}/events?order=asc").json()["data"]
        with client.stream("GET", path, headers={"Last-Event-ID": events[3]["id"]}) as response:
            assert [event["id"] for _, event in read_stream(response)] == [event["id"] for event in events[4:]]
        assert client.get(path, headers={"Last-Event-ID": events[-1]["id"]}).status_code == 204
        assert client.get(path, headers={"Last-Event-ID": "nonsense"}).status_code == 400
        assert client.get("/v1/fine_tuning/jobs/ftjob-none/events/stream").status_code == 404


def test_streams_are_bounded_and_given_back(tmp_path):
    plane = Plane(tmp_path, max_event_streams=2)
    job_id = plane.make()
    path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
    try:
        with plane.http() as client:
            with client.stream("GET", path) as one, client.stream("GET", path) as two:
                streams = [read_stream(one), read_stream(two)]  # kept: a dropped iterator closes its connection
                assert all(next(stream) for stream in streams)
                refused = client.get(path)
                assert refused.status_code == 403
                assert "at most 2" in refused.json()["error"]["message"]
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with client.stream("GET", path) as again:
                    if again.status_code == 200:
                        return
                time.sleep(0.05)
            raise AssertionError("a closed stream was not given back")
    finally:
        plane.stop()
