"""What a peer may take of the gateway: connections, calls, pings, silence, answers that it does not read; and turns."""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from functools import partial

import grpc
import numpy as np
import pytest

from privtune.cloud import gateway
from privtune.cloud.compute.desk import Desk
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.gateway import callers, first_message, split_service, stream_watch
from privtune.device.link.download import artifact_of
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rpc import Link
from privtune.shared.errors import CloudUnreachable
from privtune.shared.manifest import write_manifest
from privtune.shared.metadata import AUTHORIZATION, EPOCH, JOB
from privtune.shared.wire import FORWARD, FrameWriter, pack_positions, tensor_message
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc
from tests.support.running import wait_until
from tests.support.sessions import request_for, streaming
from tests.support.world import InProcessCloud, build_world

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # and empty settings
PING = b"\x00\x00\x08\x06" + bytes(5 + 8)
READS_LITTLE = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
SETTINGS, GOAWAY, MAX_CONCURRENT_STREAMS = 4, 7, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "MAX_CONNECTIONS", 8)
        patch.setattr(gateway, "MAX_STREAMS", 77)
        patch.setattr(first_message, "REQUEST_S", 0.3)
        patch.setattr(callers, "MAX_CALLS", 1)
        kind = partial(InProcessCloud, stream_idle_s=1.0, unread_s=0.5)
        built = build_world(tmp_path_factory.mktemp("gateway"), kind)
        yield built
        built.cloud.stop()


@pytest.fixture
def link(world):
    with Link(GatewayAccess(address=world.cloud.grpc_address, api_key=world.cloud.api_key)) as made:
        yield made


def http2(world):
    host, port = world.cloud.grpc_address.split(":")
    made = socket.create_connection((host, int(port)), 5)
    made.sendall(PREFACE)
    return made


def frames(connection):
    """Kind and payload of what the server sends."""
    with connection.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            yield head[3], file.read(int.from_bytes(head[:3], "big"))


def test_streams_of_a_connection_are_bounded(world):
    with http2(world) as one:
        kind, payload = next(frames(one))
    assert kind == SETTINGS
    assert dict(struct.iter_unpack(">HI", payload))[MAX_CONCURRENT_STREAMS] == 77


def test_a_flood_of_pings_is_answered_by_the_end(world):
    with http2(world) as one:
        said = frames(one)
        next(said)
        one.sendall(8 * PING)
        assert GOAWAY in (kind for kind, _ in said)


def test_connections_are_bounded(world):
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(http2(world)) for _ in range(20)]
        taken = [is_served(one) for one in made]
    assert 0 < sum(taken) <= 8
    wait_until(lambda: is_served(http2(world)), seconds=5)


def is_served(connection):
    try:
        return next(frames(connection), None) is not None
    except OSError:
        return False


@pytest.mark.parametrize("name", ["Open", "Fetch"])
def test_a_call_that_sends_no_request_ends(world, name):
    never = threading.Event()
    with grpc.insecure_channel(world.cloud.grpc_address) as channel:
        method = channel.stream_stream(f"/privtune.split.v1.SplitService/{name}")
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as raised:
            list(method((b"" for _ in range(1) if never.wait()), timeout=5))
        never.set()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began < 4


def test_a_stream_that_says_nothing_ends_and_its_job_waits(world, link):
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    with streaming(link, request_for(world, job_id, spec)) as stream:
        wait_until(lambda: world.cloud.status(job_id)[0] == "running")
        with pytest.raises(CloudUnreachable, match="device sent nothing"):
            stream.receive()
    wait_until(lambda: world.cloud.status(job_id)[0] == "paused")


def test_a_file_that_is_not_read_makes_room_for_the_next_call(world, link):
    job_id = with_big_file(world)
    unread = link.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), "big.bin")
    next(unread)
    with pytest.raises(CloudUnreachable, match="calls of this owner"):
        list(link.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), ""))
    wait_until(lambda: fetched(link, job_id), seconds=10)


def with_big_file(world):
    """A job whose adapter has a file that is larger than what waits between two machines."""
    folder = world.folder / "cloud" / "jobs" / (job_id := world.cloud.create_job(world.spec())) / "adapter"
    folder.mkdir(parents=True)
    (folder / "big.bin").write_bytes(bytes(32 << 20))
    write_manifest(folder)
    return job_id


def fetched(link, job_id):
    with contextlib.suppress(CloudUnreachable):
        return list(link.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), ""))


@pytest.fixture
def watched(monkeypatch):
    """Of each stream that has ended, whether nobody looked up its caller any more when gRPC freed its call."""
    alone = []

    def watching(callers, context, *rest):
        watcher = stream_watch.watch(callers, context, *rest)
        context.add_done_callback(lambda _: alone.append(watcher.cancelling() > 0))
        return watcher

    monkeypatch.setattr(split_service, "watch", watching)
    return alone


def test_who_left_amid_a_file_is_looked_up_no_more(world, link, watched):
    """To ask gRPC for the caller of a call that it has freed ends the whole process."""
    unread = link.fetch(artifact_of(pb.ARTIFACT_KIND_ADAPTER, with_big_file(world)), "big.bin")
    next(unread)
    unread.close()
    wait_until(lambda: watched)
    assert watched == [True]


def test_who_left_amid_an_answer_is_looked_up_no_more(world, link, watched, monkeypatch):
    computed, advance = threading.Event(), Desk.advance
    monkeypatch.setattr(Desk, "advance", lambda *given: (advance(*given), computed.set())[0])
    job_id = world.cloud.create_job(spec := world.spec())
    epoch = link.open(request_for(world, job_id, spec)).session_epoch
    about = ((AUTHORIZATION, f"Bearer {world.cloud.api_key}"), (JOB, job_id), (EPOCH, str(epoch)))
    with grpc.insecure_channel(world.cloud.grpc_address, READS_LITTLE) as channel:
        sent = FrameWriter(epoch=epoch).frames(evaluation(0))
        call = split_pb2_grpc.SplitServiceStub(channel).Train(iter(sent), metadata=about)
        assert computed.wait(20)
        call.cancel()
        wait_until(lambda: watched)
    assert watched == [True]


def test_an_owner_with_one_job_gets_half_the_turns_beside_one_with_twenty(world):
    keys = {"alice": world.cloud.api_key, "bob": world.cloud.keys.create("bob").secret}
    counts, stop, threads = Counter(), threading.Event(), []
    request, spec = request_for(world, "", world.spec()), world.spec()
    with contextlib.ExitStack() as stack:
        links = {
            owner: stack.enter_context(Link(GatewayAccess(address=world.cloud.grpc_address, api_key=key)))
            for owner, key in keys.items()
        }
        for owner in ["alice"] * 20 + ["bob"]:
            request.job_id = world.cloud.jobs.create(owner, spec).id
            stream = stack.enter_context(streaming(links[owner], request))
            threads.append(threading.Thread(target=ask, args=(owner, stream, counts, stop)))
            threads[-1].start()
        wait_until(lambda: counts.total() > 100)
        counts.clear()
        wait_until(lambda: counts.total() > 300)
        share = counts["bob"] / counts.total()
        stop.set()
        for thread in threads:
            thread.join()
    assert 0.35 < share < 0.65


def test_an_owner_who_filled_the_memory_gives_some_up_to_another(world, tmp_path, monkeypatch):
    monkeypatch.setattr(TopSession, "weight_bytes", property(lambda _: 30 << 20))
    cloud, spec = InProcessCloud(tmp_path / "cloud", world.models, max_memory_bytes=64 << 20), world.spec()
    keys = cloud.api_key, cloud.keys.create("bob").secret
    with contextlib.ExitStack() as stack:
        stack.callback(cloud.stop)
        alice, bob = (stack.enter_context(Link(GatewayAccess(address=cloud.grpc_address, api_key=key))) for key in keys)
        mine = [cloud.jobs.create("alice", spec).id for _ in range(2)]
        older, newer = [stack.enter_context(streaming(alice, request_for(world, job_id, spec))) for job_id in mine]
        older.send(evaluation(0))
        assert older.receive()
        wait_until(lambda: cloud.status(mine[1])[0] == "running")
        theirs = request_for(world, cloud.jobs.create("bob", spec).id, spec)
        wait_until(lambda: opens(bob, theirs))  # refused at first
        with pytest.raises(CloudUnreachable, match="more than an equal share"):
            newer.receive()
        older.send(evaluation(1))
        assert older.receive()
        assert cloud.status(mine[1])[0] == "paused"


def opens(link, request):
    with contextlib.suppress(CloudUnreachable):
        return link.open(request)


def ask(owner, stream, counts, stop):
    """Evaluate as fast as the cloud answers, always a few messages ahead."""
    for number in range(4):
        stream.send(evaluation(number))
    while not stop.is_set():
        stream.receive()
        counts[owner] += 1
        stream.send(evaluation(number := number + 1))


def evaluation(number):
    message = tensor_message(FORWARD, 0, number, np.ones((8 * 16, 32), np.float32), "fp32")
    message.forward = pb.ForwardHeader(
        record_ids=range(8), lengths=[16] * 8, inlined=[True] * 8, readout=pack_positions(np.arange(8) * 16)
    )
    message.forward.forward_only = True
    return message
