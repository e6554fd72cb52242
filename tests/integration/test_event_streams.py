"""Event streams of the control plane: live, resumed behind the last event, bounded."""

import threading
import time

from tests.support.leases import begin
from tests.support.plane import Plane, read_stream


def test_a_stream_tells_everything_live_and_ends_with_the_job(plane):
    job_id = plane.make()

    def work():
        time.sleep(0.3)
        token = begin(plane.jobs, job_id)
        for number in range(150):
            plane.jobs.add_event(job_id, "info", f"number {number}")
        plane.jobs.succeed(job_id, token, adapter_sha256="a" * 64, tokens=1, steps=1)

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


def test_a_revoked_key_ends_its_stream_and_no_other(plane):
    job_id = plane.make()
    new = plane.keys.create("alice")
    path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
    with (
        plane.http(new.secret) as client,
        plane.http() as other,
        client.stream("GET", path) as response,
        other.stream("GET", path) as stays,
    ):
        stream, kept = read_stream(response), read_stream(stays)
        assert next(stream)
        assert next(kept)
        plane.keys.revoke(new.key.id)
        began = time.monotonic()
        assert list(stream) == []
        assert time.monotonic() - began < 4
        plane.jobs.add_event(job_id, "info", "still here")
        assert next(kept)[1]["message"] == "still here"
