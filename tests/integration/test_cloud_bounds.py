"""What one device can take of a real cloud with a model of MiniLM's size: memory, bytes down and seconds."""

import threading
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
import pytest

from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rpc import Link
from privtune.device.session.run_settings import RunSettings
from privtune.shared.errors import CloudOutOfMemory, FrameCorrupt, MessageTooLarge, PrivTuneError
from privtune.shared.metadata import AUTHORIZATION, EPOCH, JOB
from privtune.shared.wire import FORWARD, FrameWriter, pack_positions, tensor_message
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc
from tests.support.running import wait_until
from tests.support.sessions import request_for, streaming
from tests.support.tiny_models import save_model
from tests.support.world import ProcessCloud, World

WIDTH = 384
MINILM = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}
MIB = 1 << 20

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds")
    models = {"enc": save_model(folder / "enc", "bert", "classification", num_labels=2, **MINILM)}
    cloud = ProcessCloud(folder / "cloud", models)
    settings = RunSettings(grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=folder / "home")
    yield World(cloud=cloud, folder=folder, settings=settings, data=None, validation=None, models=models)
    cloud.stop()


class Measured:
    """A session of a device that does as it likes, and what that costs the cloud."""

    def __init__(self, world, **train):
        self.world, self.spec = world, world.spec(train={"max_length": 512, **train})

    def __enter__(self):
        self.link = Link(GatewayAccess(address=self.world.cloud.grpc_address, api_key=self.world.cloud.api_key))
        job_id = self.world.cloud.create_job(self.spec)
        self.session = streaming(self.link, request_for(self.world, job_id, self.spec), patience=200)
        self.stream = self.session.__enter__()
        self.ask(forward(0, records=[9], lengths=[1], forward_only=True))  # the first pass of a process takes more
        forget_most(self.world.cloud)
        self.before, self.began, self.error = memory(self.world.cloud, "VmRSS"), time.monotonic(), None
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.began
        self.grown = memory(self.world.cloud, "VmHWM") - self.before
        self.session.__exit__(None, None, None)
        self.link.__exit__()

    def ask(self, message):
        """The bytes of the answer; 0 for a refusal, which is kept."""
        try:
            self.stream.send(message)
            return len(self.stream.receive().payload)
        except PrivTuneError as error:
            self.error = error
            return 0


def memory(cloud, name):
    """Bytes that a real cloud takes: VmRSS, or VmHWM for the most since `forget_most`."""
    status = Path(f"/proc/{cloud.process.pid}/status").read_text()
    return int(dict(line.split(":", 1) for line in status.splitlines())[name].split()[0]) * 1024


def forget_most(cloud):
    Path(f"/proc/{cloud.process.pid}/clear_refs").write_text("5")


def forward(micro_batch, *, records, lengths, inlined=True, readout=(0,), **header):
    rows = sum(lengths) if inlined else 0
    h_MD = np.random.default_rng(micro_batch).standard_normal((rows, WIDTH)).astype(np.float32)
    message = tensor_message(FORWARD, 0, micro_batch, h_MD, "fp32")
    message.forward = pb.ForwardHeader(
        record_ids=records,
        lengths=lengths,
        inlined=[inlined] * len(records),
        readout=pack_positions(np.asarray(readout)),
        **header,
    )
    return message


def test_forwards_without_gradients_are_refused(world):
    with Measured(world, batch_size=1, accumulation=1024, in_flight=16) as device:
        for number in range(300):
            if not device.ask(forward(number, records=[number], lengths=[128])):
                break
    assert number == 16
    assert isinstance(device.error, FrameCorrupt)
    assert device.grown < 16 * 40 * MIB


def test_repeated_read_outs_are_refused(world):
    with Measured(world, batch_size=1) as device:
        answer = device.ask(forward(0, records=[0], lengths=[4], readout=[0] * (MIB - 2000), forward_only=True))
    assert answer == 0
    assert isinstance(device.error, FrameCorrupt)
    assert device.grown < 100 * MIB


def test_one_ragged_frame_is_refused(world):
    lengths = [100] + [1] * 75
    with Measured(world, batch_size=1) as device:
        answer = device.ask(forward(0, records=list(range(76)), lengths=lengths, forward_only=True))
    assert answer == 0
    assert isinstance(device.error, FrameCorrupt)
    assert device.grown < 100 * MIB
    assert device.seconds < 2


RAGGED = [512] + [1] * 600  # in one pass 7 GiB and 157 s


def ragged(**options):
    return forward(0, records=list(range(len(RAGGED))), lengths=RAGGED, **options)


def test_a_ragged_evaluation_that_the_job_allows_takes_what_its_rows_take(world):
    firsts = 512 * np.arange(len(RAGGED))
    with Measured(world, batch_size=1024) as device:
        answer = device.ask(ragged(readout=firsts, forward_only=True))
    assert answer == len(RAGGED) * WIDTH * 4
    assert device.grown < 700 * MIB
    assert device.seconds < 10


def test_padding_is_not_read_out(world):
    with Measured(world, batch_size=1024) as device:
        answer = device.ask(ragged(readout=np.arange(512 * len(RAGGED)), forward_only=True))
    assert answer == 0
    assert isinstance(device.error, FrameCorrupt)
    assert device.grown < 100 * MIB


def test_a_message_over_the_jobs_shape_is_refused_by_its_first_frame(world):
    with Measured(world, batch_size=1) as device:
        device.ask(forward(0, records=[1], lengths=[513]))
    assert isinstance(device.error, MessageTooLarge)


def test_a_graph_over_the_budget_is_refused_before_it_is_computed(world):
    with Measured(world, batch_size=1024) as device:
        device.ask(ragged())
    assert isinstance(device.error, CloudOutOfMemory)
    assert device.grown < 700 * MIB
    assert device.seconds < 5


def test_frames_of_all_streams_share_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVTUNE_CLOUD_MAX_MEMORY_MIB", "128")
    models = {"enc": save_model(tmp_path / "enc", "bert", "classification", num_labels=2, **MINILM)}
    cloud = ProcessCloud(tmp_path / "cloud", models)
    settings = RunSettings(grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=tmp_path / "home")
    world = World(cloud=cloud, folder=tmp_path, settings=settings, data=None, validation=None, models=models)
    spec = world.spec(train={"batch_size": 4096, "max_length": 128})
    whole = tensor_message(FORWARD, 0, 0, np.zeros((110 * MIB // (4 * WIDTH), WIDTH), np.float32), "fp32")
    done = threading.Event()

    def unfinished(epoch):
        yield from islice(FrameWriter(epoch=epoch).frames(whole), 109)
        done.wait()

    with ExitStack() as stack:
        stack.callback(cloud.stop)
        link = stack.enter_context(Link(GatewayAccess(address=cloud.grpc_address, api_key=cloud.api_key)))
        channel = stack.enter_context(grpc.insecure_channel(cloud.grpc_address))
        stack.callback(done.set)
        jobs = [cloud.create_job(spec) for _ in range(4)]
        epochs = [link.open(request_for(world, job_id, spec)).session_epoch for job_id in jobs]
        forget_most(cloud)
        before = memory(cloud, "VmRSS")
        calls = []
        for job_id, epoch in zip(jobs, epochs, strict=True):
            about = ((AUTHORIZATION, f"Bearer {cloud.api_key}"), (JOB, job_id), (EPOCH, str(epoch)))
            calls.append(split_pb2_grpc.SplitServiceStub(channel).Train(unfinished(epoch), metadata=about))
        wait_until(lambda: sum(not call.is_active() for call in calls) >= 3)
        assert {call.code() for call in calls if not call.is_active()} == {grpc.StatusCode.UNAVAILABLE}
        # Without a bound 436; with it 150 to 360, since gRPC holds what is on its way when a stream is refused.
        assert memory(cloud, "VmHWM") - before < 400 * MIB
