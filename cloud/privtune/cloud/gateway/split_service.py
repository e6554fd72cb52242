"""The gRPC service: authenticates calls, ends the streams of older sessions, and runs jobs on one compute thread.

Everything that touches a model runs on the compute thread, one message at a time, so jobs take turns message by
message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from privtune.cloud.auth import ApiKeys
from privtune.cloud.auth.key_rows import KEY_CHECK_S
from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.desk import Desk, JobSession
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.out_of_memory import within_memory
from privtune.cloud.compute.teaching.classroom import Classroom
from privtune.cloud.compute.teaching.school import School
from privtune.cloud.gateway.calls import Context, abort, api_key, errors_as_status, job_and_epoch, wanted_bottom
from privtune.cloud.gateway.inbox import Inbox
from privtune.cloud.gateway.lease_keeper import LeaseKeeper
from privtune.cloud.jobs.lease_rows import SUPERSEDED
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.settings import Settings
from privtune.shared import __version__
from privtune.shared.errors import (
    ArtifactCorrupt,
    CloudOutOfMemory,
    CloudUnreachable,
    FrameCorrupt,
    InternalError,
    JobConflict,
    JobNotFound,
    NonFinite,
    PrivTuneError,
    SessionSuperseded,
    StorageFull,
    Unauthenticated,
    VersionMismatch,
)
from privtune.shared.wire import DEFAULT_CHUNK_BYTES, PROTOCOL_VERSION, FrameWriter
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_CALLS = 16  # of an owner at once, beside the streams of sessions: each holds what its device does not read

_ENDING_S = 5.0  # for streams to end by themselves when the cloud shuts down


class Gateway(split_pb2_grpc.SplitServiceServicer):
    """Implements `SplitService`."""

    def __init__(self, settings: Settings, jobs: Jobs, keys: ApiKeys, teachings: Teachings) -> None:
        self._settings, self._jobs, self._keys, self._teachings = settings, jobs, keys, teachings
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._artifacts = Artifacts(settings.data_folder)
        self._host = Host(teachings.catalog, settings.data_folder / "bottoms")
        self._classroom = Classroom(
            settings.data_folder, teachings.catalog, teachings.corpora, max_bytes=settings.max_teacher_bytes
        )
        teachings.packages = self._classroom
        self._school = School(teachings, self._classroom)
        self._school.start()
        self._desk = Desk(self._host, jobs, self._artifacts, settings)
        self._training: dict[str, Inbox] = {}
        self._streams: dict[asyncio.Task[Any], Inbox] = {}
        self._calls = Counter[str]()  # under way, by owner
        self._keeper = LeaseKeeper(jobs.leases, self._held, self._end)
        self._loop = asyncio.get_running_loop()
        jobs.when_ended(self._job_ended)
        jobs.deletions.when_deleted = self._job_deleted

    async def shutdown(self) -> None:
        """End every stream: of training after the present step, which leaves a checkpoint on both sides.

        A step that takes too long is given up; its job resumes from the checkpoint before.
        """
        self._desk.closing = True
        for inbox in self._streams.values():
            if inbox not in self._training.values():
                inbox.end(_closing())
        await self._streams_end()
        for inbox in self._streams.values():
            inbox.end(_closing())
        await self._streams_end()
        await self._keeper.stop()
        self._compute.shutdown(wait=True)
        await asyncio.to_thread(self._school.stop, _ENDING_S)

    def drop_packages(self, unused_since: float) -> int:
        """See `Host.drop_packages`."""
        return self._host.drop_packages(unused_since)

    async def _streams_end(self) -> None:
        if self._streams:
            await asyncio.wait(self._streams, timeout=_ENDING_S)

    async def Open(self, request: pb.OpenRequest, context: Context) -> pb.OpenResponse:
        """The handshake."""
        async with errors_as_status(context), self._call(context) as owner:
            async with self._failures_as_events(request.job_id, owner):
                if request.protocol_version != PROTOCOL_VERSION:
                    raise VersionMismatch(
                        f"the device speaks protocol {request.protocol_version} (PrivTune {request.client_version}), "
                        f"this cloud {PROTOCOL_VERSION} (PrivTune {__version__}); upgrade the older side"
                    )
                if not request.infer:
                    await asyncio.to_thread(self._jobs.limits.check_stored, owner)
                session = await self._on_compute(self._desk.open, owner, request)
            before = None if request.infer else self._training.pop(request.job_id, None)
            if before is not None:
                before.end(SessionSuperseded(SUPERSEDED))
            log.info("open job=%s epoch=%d step=%d", request.job_id, session.epoch, session.top.step)
            return pb.OpenResponse(
                session_epoch=session.epoch,
                server_version=__version__,
                resume_step=session.top.step,
                max_in_flight=session.spec.train.in_flight,
                max_payload_bytes=DEFAULT_CHUNK_BYTES,
                max_tensor_bytes=self._settings.max_tensor_bytes,
                top_parameters=session.top.trainable_parameters // 1000,
                table_sha256="" if session.releases.needs_table else session.releases.table_sha256,
            )

    async def Train(self, requests: AsyncIterator[pb.Frame], context: Context) -> AsyncIterator[pb.Frame]:
        """One training stream; it ends when the device closes it, with an error, or with a newer session."""
        async with errors_as_status(context):
            session = await self._session(context, infer=False)
            inbox = await self._inbox(session)
            why = "the connection to the device was lost; the job continues when it reconnects"
            try:
                await self._on_compute(self._desk.start, session, inbox)
                self._training[session.job_id] = inbox
                async for frame in self._answers(session, inbox, requests, context):
                    yield frame
                why = "the device closed its stream; the job continues when it reconnects"
            except NonFinite as error:
                with suppress(SessionSuperseded):
                    failed = session.job_id, session.epoch, error.reason, error.message
                    await asyncio.to_thread(self._jobs.fail, *failed)
                raise
            except PrivTuneError as error:
                why = f"{error.message.rstrip('.')}; the job continues when the device tries again"
                raise
            finally:
                if self._training.get(session.job_id) is inbox:
                    del self._training[session.job_id]
                await asyncio.shield(self._on_compute(self._desk.stream_ended, session, inbox, why))

    async def Infer(self, requests: AsyncIterator[pb.Frame], context: Context) -> AsyncIterator[pb.Frame]:
        """Forward only, with the trained adapter."""
        async with errors_as_status(context):
            session = await self._session(context, infer=True)
            inbox = await self._inbox(session)
            await self._on_compute(self._desk.start, session, inbox)
            sweeper = asyncio.create_task(self._drop_idle_texts())
            try:
                async for frame in self._answers(session, inbox, requests, context):
                    yield frame
            finally:
                sweeper.cancel()
                await asyncio.shield(self._on_compute(self._desk.inference_ended, session))

    async def Commit(self, request: pb.CommitRequest, context: Context) -> pb.CommitResponse:
        """The device has done its last step: write the adapter and mark the job as succeeded."""
        async with errors_as_status(context), self._call(context) as owner:
            await asyncio.to_thread(self._jobs.get, request.job_id, owner)
            async with self._failures_as_events(request.job_id, owner):
                digest = await self._on_compute(self._desk.commit, request)
            return pb.CommitResponse(adapter_sha256=digest)

    async def Refuse(self, request: pb.RefuseRequest, context: Context) -> pb.RefuseResponse:
        """The device refuses the job: it fails with the device's reason."""
        async with errors_as_status(context), self._call(context) as owner:
            reason, message = request.reason[:64], request.message[:500]
            refuse = partial(self._jobs.refuse, holder=request.holder, owner=owner)
            await asyncio.to_thread(refuse, request.job_id, reason, message)
            return pb.RefuseResponse()

    async def Claim(self, request: pb.ClaimRequest, context: Context) -> pb.ClaimResponse:
        """A device is about to draw, or has drawn, in this home."""
        async with errors_as_status(context), self._call(context) as owner:
            await asyncio.to_thread(self._jobs.homes.claim, owner, request.home_id, request.count, request.nonce)
            return pb.ClaimResponse()

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> AsyncIterator[pb.FetchResponse]:
        """Stream a file of an artifact from an offset."""
        async with errors_as_status(context), self._call(context) as owner:
            folder = await self._artifact(request, owner)
            with self._artifacts.file(folder, request.file).open("rb") as file:
                file.seek(request.offset)
                watcher = self._watch_key(context)
                try:
                    while data := await asyncio.to_thread(file.read, DEFAULT_CHUNK_BYTES):
                        yield pb.FetchResponse(data=data)
                finally:
                    watcher.cancel()

    async def _artifact(self, request: pb.FetchRequest, owner: str) -> Path:
        """The folder of an artifact of the owner's job, or of a bottom package that no job has asked for yet."""
        if request.kind == pb.ARTIFACT_KIND_BOTTOM and not request.job_id:
            spec = wanted_bottom(request)
            await asyncio.to_thread(self._jobs.limits.check_model, owner, spec.model)
            await asyncio.to_thread(self._teachings.catalog.check_blocks, spec)
            return await self._on_compute(self._host.bottom_package, spec)
        job = await asyncio.to_thread(self._jobs.get, request.job_id, owner)
        if request.kind == pb.ARTIFACT_KIND_BOTTOM:
            async with self._failures_as_events(job.id, owner):
                return await self._on_compute(self._host.bottom_package, job.spec)
        if request.kind == pb.ARTIFACT_KIND_ADAPTER:
            return self._artifacts.adapter(job.id)
        if request.kind == pb.ARTIFACT_KIND_TAUGHT:
            base = await self._on_compute(self._host.base_sha256, job.spec)
            return await asyncio.to_thread(self._taught, job.spec.taught, owner, base)
        raise FrameCorrupt("the kind of artifact is not set")

    async def _answers(
        self, session: JobSession, inbox: Inbox, requests: AsyncIterator[pb.Frame], context: Context
    ) -> AsyncIterator[pb.Frame]:
        reader = asyncio.create_task(inbox.fill(requests, self._settings.max_tensor_bytes))
        watcher = self._watch_key(context, inbox)
        writer, task = FrameWriter(epoch=session.epoch), _this_task()
        self._streams[task] = inbox
        try:
            while (message := await inbox.next()) is not None:
                answers = session.machine.handle(message)
                while (answer := await self._on_compute(self._desk.advance, session, answers)) is not None:
                    async with inbox.answering(len(answer.payload)):
                        for frame in writer.frames(answer):
                            yield frame
                    if answer.report is not None and self._desk.closing:
                        raise _closing()
        finally:
            reader.cancel()
            watcher.cancel()
            del self._streams[task]

    def _taught(self, teaching_id: str | None, owner: str, base_sha256: str) -> Path:
        """The package of a job's taught blocks. base_sha256: of the model that the job runs on.

        Raises JobConflict for a job without, where it is gone, and where another model taught it.
        """
        if teaching_id is None:
            raise JobConflict("this job has no taught blocks")
        return self._classroom.package(self._teachings.get(teaching_id, owner).result or "none", base_sha256)

    async def _inbox(self, session: JobSession) -> Inbox:
        count = await asyncio.to_thread(self._jobs.limits.counting_bytes, session.owner)
        return Inbox(session, self._desk.budget, partial(self._on_compute, self._desk.budget.hold), count)

    def _watch_key(self, context: Context, inbox: Inbox | None = None) -> asyncio.Task[None]:
        """End this task's stream within seconds of its key's end, whatever it waits for then."""
        return asyncio.create_task(self._end_with_key(context, _this_task(), inbox))

    async def _end_with_key(self, context: Context, stream: asyncio.Task[Any], inbox: Inbox | None) -> None:
        ended: PrivTuneError | None = None
        while ended is None:
            await asyncio.sleep(KEY_CHECK_S)
            try:
                await self._owner(context)
            except Unauthenticated as error:
                ended = error
            except PrivTuneError:
                continue  # the database is busy, or the cloud closes
        if inbox is not None:
            inbox.end(ended)  # the stream ends by itself, unless it computes or its device does not read
            await asyncio.sleep(KEY_CHECK_S)
        with suppress(Exception):
            async with asyncio.timeout(KEY_CHECK_S):
                await abort(context, ended)
        stream.cancel()

    async def _drop_idle_texts(self) -> None:
        while True:
            await asyncio.sleep(min(60.0, self._desk.texts.idle_s))
            await self._on_compute(self._desk.texts.drop_idle)

    async def _session(self, context: Context, *, infer: bool) -> JobSession:
        owner = await self._caller(context)
        job_id, epoch = job_and_epoch(context)
        await asyncio.to_thread(self._jobs.get, job_id, owner)
        return self._desk.current(job_id, epoch, infer=infer)

    @asynccontextmanager
    async def _failures_as_events(self, job_id: str, owner: str) -> AsyncIterator[None]:
        """Also report failures that need a person as an event of the job, whose state stays as it is."""
        try:
            yield
        except (VersionMismatch, StorageFull, ArtifactCorrupt, CloudOutOfMemory) as error:
            with suppress(PrivTuneError):
                job = await asyncio.to_thread(self._jobs.get, job_id, owner)
                await asyncio.to_thread(self._jobs.add_event, job.id, "error", error.message)
            raise

    def _job_ended(self, job_id: str, epoch: int) -> None:
        """Free the session of a job that has ended or was taken from its device. Called on the thread that did it."""
        with suppress(RuntimeError):  # shut down already
            self._compute.submit(self._desk.drop, job_id, epoch)
        self._keeper.wake()

    def _held(self) -> dict[str, int]:
        return {job_id: inbox.epoch for job_id, inbox in self._training.items()}

    def _end(self, job_id: str, epoch: int, error: PrivTuneError) -> None:
        inbox = self._training.get(job_id)
        if inbox is not None and inbox.epoch == epoch:
            inbox.end(error)

    def _job_deleted(self, job_id: str) -> None:
        """Free all sessions of a job and end its streams. Called on a thread of REST, which waits for it.

        On return nothing writes to the job's folder any more.
        """
        with suppress(RuntimeError):  # shut down already
            self._loop.call_soon_threadsafe(self._end_streams, job_id)
            self._compute.submit(self._desk.forget, job_id).result()

    def _end_streams(self, job_id: str) -> None:
        for inbox in self._streams.values():
            if inbox.job_id == job_id:
                inbox.end(JobNotFound("this job was deleted by its owner"))

    @asynccontextmanager
    async def _call(self, context: Context) -> AsyncIterator[str]:
        """The owner of a call, counted while it is under way. Raises CloudUnreachable for one too many."""
        owner = await self._caller(context)
        if self._calls[owner] >= MAX_CALLS:
            raise CloudUnreachable(f"{MAX_CALLS} calls of this owner are under way; try again when they have ended")
        self._calls[owner] += 1
        try:
            yield owner
        finally:
            self._calls[owner] -= 1

    async def _owner(self, context: Context) -> str:
        if self._desk.closing:  # before the compute thread is gone, so that every device knows to come back
            raise _closing()
        return (await asyncio.to_thread(self._keys.authenticate, api_key(context), "device")).owner

    async def _caller(self, context: Context) -> str:
        """The owner of a new call or stream. Raises as `ApiKeys.authenticate`, and RateLimited."""
        owner = await self._owner(context)
        await asyncio.to_thread(self._jobs.limits.count_request, owner)
        return owner

    async def _on_compute(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._compute, within_memory, function, *arguments)


def _closing() -> CloudUnreachable:
    return CloudUnreachable("the cloud is shutting down; the job continues when it is back")


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise InternalError("a stream runs outside of a task")
    return task
