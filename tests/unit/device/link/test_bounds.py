"""The device's own bounds on what a hostile cloud sends: answers, manifests, tensors, handshakes."""

import gzip
import itertools
import json
import tracemalloc

import numpy as np
import pytest

from privtune.device.link import rest, rpc
from privtune.device.link.download import MAX_MANIFEST_BYTES, artifact_of, fetch_folder, fetch_manifest
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rest import ControlPlane
from privtune.device.link.rest_client import MAX_ANSWER_BYTES
from privtune.device.link.rpc import Link, Stream
from privtune.shared.errors import ArtifactCorrupt, FrameCorrupt, MessageTooLarge, StorageFull, VersionMismatch
from privtune.shared.wire import OUTPUT, FrameWriter, Message, tensor_message
from privtune.split.v1 import split_pb2 as pb

KEY = "pt-" + "k" * 40


class Served:
    """Stands in for a link: serves one manifest."""

    def __init__(self, manifest):
        self.manifest = manifest

    def fetch(self, artifact, file, offset=0):
        return itertools.chain(self.manifest) if file == "" else iter(())


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(b'{"a":"' + b" " * (200 << 20) + b'"}'), [("Content-Encoding", "gzip")]),
        (b'{"a":"' + b"x" * MAX_ANSWER_BYTES + b'"}', []),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", []),
    ],
    ids=["compressed", "long", "deep"],
)
def test_no_answer_of_rest_takes_the_memory(canned, body, headers):
    with ControlPlane(canned(200, body, headers=headers).url, KEY) as control:
        tracemalloc.start()
        with pytest.raises(VersionMismatch, match="does not answer like a PrivTune cloud"):
            control.get_job("ftjob-1")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize("listing", [ControlPlane.list_jobs, lambda control: control.events("ftjob-1")])
def test_a_listing_without_end(monkeypatch, listing):
    monkeypatch.setattr(rest, "MAX_LISTING_BYTES", 1 << 16)
    numbers = itertools.count()

    def page(*_, **__):
        number = next(numbers)
        assert number < 1000
        return {"data": [{"id": f"ftjob-{number}", "status": "queued", "more": "x" * 1000}], "has_more": True}

    with ControlPlane("http://127.0.0.1:1", KEY) as control:
        monkeypatch.setattr(control, "call", page)
        with pytest.raises(VersionMismatch, match="does not answer like a PrivTune cloud"):
            listing(control)


def test_a_manifest_without_end():
    link = Served(b"x" * (1 << 16) for _ in itertools.count())
    with pytest.raises(ArtifactCorrupt, match=f"over {MAX_MANIFEST_BYTES:,} bytes"):
        fetch_manifest(link, artifact_of(1, "ftjob-1"))


@pytest.mark.parametrize(
    "files",
    [
        [{"name": "a", "size": "1", "sha256": ""}],
        [{"name": "a", "size": -1, "sha256": ""}],
        [{"name": "a", "size": True, "sha256": ""}],
        [{"name": "a", "size": 1, "sha256": 7}],
        [{"name": "a", "size": 1}],
        [{"name": "manifest.json", "size": 1, "sha256": ""}],
        [{"name": "a", "size": 1, "sha256": ""}] * 2,
        [{"name": f"a{number}", "size": 0, "sha256": ""} for number in range(300)],
        "x",
        [[[[]]]],
    ],
)
def test_a_manifest_of_another_shape(tmp_path, files):
    with pytest.raises(ArtifactCorrupt):
        fetch_folder(Served([json.dumps({"files": files}).encode()]), artifact_of(1, "ftjob-1"), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_files_that_would_fill_the_disk_are_not_begun(tmp_path):
    files = [{"name": "bottom.safetensors", "size": 1 << 60, "sha256": "0" * 64}]
    with pytest.raises(StorageFull, match="are free"):
        fetch_folder(Served([json.dumps({"files": files}).encode()]), artifact_of(1, "ftjob-1"), tmp_path / "there")


@pytest.mark.parametrize("changes", [{"max_payload_bytes": 0}, {"max_tensor_bytes": 1}, {"resume_step": 7}])
def test_a_handshake_that_no_session_can_work_with(monkeypatch, changes):
    usual = {"session_epoch": 1, "max_payload_bytes": 1 << 20, "max_tensor_bytes": 1 << 28}
    with Link(GatewayAccess(address="127.0.0.1:1", api_key=KEY)) as link:
        monkeypatch.setattr(link, "_call", lambda *_: pb.OpenResponse(**usual | changes))
        with pytest.raises(FrameCorrupt):
            link.open(pb.OpenRequest(checkpoint_steps=[2, 4]))


def opened(max_tensor_bytes=1 << 40):
    return pb.OpenResponse(session_epoch=1, max_payload_bytes=1 << 20, max_tensor_bytes=max_tensor_bytes)


class Call:
    """Stands in for a gRPC stream that sends these frames."""

    def __init__(self, frames):
        self._frames = frames

    def __iter__(self):
        return iter(self._frames)

    def cancel(self):
        pass


def stream_of(frames):
    return Stream(lambda _: Call(frames), opened(), lambda error: error, patience=5)


def test_a_stream_ends_that_answers_what_nobody_asked(monkeypatch):
    monkeypatch.setattr(rpc, "MAX_UNCLAIMED_BYTES", 1 << 20)
    writer, sent = FrameWriter(epoch=1), []

    def flood():
        for number in itertools.count(1):
            sent.append(number)
            yield from writer.frames(tensor_message(OUTPUT, 0, number, np.zeros((16, 64), np.float32), "fp32"))

    stream = stream_of(flood())
    stream._thread.join(10)
    assert len(sent) < 300
    with pytest.raises(FrameCorrupt, match="more than it was asked for"):
        stream.expect(0, 0, OUTPUT)


def test_headers_count_in_what_waits_here(monkeypatch):
    monkeypatch.setattr(rpc, "MAX_UNCLAIMED_BYTES", 1 << 20)
    writer, sent = FrameWriter(epoch=1), []

    def flood():
        for number in itertools.count(1):
            sent.append(number)
            for frame in writer.frames(Message(kind=OUTPUT, step=0, micro_batch=number)):
                # A field of a later version of the protocol: 64 KiB that the message keeps.
                yield pb.Frame.FromString(frame.SerializeToString() + b"\xfa\x3f\x80\x80\x04" + bytes(1 << 16))

    stream = stream_of(flood())
    stream._thread.join(10)
    assert len(sent) < 30


def test_a_header_that_only_a_device_sends():
    header = pb.ForwardHeader(record_ids=[0] * 1000)
    frame = next(FrameWriter(epoch=1).frames(Message(kind=OUTPUT, step=0, micro_batch=1, forward=header)))
    with pytest.raises(FrameCorrupt, match="only a device sends"):
        stream_of([frame]).expect(0, 0, OUTPUT)


def test_an_answer_that_comes_twice():
    writer = FrameWriter(epoch=1)
    answer = tensor_message(OUTPUT, 0, 1, np.zeros((1, 4), np.float32), "fp32")
    with pytest.raises(FrameCorrupt, match="twice"):
        stream_of([*writer.frames(answer), *writer.frames(answer)]).expect(0, 0, OUTPUT)


def test_a_tensor_over_the_devices_own_bound_whatever_the_cloud_offers():
    frame = next(FrameWriter(epoch=1).frames(Message(kind=OUTPUT, step=0, rows=1 << 20, width=1 << 20, codec="fp32")))
    with pytest.raises(MessageTooLarge):
        stream_of([frame]).expect(0, 0, OUTPUT)


@pytest.mark.parametrize("shape", [{"rows": 3}, {"width": 5}, {"rows": 2, "width": 3}])
def test_an_output_of_another_shape_is_an_error_of_the_table(shape):
    answer = tensor_message(OUTPUT, 0, 0, np.zeros((2, 4), np.float32), "fp32")
    assert answer.tensor(rows=2, width=4).shape == (2, 4)
    with pytest.raises(FrameCorrupt, match="2 x 4"):
        answer.tensor(**shape)
    with pytest.raises(FrameCorrupt, match="no codec"):
        Message(kind=OUTPUT, step=0).tensor(rows=0)
