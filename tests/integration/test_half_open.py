"""Connections without a key or with a revoked one: they keep nobody else from the cloud."""

import socket
import threading
import time
from contextlib import ExitStack

import pytest

from privtune.cloud.compute.desk import Desk
from privtune.cloud.server import http_protocol
from privtune.device.link.download import artifact_of
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rest import ControlPlane
from privtune.device.link.rpc import Link
from privtune.shared.errors import JobNotFound, Unauthenticated
from tests.support.running import run, wait_until
from tests.support.world import ProcessCloud, Watcher, build_world

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("half"), ProcessCloud)
    yield built
    built.cloud.stop()


def half_open(stack, port, count, said):
    made = []
    for _ in range(count):
        one = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        one.sendall(said)
        made.append(one)
    return made


def closed(one, within_s):
    one.settimeout(within_s)
    try:
        while one.recv(4096):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("said", [b"", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["silent", "unfinished"])
@pytest.mark.slow
def test_half_open_connections_are_closed_and_others_served(world, said):
    ports = [int(world.cloud.http_url.rpartition(":")[2]), int(world.cloud.grpc_address.rpartition(":")[2])]
    with ExitStack() as stack:
        made = [half_open(stack, port, 400, said if port == ports[0] else b"") for port in ports]
        began = time.monotonic()
        with ControlPlane(world.cloud.http_url, world.cloud.api_key) as control:
            assert control.info()["object"] == "privtune.info"
        with (
            Link(GatewayAccess(address=world.cloud.grpc_address, api_key=world.cloud.api_key)) as link,
            pytest.raises(JobNotFound),
        ):
            list(link.fetch(artifact_of(1, "ftjob-none"), ""))
        assert time.monotonic() - began < 10
        assert closed(made[0][0], 2), "the oldest gives way to newer ones"
        assert closed(made[0][-1], http_protocol.REQUEST_S + 5)
        assert closed(made[1][-1], 20)


@pytest.mark.parametrize("computing_s", [0, 30], ids=["training", "computing"])
def test_a_revoked_key_ends_its_training_stream_within_seconds(local_world, monkeypatch, computing_s):
    """Also while the cloud computes for it, longer than that."""
    keys, revoked, advance, over = local_world.cloud.keys, [], Desk.advance, threading.Event()

    def slow(desk, session, answers):
        if revoked:
            over.wait(computing_s)
        return advance(desk, session, answers)

    def revoke(info):
        if info.step == 3:
            keys.revoke(keys.list()[0].id)
            revoked.append(time.monotonic())

    monkeypatch.setattr(Desk, "advance", slow)
    spec = local_world.spec(train={"max_steps": 9000, "epochs": 1000})
    job_id = local_world.cloud.create_job(spec)
    with pytest.raises(Unauthenticated, match="was revoked"):
        run(local_world, spec, job_id=job_id, watcher=Watcher(at_step=revoke))
    assert time.monotonic() - revoked[0] < 10
    over.set()
    wait_until(lambda: local_world.cloud.status(job_id)[0] == "paused")
    if not computing_s:
        assert "revoked" in local_world.cloud.status(job_id)[1]
