"""The gRPC service: authenticates calls, ends the streams of older sessions, and runs jobs on one compute thread.

Everything that touches a model runs on the compute thread, one message at a time, so owners take turns message by
message (`privtune.cloud.compute.turns`). With `batch_jobs` the passes of messages that wait share a turn.

Streams write their answers: as generators they would be closed after their call, and gRPC frees a call when its handler
has ended. What touches the context later ends the whole process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from privtune.cloud import meters
from privtune.cloud.auth import ApiKeys, Devices
from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.desk import Desk
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.host_load import HostLoad
from privtune.cloud.compute.job_session import JobSession
from privtune.cloud.compute.out_of_memory import within_memory
from privtune.cloud.compute.teaching.classroom import Classroom
from privtune.cloud.compute.teaching.school import School
from privtune.cloud.compute.turns import NOBODY, Turns
from privtune.cloud.compute.work import Work, compute_together
from privtune.cloud.gateway.callers import Callers
from privtune.cloud.gateway.calls import (
    Context,
    certificate,
    device_id,
    errors_as_status,
    job_and_epoch,
    shared_figures,
    this_task,
    traceparent,
    wanted_bottom,
)
from privtune.cloud.gateway.inbox import Inbox
from privtune.cloud.gateway.lease_keeper import LeaseKeeper
from privtune.cloud.gateway.stream_watch import Unread, watch
from privtune.cloud.jobs.lease_rows import SUPERSEDED
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.settings import Settings
from privtune.cloud.storage import open_artifacts
from privtune.shared.errors import (
    ArtifactCorrupt,
    CloudOutOfMemory,
    CloudUnreachable,
    FrameCorrupt,
    JobConflict,
    JobNotFound,
    NonFinite,
    PrivTuneError,
    SessionSuperseded,
    StorageFull,
    VersionMismatch,
)
from privtune.shared.modeling.seeding import dropout_sha256
from privtune.shared.versions import OURS, agree, heard
from privtune.shared.wire import DEFAULT_CHUNK_BYTES, FrameWriter
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc

log = logging.getLogger(__name__)
T = TypeVar("T")
STUCK_S = 300.0  # with one piece of work, such as a step or loading a model: then the cloud takes no more jobs
_ENDING_S = 5.0  # for streams to end by themselves when the cloud shuts down


class Gateway(split_pb2_grpc.SplitServiceServicer):
    """Implements `SplitService`."""

    def __init__(self, settings: Settings, jobs: Jobs, keys: ApiKeys, devices: Devices, teachings: Teachings) -> None:
        self._settings, self._jobs, self._devices, self._teachings = settings, jobs, devices, teachings
        self._compute = Turns()
        store = open_artifacts(settings.data_folder, settings.artifacts_url)
        self._artifacts = Artifacts(store)
        self._host = Host(teachings.catalog, settings.data_folder / "bottoms", settings.base_weights)
        self._classroom = Classroom(store, teachings.catalog, teachings.corpora, max_bytes=settings.max_teacher_bytes)
        teachings.packages = self._classroom
        self._school = School(teachings, self._classroom)
        self._school.start()
        self._desk = Desk(self._host, jobs, self._artifacts, settings)
        self._training: dict[str, Inbox] = {}
        self._streams: dict[asyncio.Task[Any], Inbox] = {}
        self._callers = Callers(settings, keys, devices, jobs.limits, self._refuse_when_closing)
        self._keeper = LeaseKeeper(jobs.leases, devices, self._held, self._end, self._used, self._end_streams)
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.create_task(self._drop_idle())
        self._desk.end_stream = self._end_from_desk
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
        self._sweeper.cancel()
        await asyncio.to_thread(self._compute.close)
        await asyncio.to_thread(self._school.stop, _ENDING_S)

    def check_ready(self) -> None:
        """Raises CloudUnreachable while a job that comes now would wait in vain."""
        if self._desk.closing:
            raise _closing()
        if self._compute.busy_s > STUCK_S:
            raise CloudUnreachable(
                f"its compute thread has been at one piece of work for {self._compute.busy_s:.0f} s; if that is not a "
                "large model being loaded, restart the cloud: jobs resume"
            )
        if self._keeper.ended:
            raise CloudUnreachable("nobody looks after the leases of jobs any more; restart the cloud: jobs resume")

    def load(self) -> HostLoad:
        """How busy this host is. Any thread."""
        used, every = self._host.device_memory()
        return HostLoad(
            device=self._host.device_name,
            jobs_bytes=self._desk.budget.held_bytes,
            max_jobs_bytes=self._settings.max_memory_bytes,
            gpu_bytes=used,
            max_gpu_bytes=every,
            models=self._host.models,
            sessions=self._desk.sessions,
            streams=len(self._streams),
            queue=sum(self._compute.waiting().values()),
            busy_s=round(self._compute.busy_s, 3),
        )

    def waiting(self) -> dict[str, int]:
        """Messages that wait for their turn, by owner. Any thread."""
        return self._compute.waiting()

    def drop_packages(self, unused_since: float) -> int:
        """See `Host.drop_packages`."""
        return self._host.drop_packages(unused_since)

    async def _streams_end(self) -> None:
        if self._streams:
            await asyncio.wait(self._streams, timeout=_ENDING_S)

    async def Open(self, request: pb.OpenRequest, context: Context) -> pb.OpenResponse:
        """The handshake."""
        async with errors_as_status(context), self._callers.call(context) as owner:
            async with self._failures_as_events(request.job_id, owner):
                spoken = request.oldest_protocol_version, request.protocol_version, request.client_version
                protocol = agree(device=heard(*spoken), cloud=OURS)
                if not request.infer:
                    await asyncio.to_thread(self._jobs.limits.check_stored, owner)
                session = await self._on_compute(owner, self._desk.open, owner, request)
                state, dropout = "", ""
                if request.spot_checks:
                    state = await self._on_compute(owner, session.top.state_sha256)
                    dropout = await self._on_compute(owner, dropout_sha256, session.top.device)
            if not request.infer:
                await asyncio.to_thread(self._devices.opened, device_id(context), request.job_id)
            before = None if request.infer else self._training.pop(request.job_id, None)
            if before is not None:
                before.end(SessionSuperseded(SUPERSEDED))
            facts = {"job": session.job_id, "owner": owner, "epoch": session.epoch, "step": session.top.step}
            log.info(
                "a session opens", extra=facts | {"infer": request.infer, "device_version": request.client_version}
            )
            return pb.OpenResponse(
                session_epoch=session.epoch,
                server_version=OURS.version,
                protocol_version=protocol,
                resume_step=session.top.step,
                max_in_flight=session.spec.train.in_flight,
                max_payload_bytes=DEFAULT_CHUNK_BYTES,
                max_tensor_bytes=self._settings.max_tensor_bytes,
                top_parameters=session.top.trainable_parameters // 1000,
                table_sha256="" if session.releases.needs_table else session.releases.table_sha256,
                state_sha256=state,
                dropout_sha256=dropout,
            )

    async def Train(self, requests: AsyncIterator[pb.Frame], context: Context) -> None:
        """One training stream; it ends when the device closes it, with an error, or with a newer session."""
        async with errors_as_status(context):
            session = await self._session(context, infer=False)
            inbox = await self._inbox(session)
            why = "the connection to the device was lost; the job continues when it reconnects"
            try:
                await self._on_compute(session.owner, self._desk.start, session, inbox)
                self._training[session.job_id] = inbox
                await self._converse(session, inbox, requests, context)
                why = "the device closed its stream; the job continues when it reconnects"
            except SessionSuperseded:
                await self._callers.owner(context)  # one that was revoked, and so lost the job, hears that
                raise
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
                ended = self._on_compute(session.owner, self._desk.stream_ended, session, inbox, why)
                await asyncio.shield(ended)

    async def Infer(self, requests: AsyncIterator[pb.Frame], context: Context) -> None:
        """Forward only, with the trained adapter."""
        async with errors_as_status(context):
            session = await self._session(context, infer=True)
            inbox = await self._inbox(session)
            await self._on_compute(session.owner, self._desk.start, session, inbox)
            try:
                await self._converse(session, inbox, requests, context)
            finally:
                await asyncio.shield(self._on_compute(session.owner, self._desk.inference_ended, session))

    async def Commit(self, request: pb.CommitRequest, context: Context) -> pb.CommitResponse:
        """The device has done its last step: write the adapter and mark the job as succeeded."""
        async with errors_as_status(context), self._callers.call(context) as owner:
            await asyncio.to_thread(self._jobs.get, request.job_id, owner)
            async with self._failures_as_events(request.job_id, owner):
                digest = await self._on_compute(owner, self._desk.commit, request)
            return pb.CommitResponse(adapter_sha256=digest)

    async def Refuse(self, request: pb.RefuseRequest, context: Context) -> pb.RefuseResponse:
        """The device refuses the job: it fails with the device's reason."""
        async with errors_as_status(context), self._callers.call(context) as owner:
            reason, message = request.reason[:64], request.message[:500]
            refuse = partial(self._jobs.refuse, holder=request.holder, owner=owner)
            await asyncio.to_thread(refuse, request.job_id, reason, message)
            return pb.RefuseResponse()

    async def Share(self, request: pb.ShareRequest, context: Context) -> pb.ShareResponse:
        """What the owner of a device lets its watchers know of a job."""
        async with errors_as_status(context), self._callers.call(context) as owner:
            await asyncio.to_thread(self._jobs.get, request.job_id, owner)
            figures, said = shared_figures(request)
            share = partial(self._jobs.share, figures=figures, said=said)
            await asyncio.to_thread(share, request.job_id, request.session_epoch, request.step)
            return pb.ShareResponse()

    async def Claim(self, request: pb.ClaimRequest, context: Context) -> pb.ClaimResponse:
        """A device is about to draw, or has drawn, in this home."""
        async with errors_as_status(context), self._callers.call(context) as owner:
            await asyncio.to_thread(self._jobs.homes.claim, owner, request.home_id, request.count, request.nonce)
            return pb.ClaimResponse()

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        """An enrolled device wants its next certificate."""
        async with errors_as_status(context), self._callers.call(context):
            own = certificate(context)
            renewed = await asyncio.to_thread(self._devices.renew, device_id(context) or "", own)
            return pb.RenewResponse(certificate=renewed.certificate, life_s=renewed.life_s)

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> None:
        """Stream a file of an artifact from an offset."""
        async with errors_as_status(context), self._callers.call(context) as owner:
            folder = await self._artifact(request, owner)
            with self._artifacts.file(folder, request.file).open("rb") as file:
                file.seek(request.offset)
                unread = Unread(self._settings.unread_s)
                watcher = watch(self._callers, context, unread)
                try:
                    while data := await asyncio.to_thread(file.read, DEFAULT_CHUNK_BYTES):
                        meters.sent(owner, len(data))
                        with unread.offering():
                            await context.write(pb.FetchResponse(data=data))
                finally:
                    watcher.cancel()

    async def _artifact(self, request: pb.FetchRequest, owner: str) -> Path:
        """The folder of an artifact of the owner's job, or of a bottom package that no job has asked for yet."""
        if request.kind == pb.ARTIFACT_KIND_BOTTOM and not request.job_id:
            spec = wanted_bottom(request)
            await asyncio.to_thread(self._jobs.limits.check_model, owner, spec.model)
            await asyncio.to_thread(self._teachings.catalog.check_blocks, spec)
            return await self._on_compute(owner, self._host.bottom_package, spec)
        job = await asyncio.to_thread(self._jobs.get, request.job_id, owner)
        if request.kind == pb.ARTIFACT_KIND_BOTTOM:
            async with self._failures_as_events(job.id, owner):
                return await self._on_compute(owner, self._host.bottom_package, job.spec)
        if request.kind == pb.ARTIFACT_KIND_ADAPTER:
            return await asyncio.to_thread(self._artifacts.adapter, job.id)
        if request.kind == pb.ARTIFACT_KIND_SHOWN:
            return self._artifacts.shown(job.id)
        if request.kind == pb.ARTIFACT_KIND_TAUGHT:
            base = await self._on_compute(owner, self._host.base_sha256, job.spec)
            return await asyncio.to_thread(self._taught, job.spec.taught, owner, base)
        raise FrameCorrupt("the kind of artifact is not set")

    async def _converse(
        self, session: JobSession, inbox: Inbox, requests: AsyncIterator[pb.Frame], context: Context
    ) -> None:
        reader = asyncio.create_task(inbox.fill(requests, self._settings.max_tensor_bytes))
        unread = Unread(self._settings.unread_s)
        watcher = watch(self._callers, context, unread, inbox)
        writer, task = FrameWriter(epoch=session.epoch), this_task()
        self._streams[task] = inbox
        try:
            while (message := await inbox.next()) is not None:
                if log.isEnabledFor(logging.DEBUG):
                    log.debug("received", extra=message.facts | {"job": session.job_id})
                if message.forward is not None:
                    meters.asked(session.owner, sum(message.forward.lengths))
                answers = self._desk.answers(session, message)
                while (
                    answer := await self._on_compute(session.owner, self._desk.advance, session, answers)
                ) is not None:
                    if isinstance(answer, Work):
                        await self._computed(session.owner, answer)
                        continue
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug("answered", extra=answer.facts | {"job": session.job_id})
                    async with inbox.answering(len(answer.payload)):
                        for frame in writer.frames(answer):
                            meters.sent(session.owner, frame.ByteSize())
                            with unread.offering():
                                await context.write(frame)
                    session.bytes_down = writer.bytes_sent
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
        budget = self._desk.budget.of(session.owner)
        make_room = partial(self._on_compute, session.owner, budget.hold)
        return Inbox(session, budget, make_room, count, idle_s=self._settings.stream_idle_s)

    async def _drop_idle(self) -> None:
        """Free what devices abandoned, until cancelled."""
        while True:
            await asyncio.sleep(min(60.0, self._settings.texts_idle_s))
            await self._on_compute(NOBODY, self._desk.drop_idle)

    async def _session(self, context: Context, *, infer: bool) -> JobSession:
        owner = await self._callers.begin(context)
        job_id, epoch = job_and_epoch(context)
        await asyncio.to_thread(self._jobs.get, job_id, owner)
        session = self._desk.current(job_id, epoch, infer=infer)
        session.trace = traceparent(context)
        return session

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
            self._compute.submit(NOBODY, partial(self._desk.drop, job_id, epoch))
        self._keeper.wake()

    def _held(self) -> dict[str, int]:
        return {job_id: inbox.epoch for job_id, inbox in self._training.items()}

    def _used(self) -> set[str]:
        return {inbox.job_id for inbox in self._streams.values()} - self._training.keys()

    def _end(self, job_id: str, epoch: int, error: PrivTuneError) -> None:
        inbox = self._training.get(job_id)
        if inbox is not None and inbox.epoch == epoch:
            inbox.end(error)

    def _end_from_desk(self, stream: object, error: PrivTuneError) -> None:
        """Called on the compute thread."""
        if isinstance(stream, Inbox):
            self._loop.call_soon_threadsafe(stream.end, error)

    def _job_deleted(self, job_id: str) -> None:
        """Free all sessions of a job and end its streams. Called on a thread of REST, which waits for it.

        On return nothing writes to the job's folder any more.
        """
        with suppress(RuntimeError):  # shut down already
            self._loop.call_soon_threadsafe(self._end_streams, job_id)
            self._compute.submit(NOBODY, partial(self._desk.forget, job_id)).result()

    def _end_streams(self, job_id: str) -> None:
        for inbox in self._streams.values():
            if inbox.job_id == job_id:
                inbox.end(JobNotFound("this job was deleted by its owner"))

    def _refuse_when_closing(self) -> None:
        if self._desk.closing:  # before the compute thread is gone, so that every device knows to come back
            raise _closing()

    async def _computed(self, owner: str, work: Work[Any]) -> None:
        """Compute a pass in its owner's turn, with those of its kind that wait by then."""
        most = self._settings.batch_jobs
        await asyncio.wrap_future(self._compute.submit_work(owner, work, work.key, compute_together, most))

    async def _on_compute(self, owner: str, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function on the compute thread, in its owner's turn."""
        return await asyncio.wrap_future(self._compute.submit(owner, partial(within_memory, function, *arguments)))


def _closing() -> CloudUnreachable:
    return CloudUnreachable("the cloud is shutting down; the job continues when it is back")
