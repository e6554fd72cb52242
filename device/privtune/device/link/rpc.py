"""The device's end of the gRPC link. The device always dials out; gRPC has its own threads, training has the caller's.

Only a `Message` of a declared kind can be sent: no call takes text, token ids or a clean vector.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from privtune.device.account.home_identity import Claim
from privtune.device.account.transcript import Transcript
from privtune.device.link.gateway import GatewayAccess, Renewal, open_channel
from privtune.shared import tracing
from privtune.shared.errors import (
    CloudUnreachable,
    FrameCorrupt,
    MessageTooLarge,
    PrivTuneError,
    VersionMismatch,
)
from privtune.shared.metadata import EPOCH, JOB
from privtune.shared.printable import printable
from privtune.shared.wire import DEFAULT_CHUNK_BYTES, OUTPUT, RESEND, FrameReader, FrameWriter, Message
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc

log = logging.getLogger(__name__)
T = TypeVar("T")

OPEN_TIMEOUT_S = 600.0  # the cloud may have to load a large base model first
CALL_TIMEOUT_S = 120.0
SHARE_TIMEOUT_S = 5.0  # training waits for it
_ATTEMPTS = 2  # of each call but a stream: the cloud answers a repeated call as it answered the first
LEAST_PAYLOAD_BYTES = 4096
MAX_TENSOR_BYTES = 1 << 30  # that this device takes in, whatever the cloud offers
MAX_UNCLAIMED_BYTES = 2 * MAX_TENSOR_BYTES  # of answers that nobody has asked for yet


class Link:
    """A channel to one cloud's gateway. Use as a context manager.

    Args:
        gateway: how to reach it.
        transcript: records every call and frame before it leaves.

    Raises, in every call:
        PrivTuneError: the cloud's refusal, as the error of its reason.
        CloudUnreachable: no connection.
    """

    def __init__(self, gateway: GatewayAccess, transcript: Transcript | None = None) -> None:
        self._gateway, self._transcript = gateway, transcript
        self._metadata, self._translate = gateway.metadata, gateway.translate
        self._channels: list[grpc.Channel] = []
        self._identity = gateway.read_identity()
        self._connect()
        self._renewal = Renewal(gateway.identity, gateway) if gateway.identity is not None else None

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        if self._renewal is not None:
            self._renewal.stop()
        for channel in self._channels:
            channel.close()

    @property
    def _stub(self) -> split_pb2_grpc.SplitServiceStub:
        """Calls with the newest certificate; a stream keeps the connection that it began on."""
        if (identity := self._gateway.read_identity()) != self._identity:
            self._identity = identity
            self._connect()
        return self._newest

    def _connect(self) -> None:
        self._channels.append(open_channel(self._gateway, self._identity))
        self._newest = split_pb2_grpc.SplitServiceStub(self._channels[-1])  # type: ignore[no-untyped-call]

    def open(self, request: pb.OpenRequest) -> pb.OpenResponse:
        """Open a session of a job; see the proto. Raises FrameCorrupt for an answer that no session can work with."""
        response: pb.OpenResponse = self._call("Open", self._stub.Open, request, OPEN_TIMEOUT_S)
        if response.max_payload_bytes < LEAST_PAYLOAD_BYTES or response.max_tensor_bytes < LEAST_PAYLOAD_BYTES:
            raise FrameCorrupt("the cloud's handshake leaves no room for a tensor; report it to the cloud's operator")
        if response.protocol_version > request.protocol_version:
            raise VersionMismatch(
                f"the cloud (PrivTune {printable(response.server_version)[:40]}) wants protocol "
                f"{response.protocol_version}, which this device does not speak; upgrade the device"
            )
        if not request.infer and response.resume_step not in (0, *request.checkpoint_steps):
            raise FrameCorrupt(f"the cloud wants to resume at step {response.resume_step}, which this device lacks")
        return response

    def commit(self, request: pb.CommitRequest) -> pb.CommitResponse:
        """End a job; see the proto."""
        response: pb.CommitResponse = self._call("Commit", self._stub.Commit, request, CALL_TIMEOUT_S)
        return response

    def refuse(self, job_id: str, error: PrivTuneError, holder: str = "") -> None:
        """Tell the cloud that this device will not do the job. holder: see the proto."""
        request = pb.RefuseRequest(job_id=job_id, reason=error.reason, message=error.message[:500], holder=holder)
        self._call("Refuse", self._stub.Refuse, request, CALL_TIMEOUT_S)

    def share(self, request: pb.ShareRequest) -> None:
        """Let whoever watches the job at the cloud know figures of it; see the proto. Tried once, and briefly."""
        self._note("Share", request)
        try:
            self._stub.Share(request, metadata=self._metadata, timeout=SHARE_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._translate(error) from None

    def claim(self, claim: Claim) -> None:
        """Tell the cloud that this copy of the device's home is the newest. Raises HomeOutdated if it is not."""
        request = pb.ClaimRequest(home_id=claim.home_id, count=claim.count, nonce=claim.nonce)
        self._call("Claim", self._stub.Claim, request, CALL_TIMEOUT_S)

    def fetch(self, artifact: pb.FetchRequest, file: str, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of an artifact's file, from `offset` on. The file "" is the manifest."""
        for attempt in range(1, _ATTEMPTS + 1):
            request = pb.FetchRequest(file=file, offset=offset)
            request.MergeFrom(artifact)
            self._note("Fetch", request)
            try:
                for response in self._stub.Fetch(request, metadata=self._metadata, timeout=OPEN_TIMEOUT_S):
                    offset += len(response.data)
                    yield response.data
                return
            except grpc.RpcError as error:
                self._raise_unless_lost(error, attempt)

    def stream(self, opened: pb.OpenResponse, job_id: str, *, infer: bool, patience: float) -> Stream:
        """Start the stream of an opened session; `close` it when done. See `Stream`.

        Args:
            opened: the cloud's answer to `open`.
            job_id: the job.
            infer: use the tuned model instead of training it.
            patience: longest wait for an answer, in seconds.
        """
        method = self._stub.Infer if infer else self._stub.Train
        metadata = (*self._metadata, (JOB, job_id), (EPOCH, str(opened.session_epoch)), *tracing.traceparent())
        return Stream(
            lambda frames: method(frames, metadata=metadata), opened, self._translate, patience, self._transcript
        )

    def _note(self, name: str, request: Any) -> None:
        if self._transcript is not None:
            self._transcript.call(name, request.SerializeToString(deterministic=True))

    def _call(self, name: str, method: Callable[..., T], request: object, timeout: float) -> T:
        attempt = 0
        while True:
            attempt += 1
            self._note(name, request)
            try:
                return method(request, metadata=self._metadata, timeout=timeout)
            except grpc.RpcError as error:
                self._raise_unless_lost(error, attempt)

    def _raise_unless_lost(self, error: grpc.RpcError, attempt: int) -> None:
        """Raise the error of a failed call, unless its answer was lost or late and another attempt is due."""
        translated = self._translate(error)
        if attempt == _ATTEMPTS or not isinstance(translated, CloudUnreachable):
            raise translated from None


class Stream:
    """One session's bidirectional stream: `send` messages, and `expect` the answer to each."""

    def __init__(
        self,
        start: Callable[[Iterator[pb.Frame]], Any],
        opened: pb.OpenResponse,
        translate: Callable[[grpc.RpcError], PrivTuneError],
        patience: float,
        transcript: Transcript | None = None,
    ) -> None:
        self._transcript = transcript
        self._writer = FrameWriter(
            epoch=opened.session_epoch, chunk_bytes=min(opened.max_payload_bytes, DEFAULT_CHUNK_BYTES)
        )
        self._reader = FrameReader(
            epoch=opened.session_epoch, max_tensor_bytes=min(opened.max_tensor_bytes, MAX_TENSOR_BYTES)
        )
        self._max_tensor_bytes = opened.max_tensor_bytes
        self._patience = patience
        self._outbox: queue.SimpleQueue[pb.Frame | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Message | PrivTuneError] = queue.SimpleQueue()
        self._stash: dict[tuple[int, int, int], Message] = {}
        self._unclaimed, self._lock = 0, threading.Lock()
        self._call = start(self._outgoing())
        self._thread = threading.Thread(target=self._receive, args=(translate,), name="link-receive", daemon=True)
        self._thread.start()

    @property
    def bytes_up(self) -> int:
        """Bytes of all frames sent."""
        return self._writer.bytes_sent

    @property
    def bytes_down(self) -> int:
        """Bytes of all frames received."""
        return self._reader.bytes_received

    def send(self, message: Message) -> None:
        """Queue a message. Raises MessageTooLarge, before any of it leaves, when it exceeds the agreed size."""
        if len(message.payload) > self._max_tensor_bytes:
            raise MessageTooLarge(
                f"a micro-batch of {len(message.payload)} bytes is over the cloud's limit of {self._max_tensor_bytes}; "
                "lower --batch-size or --max-length"
            )
        if log.isEnabledFor(logging.DEBUG):
            log.debug("sent", extra=message.facts)
        with tracing.span("send", step=message.step, micro_batch=message.micro_batch, rows=message.rows):
            for frame in self._writer.frames(message):
                self._outbox.put(frame)

    def expect(self, step: int, micro_batch: int, *kinds: int) -> Message:
        """Wait for an answer of one of `kinds` to (step, micro-batch). Other answers are kept for later calls.

        Raises the error that ended the stream, or CloudUnreachable when no answer arrives within the patience.
        """
        while True:
            for kind in kinds:
                if (found := self._stash.pop((kind, step, micro_batch), None)) is not None:
                    self._count(-_size(found))
                    return found
            with tracing.span("wait", step=step, micro_batch=micro_batch):
                item = self._next()
            key = (item.kind, item.step, item.micro_batch)
            if key in self._stash:
                raise FrameCorrupt(f"the cloud answered micro-batch {item.micro_batch} of step {item.step} twice")
            self._stash[key] = item

    def output(self, step: int, micro_batch: int, in_full: Callable[[], Message]) -> Message:
        """Wait for the cloud's output for a micro-batch. Raises as `expect`.

        in_full: builds the micro-batch with the bytes of all its records, sent if the cloud no longer holds some.
        """
        answer = self.expect(step, micro_batch, OUTPUT, RESEND)
        if answer.kind == RESEND:
            self.send(in_full())
            answer = self.expect(step, micro_batch, OUTPUT)
        return answer

    def receive(self) -> Message:
        """Wait for the next answer, to any message. Raises as `expect`; use one or the other on a stream."""
        item = self._next()
        self._count(-_size(item))
        return item

    def _next(self) -> Message:
        try:
            item = self._inbox.get(timeout=self._patience)
        except queue.Empty:
            raise CloudUnreachable(f"the cloud sent nothing for {self._patience:.0f} s") from None
        if isinstance(item, PrivTuneError):
            raise item
        if log.isEnabledFor(logging.DEBUG):
            log.debug("received", extra=item.facts)
        return item

    def close(self) -> None:
        """Half-close and wait briefly for the cloud to finish; then cut the call."""
        self._outbox.put(None)
        self._thread.join(timeout=10)
        self._call.cancel()

    def abort(self) -> None:
        """Cut the call at once."""
        self._outbox.put(None)
        self._call.cancel()
        self._thread.join(timeout=5)

    def _count(self, size: int) -> None:
        """Raises FrameCorrupt when the answers that wait here outgrow their bound."""
        with self._lock:
            self._unclaimed += size
            if self._unclaimed > MAX_UNCLAIMED_BYTES:
                raise FrameCorrupt("the cloud sent more than it was asked for; the stream ends here")

    def _outgoing(self) -> Iterator[pb.Frame]:
        """The frames in order, each in the transcript before it leaves; gRPC's own thread runs this."""
        for frame in iter(self._outbox.get, None):
            if self._transcript is not None:
                try:
                    self._transcript.sent(frame)
                except PrivTuneError as error:
                    self._inbox.put(error)
                    return
            yield frame

    def _receive(self, translate: Callable[[grpc.RpcError], PrivTuneError]) -> None:
        try:
            for frame in self._call:
                if self._transcript is not None:
                    self._transcript.received(frame)
                message = self._reader.feed(frame)
                if message is not None:
                    if message.forward is not None or message.control is not None:
                        raise FrameCorrupt("the cloud sent a header that only a device sends; the stream ends here")
                    self._count(_size(message))
                    self._inbox.put(message)
            self._inbox.put(CloudUnreachable("the cloud closed the stream"))
        except grpc.RpcError as error:
            self._inbox.put(translate(error))
        except PrivTuneError as error:
            self._call.cancel()
            self._inbox.put(error)


def _size(message: Message) -> int:
    """What a message takes in memory, roughly: its headers, and empty ones count too."""
    return message.wire_bytes + 4096
