"""Every route and every call, later ones too, with keys and certificates that may not use them: refused, and nothing
changes.

Routes are those of the application, calls those of the service's descriptor.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from google.protobuf.message_factory import GetMessageClass

from privtune.cloud.api.app import create_app
from privtune.cloud.auth import ApiKeys, Devices
from privtune.cloud.auth.authority import open_authority
from privtune.cloud.auth.key_rows import SCOPES
from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store
from privtune.cloud.db.tables import Base
from privtune.cloud.settings import Settings
from privtune.device.link.identity import Identity
from privtune.shared.metadata import AUTHORIZATION, EPOCH, JOB, REASON
from privtune.shared.teaching_spec import TeachingSpec
from privtune.shared.versions import NEWEST
from privtune.split.v1 import split_pb2 as pb
from tests.support.builders import LEAST, least_spec
from tests.support.enrolled import channel, enrolled, resigned, self_signed
from tests.support.leases import begin
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model
from tests.support.world import InProcessCloud

PUBLIC = {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/v1/privtune/enrolment"}
BODIES = {
    "/v1/fine_tuning/jobs": LEAST,
    "/v1/privtune/teachings": {"model": "tiny", "corpus": "sentences", "cut": 1, "tail": 1},
}
RPCS = [(service, method) for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
ABOUT_JOBS = [rpc for rpc in RPCS if rpc[1].name not in ("Claim", "Renew")]  # a home or certificate of one's own


@dataclass(frozen=True)
class Doors:
    """Both doors of one cloud, with what alice has there."""

    cloud: InProcessCloud
    folder: Path
    store: Store
    http: TestClient
    channel: grpc.Channel
    identities: dict[str, Identity]
    alice: SimpleNamespace

    def state(self):
        """The whole database, but for when keys and devices were seen, and the files of jobs with their sizes."""
        files = {(str(path), path.stat().st_size) for path in (self.folder / "jobs").rglob("*")}
        with self.store.read() as session:
            return files | {
                (
                    table.name,
                    *(
                        str(row[column])
                        for column in table.columns
                        if column.name not in ("last_used_at", "last_seen_at")
                    ),
                )
                for table in Base.metadata.sorted_tables
                for row in session.execute(table.select()).mappings()
            }

    def routes(self):
        """Every (path, method) of the application that wants a key; what deletes comes last."""
        found = set()
        for route in iter_route_contexts(self.http.app.routes):
            assert route.path, f"this test can't walk {route}"
            assert route.methods, f"this test can't walk {route.path}"
            if route.path not in PUBLIC:
                found |= {(route.path, method) for method in route.methods - {"HEAD"}}
        return sorted(found, key=lambda route: (route[1] == "DELETE", route))

    def ask(self, path, method, key, **ids):
        """Call a route about alice's things."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        filled = path.replace(":path", "").format(**(vars(self.alice) | ids))
        return self.http.request(method, filled, json=BODIES.get(path, {}), headers=headers)

    def told(self, rpcs, identity, key=None, job_id=None):
        """What a device with a certificate, or None, hears at its own port: (status, reason) by call."""
        with channel(self.cloud.device_address, identity, self.cloud.devices.authority.pem) as own:
            return {rpc[1].name: self.call(*rpc, key, job_id or self.alice.job_id, own) for rpc in rpcs}

    def call(self, service, method, key, job_id, channel=None):
        """Make a call about a job; its status and reason. channel: of a device with a certificate."""
        kind = GetMessageClass(method.input_type)
        fields = {"job_id": job_id, "protocol_version": NEWEST, "holder": "0" * 32}
        request = kind(**{name: value for name, value in fields.items() if name in method.input_type.fields_by_name})
        metadata = [(JOB, job_id), (EPOCH, "1")] + ([(AUTHORIZATION, f"Bearer {key}")] if key is not None else [])
        stub = (channel or self.channel).stream_stream(
            f"/{service.full_name}/{method.name}", request_serializer=kind.SerializeToString
        )
        try:
            list(stub(iter([request]), metadata=metadata, timeout=30))
        except grpc.RpcError as error:
            return error.code().name, dict(error.trailing_metadata()).get(REASON)
        return "OK", None


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    model = save_model(folder / "tiny", "bert", "classification", num_labels=2)
    corpus = write_sentences(folder / "public.tsv", 20)
    cloud = InProcessCloud(folder / "cloud", {"tiny": model}, corpora={"sentences": corpus})
    app = create_app(cloud.jobs, cloud.keys, cloud.devices, cloud.teachings, Settings(data_folder=folder))
    clear, store = grpc.insecure_channel(cloud.grpc_address), Store(sqlite_url(folder / "cloud" / "cloud.sqlite"))
    hers = enrolled(cloud.devices, folder / "hers.json")
    with TestClient(app) as http:
        yield Doors(
            cloud=cloud,
            folder=folder / "cloud",
            store=store,
            http=http,
            channel=clear,
            identities={"alice": hers, "bob": enrolled(cloud.devices, folder / "bob.json", "bob")},
            alice=belongings(cloud, hers),
        )
    clear.close()
    store.close()
    cloud.stop()


def belongings(cloud, identity):
    """What alice has: values for the parameters of paths."""
    done, waiting = (cloud.jobs.create("alice", least_spec()) for _ in range(2))
    cloud.jobs.succeed(done.id, begin(cloud.jobs, done.id), adapter_sha256="a" * 64, tokens=1, steps=1)
    spec = TeachingSpec(**BODIES["/v1/privtune/teachings"])
    taught = cloud.teachings.record("alice", spec, "none", {}, cloud.teachings.sources(spec))
    return SimpleNamespace(
        job_id=waiting.id,
        done=done.id,
        model=f"ft:tiny:alice::{done.id.removeprefix('ftjob-')}",
        teaching_id=taught.id,
        key_id=cloud.keys.create("alice", "spare").key.id,
        device_id=identity.device_id,
    )


def needed(path, method):
    """The scope of a route."""
    if any(part in path for part in ("/keys", "/devices", "/audit-log")):
        return "admin"
    return "read" if method == "GET" else "submit"


def all_but(doors, scope, owner="alice"):
    return doors.cloud.keys.create(owner, scopes=set(SCOPES) - {scope}).secret


@pytest.fixture(scope="module")
def ended(doors):
    """Keys of alice's that are not in force, by what is wrong with them."""
    keys, past = doors.cloud.keys, ApiKeys(doors.store, lambda: time.time() - 100)
    revoked, rotated = (keys.create("alice", scopes=SCOPES) for _ in range(2))
    keys.revoke(revoked.key.id)
    keys.rotate(rotated.key.id)
    return {
        "none": None,
        "nonsense": "x",
        "unknown": "pt-" + "u" * 43,
        "revoked": revoked.secret,
        "rotated": rotated.secret,
        "expired": past.create("alice", scopes=SCOPES, expires_in_s=50).secret,
    }


def test_there_are_routes_and_calls_to_walk(doors):
    assert len(doors.routes()) >= 20
    assert len(RPCS) >= 6


def test_no_route_takes_a_key_that_is_not_in_force(doors, ended):
    before = doors.state()
    wrong = {}
    for path, method in doors.routes():
        for kind, key in ended.items():
            answer = doors.ask(path, method, key)
            if (answer.status_code, answer.json()["error"]["code"]) != (401, "UNAUTHENTICATED"):
                wrong[path, method, kind] = answer.text
    assert wrong == {}
    assert doors.state() == before


def test_no_route_takes_a_key_without_its_scope(doors):
    keys = {scope: all_but(doors, scope) for scope in SCOPES}
    before = doors.state()
    wrong = {}
    for path, method in doors.routes():
        answer = doors.ask(path, method, keys[needed(path, method)])
        if answer.status_code != 403 or "needs the scope" not in answer.json()["error"]["message"]:
            wrong[path, method] = answer.text
    assert wrong == {}
    assert doors.state() == before


def test_no_route_shows_or_changes_what_is_another_owners(doors):
    bob = doors.cloud.keys.create("bob", scopes=SCOPES).secret
    before = doors.state()
    wrong = {}
    for path, method in doors.routes():
        if "{" not in path and method != "GET":
            continue  # it makes something of bob's own
        answer = doors.ask(path, method, bob)
        names_hers = "{" in path
        leaks = any(value in answer.text for value in vars(doors.alice).values())
        if answer.status_code != 404 if names_hers else leaks:
            wrong[path, method] = answer.text
    assert wrong == {}
    assert doors.state() == before


def test_no_call_takes_a_key_that_is_not_in_force(doors, ended):
    before = doors.state()
    told = {
        (method.name, kind): doors.call(service, method, key, doors.alice.job_id)
        for service, method in RPCS
        for kind, key in ended.items()
    }
    assert {case: what for case, what in told.items() if what != ("UNAUTHENTICATED", "UNAUTHENTICATED")} == {}
    assert doors.state() == before


def test_no_call_takes_a_key_that_is_not_a_devices(doors):
    key = all_but(doors, "device")
    before = doors.state()
    told = {method.name: doors.call(service, method, key, doors.alice.job_id) for service, method in RPCS}
    assert {case: what for case, what in told.items() if what != ("PERMISSION_DENIED", "PERMISSION_DENIED")} == {}
    assert doors.state() == before


@pytest.mark.parametrize("job", ["job_id", "done"])
def test_no_call_reaches_a_job_of_another_owner(doors, job):
    key = doors.cloud.keys.create("bob", scopes=SCOPES).secret
    before = doors.state()
    told = {method.name: doors.call(service, method, key, getattr(doors.alice, job)) for service, method in ABOUT_JOBS}
    assert {case: what for case, what in told.items() if what != ("NOT_FOUND", "JOB_NOT_FOUND")} == {}
    assert doors.state() == before


@pytest.mark.parametrize("job", ["job_id", "done"])
def test_no_call_of_a_device_reaches_a_job_of_another_owner(doors, job):
    """Not with a key of that owner's either: the certificate says who calls."""
    hers = doors.cloud.keys.create("alice").secret
    before = doors.state()
    told = doors.told(ABOUT_JOBS, doors.identities["bob"], hers, getattr(doors.alice, job))
    assert {case: what for case, what in told.items() if what != ("NOT_FOUND", "JOB_NOT_FOUND")} == {}
    assert doors.state() == before


def test_no_call_takes_a_device_that_is_not_in_force(doors, tmp_path):
    devices = doors.cloud.devices
    revoked, unknown = enrolled(devices, tmp_path / "a"), resigned(doors.identities["alice"], devices.authority)
    devices.revoke(revoked.device_id)
    past = Devices(doors.store, devices.authority, life_s=50, clock=lambda: time.time() - 100)
    expired = resigned(enrolled(past, tmp_path / "b"), devices.authority)  # TLS takes it, the database does not
    wrong = {
        "revoked": revoked,
        "unknown": resigned(unknown, devices.authority, device_id="dev-" + "0" * 16),
        "expired": expired,
        "nobody": resigned(unknown, devices.authority, device_id="alice"),
    }
    key = doors.cloud.keys.create("alice", scopes=SCOPES).secret
    before = doors.state()
    told = {(kind, *what) for kind, one in wrong.items() for what in doors.told(RPCS, one, key).values()}
    assert told == {(kind, "UNAUTHENTICATED", "UNAUTHENTICATED") for kind in wrong}
    assert doors.state() == before


def test_no_call_gets_through_tls_without_a_good_certificate(doors, tmp_path):
    """No certificate, an expired one, one of another authority, one that nobody signed, and the server's own."""
    hers, devices = doors.identities["alice"], doors.cloud.devices
    other = open_authority(tmp_path / "tls")
    tls = doors.folder / "tls"
    server = replace(hers, key=(tls / "server-key.pem").read_text(), certificate=(tls / "server.pem").read_text())
    wrong = {
        "none": None,
        "expired": resigned(hers, devices.authority, life_s=-60),
        "another authority's": resigned(hers, other),
        "its own": self_signed(hers),
        "the server's": server,
    }
    before = doors.state()
    told = {(kind, *what) for kind, one in wrong.items() for what in doors.told(RPCS, one).values()}
    assert told == {(kind, "UNAVAILABLE", None) for kind in wrong}
    assert doors.state() == before


def test_a_leaked_key_can_not_act_as_a_device_where_enrolment_is_required(doors, monkeypatch):
    settings = doors.cloud.settings.model_copy(update={"require_enrolment": True})
    monkeypatch.setattr(doors.cloud.gateway._callers, "_settings", settings)
    key = doors.cloud.keys.create("alice", scopes=SCOPES).secret
    told = {doors.call(*rpc, key, doors.alice.job_id) for rpc in RPCS}
    assert told == {("UNAUTHENTICATED", "UNAUTHENTICATED")}
    assert doors.told(RPCS, doors.identities["alice"], job_id="ftjob-none")["Claim"][0] != "UNAUTHENTICATED"


def test_the_right_certificate_opens_every_call(doors):
    told = doors.told(RPCS, doors.identities["alice"])
    shut = ("UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNIMPLEMENTED")
    assert {name: what for name, what in told.items() if what[0] in shut} == {}
    assert all(reason for status, reason in told.values() if status != "OK"), "the cloud was not reached"


def test_the_right_key_opens_every_door(doors):
    """So that nothing above was refused for another reason. Last: it changes what alice has."""
    only = {scope: doors.cloud.keys.create("alice", scopes=[scope]).secret for scope in SCOPES}
    shut = {}
    for service, method in RPCS:
        status, reason = doors.call(service, method, only["device"], doors.alice.job_id)
        if method.name == "Renew":
            assert (status, reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED"), "it has no certificate"
        elif status in ("UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNIMPLEMENTED"):
            shut[method.name] = (status, reason)
    for path, method in doors.routes():
        job_id = doors.alice.done if method == "GET" else doors.alice.job_id
        answer = doors.ask(path, method, only[needed(path, method)], job_id=job_id)
        refused = (403,) if path == "/v1/files" and method == "POST" else (200, 204, 400, 409)
        if answer.status_code not in refused:
            shut[path, method] = answer.text
    assert shut == {}
