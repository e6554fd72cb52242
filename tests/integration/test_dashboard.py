"""The dashboard over HTTP: it may do what REST lets its key do, and nothing that another page asks for."""

from __future__ import annotations

import re
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import select

from privtune.cloud.auth.key_rows import SCOPES
from privtune.cloud.dashboard.front import PAGES
from privtune.cloud.dashboard.inside_rest import Rest
from privtune.cloud.db.tables import ApiKeyRow, DeviceRow, EventRow, JobRow
from tests.support.enrolled import enrolled
from tests.support.leases import begin
from tests.support.plane import Plane

ROOT = "/dashboard"
EVIL = '"><script>alert(1)</script>'
CHANGES = [path for method, path, _ in PAGES if method == "POST"]


@contextmanager
def logged_in(plane, key):
    with httpx.Client(base_url=plane.url, timeout=60) as client:
        client.headers["origin"] = plane.url
        client.answer = client.post(f"{ROOT}/login", data={"key": key})
        yield client


def token(client):
    found = re.search('name="form_token" value="([^"]+)"', client.get(f"{ROOT}/").text)
    return found.group(1) if found else "none"


def state(plane):
    """All of Alice's that the dashboard could change."""
    with plane.store.read() as session:
        rows = [row for table in (JobRow, ApiKeyRow, DeviceRow) for row in session.scalars(select(table))]
        rows = [row for row in rows if row.owner == "alice"]
        mine = EventRow.job_id.in_([row.id for row in rows])
        rows += session.scalars(select(EventRow).where(mine))
        names = {row: set(row.__table__.columns.keys()) - {"last_used_at", "last_seen_at"} for row in rows}
        return [{name: getattr(row, name) for name in sorted(names[row])} for row in rows]


@pytest.fixture
def things(plane, tmp_path):
    """Alice's job, key and device, by the first part of a page's path."""
    device = enrolled(plane.devices, tmp_path / "device.json").device_id
    return {"jobs": plane.make(), "keys": plane.keys.create("alice").key.id, "devices": device}


def address(path, things):
    return ROOT + path.replace("{id}", things.get(path.split("/")[1], ""))


def wrong_keys(plane):
    """Each with what its pages answer: with an id of Alice's, and without."""
    revoked, expired = (plane.keys.create("alice", scopes=list(SCOPES)) for _ in range(2))
    yield "another tenant's", plane.keys.create("bob", scopes=list(SCOPES)).secret, lambda: None
    yield "revoked", revoked.secret, lambda: plane.keys.revoke(revoked.key.id)
    yield "expired", expired.secret, lambda: plane.keys.rotate(expired.key.id)
    yield "too narrow", plane.keys.create("alice", scopes=["read"]).secret, lambda: None


def test_no_page_does_more_than_its_key_may(plane, things):
    for name, key, end in wrong_keys(plane):
        with logged_in(plane, key) as client:
            field = token(client)
            end()
            before = state(plane)
            for method, path, _ in PAGES:
                if path == "/" and name in ("another tenant's", "too narrow"):
                    continue
                fields = {"form_token": field, "model": "tiny", "training_file": "x", "scopes": "read", "once": "1"}
                answer = client.request(method, address(path, things), data=fields if method == "POST" else None)
                about = (name, method, path, answer.status_code, answer.text)
                if name == "another tenant's" and "{id}" not in path:
                    assert not any(thing in answer.text for thing in things.values()), about
                    continue
                if name == "another tenant's":
                    assert answer.status_code == 404, about
                elif name == "too narrow":
                    needs_more = method == "POST" or path.startswith(("/keys", "/devices"))
                    assert answer.status_code == (403 if needs_more else 200), about
                else:  # the first answer says that the key has ended; after that nobody is logged in
                    assert answer.status_code == 401 or answer.headers["location"] == f"{ROOT}/login", about
            assert state(plane) == before, name


def test_nothing_changes_for_a_form_that_is_not_ours(plane, things):
    with logged_in(plane, plane.keys.create("alice", scopes=list(SCOPES)).secret) as client:
        good, before = token(client), state(plane)
        for path in (*CHANGES, "/logout"):
            refused(client, address(path, things), good)
        assert state(plane) == before
        assert client.get(f"{ROOT}/").status_code == 200


def refused(client, path, good):
    """Ask for a change in every way that is not our form."""
    forged = {"form_token": "x" * 32, "model": "tiny", "training_file": "x", "scopes": "read"}
    for fields, headers in (
        (forged, {}),
        ({}, {}),
        (forged | {"form_token": good}, {"origin": "https://evil.example"}),
        (forged | {"form_token": good}, {"origin": "null"}),
    ):
        assert client.post(path, data=fields, headers=headers).status_code in (400, 403), (path, fields, headers)
    assert client.post(path, json={"form_token": good}).status_code == 400, path
    assert client.get(path).status_code in (200, 405), path


def test_a_job_is_steered(plane):
    with logged_in(plane, plane.key) as client:
        made = {"form_token": token(client), "model": "tiny", "training_file": "reviews", "once": "a", "suffix": "mine"}
        made |= {"task": "classification", "replace": "identifying", "options": '{"tail": 1, "skip": "none"}'}
        first, again = (client.post(f"{ROOT}/new", data=made) for _ in range(2))
        assert first.headers["location"] == again.headers["location"]  # sent twice, made once
        job_id = first.headers["location"].rpartition("/")[2]
        assert plane.jobs.get(job_id).spec.tail == 1

        def act(name):
            client.post(f"{ROOT}/jobs/{job_id}/{name}", data={"form_token": made["form_token"]})
            return plane.jobs.get(job_id).phase

        assert act("pause") == "held"
        assert act("resume") == "waiting_for_device"
        begin(plane.jobs, job_id)
        assert act("pause") == "pausing"
        assert act("resume") == "training"
        assert act("cancel") == "cancelling"
        page = client.get(f"{ROOT}/jobs/{job_id}").text
        assert "Ending after this step" in page
        other = plane.make()
        plane.jobs.cancel(other)
        answer = client.post(f"{ROOT}/jobs/{other}/delete", data={"form_token": made["form_token"]})
        assert "The job is deleted" in answer.text
        assert client.get(f"{ROOT}/jobs/{other}").status_code == 404


def test_a_refused_job_keeps_what_was_filled_in(plane):
    with logged_in(plane, plane.key) as client:
        made = {"form_token": token(client), "model": "tiny", "training_file": "reviews", "n_epochs": "many"}
        answer = client.post(f"{ROOT}/new", data=made)
        assert answer.status_code == 400
        assert 'value="reviews"' in answer.text
        assert "n_epochs" in answer.text
        for options, says in (("[]", "JSON object"), ("{", "not JSON"), ('{"nope": 1}', "Unknown field")):
            answer = client.post(f"{ROOT}/new", data=made | {"n_epochs": "", "options": options})
            assert says in answer.text, options


def test_what_others_wrote_stays_text(plane, tmp_path):
    job_id = plane.make(metadata={EVIL: EVIL})
    plane.jobs.refuse(job_id, "POLICY_REFUSED", EVIL, holder="")
    plane.keys.create("alice", EVIL, scopes=["read"])
    enrolled(plane.devices, tmp_path / "device.json")
    with plane.store.write() as session:
        session.scalars(select(DeviceRow)).one().label = EVIL
    with logged_in(plane, plane.keys.create("alice", scopes=list(SCOPES)).secret) as client:
        for path in ("/", f"/jobs/{job_id}", f"/jobs/{job_id}/live", "/keys", "/devices", "/live"):
            text = client.get(ROOT + path).text
            assert "&gt;&lt;script&gt;" in text, path
            assert "<script>" not in text, path


def test_only_what_has_changed_comes_again(plane):
    job_id = plane.make()
    with logged_in(plane, plane.key) as client:
        page = client.get(f"{ROOT}/jobs/{job_id}").text

        def asked(text):
            return re.search('data-address="([^"]+)"', text).group(1).replace("&amp;", "&")

        unchanged = client.get(asked(page)).text
        assert 'id="part-' not in unchanged
        token = begin(plane.jobs, job_id)
        changed = client.get(asked(unchanged)).text
        parts = re.findall('id="part-([a-z]+)"', changed)
        assert parts == ["said", "status", "events"]
        plane.jobs.succeed(job_id, token, adapter_sha256=None, tokens=1, steps=1)
        assert "data-address" not in client.get(asked(changed)).text  # it has ended: nobody asks again


def test_the_session_is_the_cookies_alone(plane):
    with logged_in(plane, plane.key) as client:
        cookie = client.answer.headers["set-cookie"]
        assert {"HttpOnly", "Path=/dashboard", "SameSite=strict"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert plane.key not in cookie + client.get(f"{ROOT}/").text
        client.post(f"{ROOT}/logout", data={"form_token": token(client)})
        stolen = {"cookie": cookie.partition(";")[0]}
        assert httpx.get(f"{plane.url}{ROOT}/", headers=stolen).headers["location"] == f"{ROOT}/login"
    over_tls = {"origin": plane.url, "x-forwarded-proto": "https"}  # from loopback, as a proxy in front says it
    answer = httpx.post(f"{plane.url}{ROOT}/login", data={"key": plane.key}, headers=over_tls)
    assert answer.headers["set-cookie"].startswith("__Secure-privtune=")
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_who_may_not_log_in(plane):
    submits = plane.keys.create("alice", scopes=["submit"]).secret
    for key, status, says in (
        (submits, 403, "needs the scope"),
        ("pt-" + "x" * 40, 401, "not known"),
        ("", 401, "pt-"),
    ):
        answer = httpx.post(f"{plane.url}{ROOT}/login", data={"key": key}, headers={"origin": plane.url})
        assert (answer.status_code, "set-cookie" in answer.headers) == (status, False)
        assert says in answer.text
    answer = httpx.post(f"{plane.url}{ROOT}/login", data={"key": plane.key}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403


def test_every_answer_has_the_headers_that_keep_a_page_to_itself(plane):
    for path in ("/", "/login", "/nope", "/jobs/x", "/static/look.css"):
        headers = httpx.get(f"{plane.url}{ROOT}{path}").headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["x-frame-options"] == "DENY"
    assert "max-age" in headers["cache-control"]
    assert httpx.get(f"{plane.url}{ROOT}/static/..%2Flook.css").status_code == 404


def test_a_defect_is_a_page_without_details(plane, monkeypatch):
    with logged_in(plane, plane.key) as client:
        monkeypatch.setattr(Rest, "get", lambda *_, **__: 1 / 0)
        answer = client.get(f"{ROOT}/")
        assert answer.status_code == 500
        assert "An unexpected failure" in answer.text
        assert "division" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_limits_are_those_of_rest(plane):
    plane.jobs.limits.set("alice", requests_per_minute=5)
    with logged_in(plane, plane.key) as client:
        answers = [client.get(f"{ROOT}/") for _ in range(6)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) > 0
        assert "try again in" in answers[-1].text


def test_without_it_the_front_says_so(tmp_path):
    plane = Plane(tmp_path, dashboard=False)
    try:
        answer = httpx.get(plane.url)
        assert answer.text.splitlines() == [
            "PrivTune cloud: the dashboard is off (--no-dashboard). REST is described at /docs."
        ]
        assert httpx.get(f"{plane.url}{ROOT}/").status_code == 404
    finally:
        plane.stop()


def test_rest_says_how_jobs_and_hosts_do(plane):
    with plane.http() as client:
        assert client.get("/v1/privtune/key").json()["owner"] == "alice"
        assert client.get("/v1/privtune/hosts").json()["data"] == []
        job_id = plane.make()
        assert client.get(f"/v1/fine_tuning/jobs/{job_id}/progress").json()["points"] == []
    with plane.http(plane.keys.create("bob").secret) as client:
        assert client.get(f"/v1/fine_tuning/jobs/{job_id}/progress").status_code == 404
