"""The cloud's end of the wire: the gRPC servicer. Authenticates, fences sessions, and runs jobs on one compute thread.

Everything that touches a model runs on the compute thread, one message at a time, so jobs take turns by message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc

from privtune.cloud.auth import ApiKeys
from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.desk import Desk, JobSession
from privtune.cloud.compute.host import Host
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.settings import Settings
from privtune.shared import __version__
from privtune.shared.errors import (
    ArtifactCorrupt,
    CloudUnreachable,
    FrameCorrupt,
    InternalError,
    JobConflict,
    NonFinite,
    PrivTuneError,
    SessionSuperseded,
    StorageFull,
    Unauthenticated,
    VersionMismatch,
)
from privtune.shared.wire import DEFAULT_CHUNK_BYTES, HEADER_BYTES, PROTOCOL_VERSION, FrameReader, FrameWriter, Message
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc

log = logging.getLogger(__name__)
T = TypeVar("T")
Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no types

JOB_METADATA = "privtune-job"
REASON_METADATA = "privtune-reason"
EPOCH_METADATA = "privtune-epoch"


class Gateway(split_pb2_grpc.SplitServiceServicer):
    """Implements `SplitService`."""

    def __init__(self, settings: Settings, jobs: Jobs, keys: ApiKeys, catalog: Catalog) -> None:
        self._settings, self._jobs, self._keys = settings, jobs, keys
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._artifacts = Artifacts(settings.data_folder)
        self._host = Host(catalog, settings.data_folder / "bottoms")
        self._desk = Desk(self._host, jobs, self._artifacts, settings)
        self._streams: dict[str, asyncio.Task[Any]] = {}
        self._inferring: set[asyncio.Task[Any]] = set()

    async def shutdown(self) -> None:
        """Stop every stream; each job waits for its device and goes on from its last checkpoint."""
        under_way = [*self._streams.values(), *self._inferring]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._compute.shutdown(wait=True)

    async def Open(self, request: pb.OpenRequest, context: Context) -> pb.OpenResponse:
        """Handshake; see the proto."""
        with _Abort() as abort:
            owner = await self._owner(context)
            async with self._noted(request.job_id, owner):
                if request.protocol_version != PROTOCOL_VERSION:
                    raise VersionMismatch(
                        f"the device speaks protocol {request.protocol_version} (PrivTune {request.client_version}), "
                        f"this cloud {PROTOCOL_VERSION} (PrivTune {__version__}); upgrade the older side"
                    )
                await self._fence(request.job_id)
                session = await self._on_compute(self._desk.open, owner, request)
            log.info("open job=%s epoch=%d step=%d", request.job_id, session.epoch, session.top.step)
            return pb.OpenResponse(
                session_epoch=session.epoch,
                server_version=__version__,
                resume_step=session.top.step,
                max_in_flight=session.spec.train.in_flight,
                max_payload_bytes=DEFAULT_CHUNK_BYTES,
                max_tensor_bytes=self._settings.max_tensor_bytes,
                top_parameters=session.top.trainable_parameters // 1000,
            )
        await abort.now(context)

    async def Train(self, requests: AsyncIterator[pb.Frame], context: Context) -> AsyncIterator[pb.Frame]:
        """One training stream; ends when the device closes it, an error, or a newer session."""
        with _Abort() as abort:
            session = await self._session(context, infer=False)
            self._streams[session.job_id] = _this_task()
            why = "the connection to the device was lost; the job goes on when it reconnects"
            try:
                await asyncio.to_thread(self._jobs.start, session.job_id)
                async for frame in self._serve(session, requests):
                    yield frame
                why = "the device closed its stream; the job goes on when it reconnects"
            except NonFinite as error:
                await asyncio.to_thread(self._jobs.fail, session.job_id, error.reason, error.message)
                raise
            except PrivTuneError as error:
                why = f"{error.message.rstrip('.')}; the job goes on when the device tries again"
                raise
            finally:
                if self._streams.get(session.job_id) is _this_task():
                    del self._streams[session.job_id]
                    await asyncio.shield(asyncio.to_thread(self._desk.stream_ended, session, why))
            return
        await abort.now(context)

    async def Infer(self, requests: AsyncIterator[pb.Frame], context: Context) -> AsyncIterator[pb.Frame]:
        """Forward only, with the trained adapter."""
        with _Abort() as abort:
            session = await self._session(context, infer=True)
            tidying = asyncio.create_task(self._tidy())
            task = _this_task()
            self._inferring.add(task)
            try:
                async for frame in self._serve(session, requests):
                    yield frame
            finally:
                tidying.cancel()
                await asyncio.shield(self._on_compute(self._desk.inference_ended, session))
                self._inferring.discard(task)
            return
        await abort.now(context)

    async def Commit(self, request: pb.CommitRequest, context: Context) -> pb.CommitResponse:
        """The device has done its last step: write the adapter, mark the job as succeeded."""
        with _Abort() as abort:
            owner = await self._owner(context)
            await asyncio.to_thread(self._jobs.get, request.job_id, owner)
            session = self._desk.current(request.job_id, request.session_epoch)
            async with self._noted(request.job_id, owner):
                digest = await self._on_compute(self._desk.commit, session, request.final_step, request.tokens)
            return pb.CommitResponse(adapter_sha256=digest)
        await abort.now(context)

    async def Refuse(self, request: pb.RefuseRequest, context: Context) -> pb.RefuseResponse:
        """The device will not do this job."""
        with _Abort() as abort:
            owner = await self._owner(context)
            job = await asyncio.to_thread(self._jobs.get, request.job_id, owner)
            await asyncio.to_thread(self._jobs.fail, job.id, request.reason[:64], request.message[:500])
            return pb.RefuseResponse()
        await abort.now(context)

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> AsyncIterator[pb.FetchResponse]:
        """Stream a file of an artifact from an offset."""
        with _Abort() as abort:
            owner = await self._owner(context)
            job = await asyncio.to_thread(self._jobs.get, request.job_id, owner)
            if request.kind == pb.ARTIFACT_KIND_BOTTOM:
                folder = await self._on_compute(self._host.bottom_package, job.spec)
            elif request.kind == pb.ARTIFACT_KIND_ADAPTER:
                folder = self._artifacts.adapter(job.id)
            else:
                raise FrameCorrupt("the kind of artifact is not set")
            path = self._artifacts.file(folder, request.file)
            with path.open("rb") as file:
                file.seek(request.offset)
                while data := await asyncio.to_thread(file.read, DEFAULT_CHUNK_BYTES):
                    yield pb.FetchResponse(data=data)
            return
        await abort.now(context)

    async def _serve(self, session: JobSession, requests: AsyncIterator[pb.Frame]) -> AsyncIterator[pb.Frame]:
        """Read ahead while the compute thread works, so that uploads overlap with computation."""
        inbox: asyncio.Queue[Message | Exception | None] = asyncio.Queue(maxsize=2 * session.spec.train.in_flight + 2)
        reader = asyncio.create_task(_read(session, requests, self._settings.max_tensor_bytes, inbox))
        writer = FrameWriter(epoch=session.epoch)
        try:
            while (message := await inbox.get()) is not None:
                if isinstance(message, Exception):
                    raise message
                answers = session.machine.handle(message)
                while (answer := await self._on_compute(next, answers, None)) is not None:
                    for frame in writer.frames(answer):
                        yield frame
                    if answer.report is not None:
                        await asyncio.to_thread(self._desk.step_done, session, answer.report)
        finally:
            reader.cancel()

    async def _tidy(self) -> None:
        """While a stream lives, let abandoned texts go."""
        while True:
            await asyncio.sleep(min(60.0, self._desk.texts.idle_s))
            await self._on_compute(self._desk.texts.drop_idle)

    async def _session(self, context: Context, *, infer: bool) -> JobSession:
        owner = await self._owner(context)
        metadata = _metadata(context)
        job_id, epoch = metadata.get(JOB_METADATA, ""), metadata.get(EPOCH_METADATA, "")
        if not job_id or not epoch.isdigit():
            raise JobConflict("open the job before streaming")
        await asyncio.to_thread(self._jobs.get, job_id, owner)
        return self._desk.current(job_id, int(epoch), infer=infer)

    @asynccontextmanager
    async def _noted(self, job_id: str, owner: str) -> AsyncIterator[None]:
        """What keeps a job from going on until a person acts is also told in its events; its state stays."""
        try:
            yield
        except (VersionMismatch, StorageFull, ArtifactCorrupt) as error:
            with suppress(PrivTuneError):
                job = await asyncio.to_thread(self._jobs.get, job_id, owner)
                await asyncio.to_thread(self._jobs.add_event, job.id, "error", error.message)
            raise

    async def _fence(self, job_id: str) -> None:
        """End an older stream of the job before a new session touches its state."""
        task = self._streams.pop(job_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _owner(self, context: Context) -> str:
        header = _metadata(context).get("authorization", "")
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("no API key came; set PRIVTUNE_API_KEY or pass --api-key")
        return await asyncio.to_thread(self._keys.authenticate, key)

    async def _on_compute(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._compute, function, *arguments)


async def _read(
    session: JobSession,
    requests: AsyncIterator[pb.Frame],
    max_tensor_bytes: int,
    inbox: asyncio.Queue[Message | Exception | None],
) -> None:
    reader = FrameReader(epoch=session.epoch, max_tensor_bytes=max_tensor_bytes)
    try:
        async for frame in requests:
            message = reader.feed(frame)
            session.bytes_up = reader.bytes_received
            if message is not None:
                await inbox.put(message)
        await inbox.put(None)
    except PrivTuneError as error:
        await inbox.put(error)
    except Exception as error:  # a broken transport: the handler reports it
        await inbox.put(CloudUnreachable("the connection to the device was lost", detail=repr(error)))


class _Abort:
    """Catches errors of the table so that the RPC can end with their status and public message."""

    def __init__(self) -> None:
        self._error: PrivTuneError | None = None

    def __enter__(self) -> _Abort:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None or isinstance(error, asyncio.CancelledError | GeneratorExit):
            return False
        if not isinstance(error, PrivTuneError):
            log.error("unexpected failure in the gateway", exc_info=error)
            error = InternalError("the cloud met an unexpected failure; its operator finds it in the log")
        elif error.detail:
            log.warning("%s: %s (%s)", error.reason, error.message, error.detail)
        self._error = error
        return True

    async def now(self, context: Context) -> NoReturn:
        """End the call with the error's status; never returns."""
        error = self._error or InternalError("the cloud ended the call without an answer")
        await context.abort(
            getattr(grpc.StatusCode, error.grpc_status),
            error.message,
            trailing_metadata=((REASON_METADATA, error.reason),),
        )
        raise error  # unreachable: abort raises


def _metadata(context: Context) -> dict[str, str]:
    pairs = context.invocation_metadata() or ()
    return {key: value if isinstance(value, str) else "" for key, value in pairs}


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise SessionSuperseded("the stream has no task of its own")
    return task


def build_server(settings: Settings, jobs: Jobs, keys: ApiKeys, catalog: Catalog) -> tuple[grpc.aio.Server, Gateway]:
    """The gRPC server (no port bound yet) and its servicer."""
    limit = DEFAULT_CHUNK_BYTES + HEADER_BYTES
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            # A device may ping every 20 s while it computes; stricter minimums answer GOAWAY.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.so_reuseport", 0),
        ]
    )
    gateway = Gateway(settings, jobs, keys, catalog)
    split_pb2_grpc.add_SplitServiceServicer_to_server(gateway, server)  # type: ignore[no-untyped-call]
    return server, gateway
