"""The link between job records and the tops in memory: opens, resumes, commits and parks them.

Runs on the compute thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from privtune.cloud import meters
from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.job_session import JobSession
from privtune.cloud.compute.memory_budget import MemoryBudget
from privtune.cloud.compute.session_maker import SessionMaker
from privtune.cloud.compute.text_cache import TextCache
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.compute.turns import NOBODY
from privtune.cloud.compute.work import Work
from privtune.cloud.jobs.lease_rows import SUPERSEDED
from privtune.cloud.jobs.leases import check_unfinished
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.states import Job, JobProgress
from privtune.cloud.settings import Settings
from privtune.shared import tracing
from privtune.shared.errors import CloudUnreachable, InvalidInput, JobConflict, PrivTuneError, SessionSuperseded
from privtune.shared.modeling.checkpoint import checkpoint_steps, keep_only
from privtune.shared.wire import Message
from privtune.shared.wording import counted
from privtune.split.v1 import split_pb2 as pb

# Sessions of an owner whose stream has not begun; the one opened first gives way to a newer one.
MAX_WAITING_SESSIONS = 4
WAITING_S = 600.0  # for the stream of a session
_HOLDER = re.compile(r"[0-9a-f]{32}")
GAVE_UP = "this owner's jobs hold more than an equal share of the cloud's memory, and another owner needs some"
MOST_TOKENS = 1 << 53  # of a job: the database holds 63 bits, JSON numbers 53


class Desk:
    """The sessions of this cloud: for each job at most one that trains, from its `open` to the end of its stream.

    closing: set when the cloud shuts down; every job then checkpoints with its next step.
    end_stream: ends the stream of a session with an error.
    """

    def __init__(self, host: Host, jobs: Jobs, artifacts: Artifacts, settings: Settings) -> None:
        self._host, self._jobs, self._artifacts, self._settings = host, jobs, artifacts, settings
        self.closing = False
        self._training: dict[str, JobSession] = {}
        self._inference: dict[tuple[str, int], JobSession] = {}
        self.end_stream: Callable[[object, PrivTuneError], None] = lambda stream, error: None
        self.budget = MemoryBudget(settings.max_memory_bytes)
        self.budget.gives_up = self._give_up
        self.texts = TextCache(
            max_bytes=settings.max_texts_bytes,
            max_texts=settings.max_texts,
            idle_s=settings.texts_idle_s,
            budget=self.budget.of(NOBODY),
        )
        self._maker = SessionMaker(
            host, jobs, artifacts, settings, budget=self.budget, texts=self.texts, closing=lambda: self.closing
        )

    def open(self, owner: str, request: pb.OpenRequest) -> JobSession:
        """Check that the device fits the job, then rewind the job to the newest step that both sides hold.

        For training, an older session of the device is superseded, once everything has been checked. A device whose
        `commit` went unanswered may open a job that has succeeded at its last step, to commit it again.

        Raises `JobNotFound`, `JobConflict` for a job that has ended or that another device holds, `VersionMismatch` for
        another model or codec, `InvalidInput` for a device without a name.
        """
        if not _HOLDER.fullmatch(request.holder):
            raise InvalidInput("a device opens a job under a name of 32 hex digits")
        job = self._jobs.get(request.job_id, owner)
        if request.infer:
            return self._open_inference(job, request)
        if job.status != "succeeded":
            check_unfinished(job.id, job.status)
        self._maker.check(job, request)
        if job.status == "succeeded":
            return self._open_done(job, request)
        token = self._jobs.leases.claim(job.id, request.holder)
        before = self._training.pop(job.id, None)
        if before is not None and before.holder == request.holder and before.top.total_steps == request.total_steps:
            top, releases = before.top, before.releases
            if releases.table_sha256 != request.table_sha256:
                releases = self._maker.new_cache(job, request)
        else:
            top = self._new_top(job, request.total_steps, request.holder)
            releases = self._maker.new_cache(job, request)
        written = checkpoint_steps(self._artifacts.checkpoints(job.id, request.holder))
        common = set(request.checkpoint_steps) & set(written)
        top.rewind(max(common, default=0))
        session = self._training[job.id] = self._maker.new_session(
            job, top, releases, request.holder, token, shows=request.spot_checks
        )
        return session

    def current(self, job_id: str, epoch: int, *, infer: bool = False) -> JobSession:
        """The job's present session.

        Raises `CloudUnreachable` when there is none (its stream was lost, or the cloud restarted): a device that opens
        the job again learns why, or goes on. `SessionSuperseded` for another epoch.
        """
        session = self._inference.get((job_id, epoch)) if infer else self._training.get(job_id)
        if session is None:
            raise CloudUnreachable("the job's session ended with its connection or with the cloud; open the job again")
        if session.epoch != epoch:
            raise SessionSuperseded(SUPERSEDED)
        return session

    def start(self, session: JobSession, stream: object) -> None:
        """The session's stream begins. Raises as `advance`, and `JobConflict` for a job that is held."""
        if not session.infer:
            self.current(session.job_id, session.epoch)  # it may have given way meanwhile
        if session.stream is not None:
            raise JobConflict("this session has a stream already; open the job again for another")
        session.stream = stream
        if not session.infer:
            self._jobs.start(session.job_id, session.epoch)

    def answers(self, session: JobSession, message: Message) -> Iterator[Message | Work[Any]]:
        """What `advance` goes through for a message; passes are in it where those of several jobs become one."""
        return session.machine.steps(message) if self._settings.batch_jobs > 1 else session.machine.handle(message)

    def advance(self, session: JobSession, answers: Iterator[Message | Work[Any]]) -> Message | Work[Any] | None:
        """The next answer to a message of a session, or the pass that it needs computed; None when there is no more.

        Raises as `Leases.keep` says for a training session that no longer holds its job, and what the step machine
        raises.
        """
        if not session.infer:
            self._jobs.leases.check(session.job_id, session.epoch)
        with tracing.under(session.trace):
            answer = next(answers, None)
        if isinstance(answer, Work):
            answer.traced = partial(_spanned, session.trace, answer.traced)
        elif answer is not None and answer.report is not None:
            self._step_done(session, answer.report)
        return answer

    @property
    def sessions(self) -> int:
        """How many there are."""
        return len(self._training) + len(self._inference)

    def drop(self, job_id: str, epoch: int) -> None:
        """Free the training session, up to this epoch, of a job that has ended or was taken from its device."""
        session = self._training.get(job_id)
        if session is not None and session.epoch <= epoch:
            del self._training[job_id]

    def forget(self, job_id: str) -> None:
        """Free all sessions of a job that is deleted."""
        self._training.pop(job_id, None)
        for session in [one for one in self._inference.values() if one.job_id == job_id]:
            self.inference_ended(session)

    def drop_idle(self) -> None:
        """Free texts that are not continued, and sessions whose stream has not begun in time."""
        self.texts.drop_idle()
        for session in self._waiting():
            if time.monotonic() - session.opened > WAITING_S:
                self._drop_waiting(session)

    def _step_done(self, session: JobSession, report: pb.StepReport) -> None:
        """Report progress to the control plane; a step with a checkpoint is recorded durably."""
        meters.stepped(session.owner)
        progress = JobProgress(
            step=session.top.step,
            total_steps=session.top.total_steps,
            tokens=session.tokens,
            bytes_up=session.bytes_up,
            bytes_down=session.bytes_down,
            loss=report.shared_loss if session.spec.labels == "shared" else None,
            grad_norm=None if session.spec.tail else report.grad_norm,
        )
        self._jobs.progress(session.job_id, progress)
        if report.checkpointed:
            self._artifacts.keep_checkpoints(session.job_id, session.holder)
            self._jobs.record_checkpoint(session.job_id, session.epoch, session.top.step)

    def stream_ended(self, session: JobSession, stream: object, why: str) -> None:
        """Free the session of a stream, and set its job's state: as its owner asked, or waiting for its device."""
        if self._training.get(session.job_id) is not session or session.stream not in (None, stream):
            return
        del self._training[session.job_id]
        mine = session.job_id, session.epoch
        with suppress(SessionSuperseded):  # ended, or in the hands of another process
            if session.machine.outcome == pb.STEP_OUTCOME_CANCEL:
                self._jobs.cancelled(*mine, "cancelled on request; the last checkpoint is kept")
            elif session.machine.outcome == pb.STEP_OUTCOME_PAUSE:
                self._jobs.paused(*mine, f"paused on request after step {session.top.step}")
            else:
                self._jobs.disconnected(*mine, why)

    def inference_ended(self, session: JobSession) -> None:
        """Free an inference session whose stream has ended, and its texts."""
        self._inference.pop((session.job_id, session.epoch), None)
        self.texts.drop_session(session.machine)

    def commit(self, request: pb.CommitRequest) -> str:
        """Write the adapter of a job that has done all its steps, and mark the job as succeeded.

        A job with early stopping may end at any step, with the state of any checkpoint, which its device chooses.

        Repeatable: a job that has succeeded answers the session that committed it, and newer ones, as before.
        Returns the SHA-256 of the adapter's weights; "" for a job with a tail, whose weights are on the device.
        Raises `InvalidInput` for an impossible number of tokens, `JobConflict` where steps are missing or the owner
        holds the job, `CloudUnreachable` and `SessionSuperseded` as `current`.
        """
        final_step = request.final_step
        if request.tokens > MOST_TOKENS:
            raise InvalidInput(f"a job of {counted(request.tokens, 'token')} is none that a device trained")
        job = self._jobs.get(request.job_id)
        if job.status == "succeeded":
            done = self._artifacts.facts(job.id)
            if request.session_epoch < done["session_epoch"]:
                raise SessionSuperseded(SUPERSEDED)
            if final_step != done["steps"]:
                raise JobConflict(f"job {job.id} has succeeded after {done['steps']} steps, not {final_step}")
            return job.adapter_sha256 or ""
        session = self.current(job.id, request.session_epoch)
        top, early = session.top, session.spec.train.early_stopping is not None
        if early and final_step in checkpoint_steps(top.folder):
            top.rewind(final_step)
        elif final_step != top.step or final_step != top.total_steps:
            raise JobConflict(
                f"the device ends the job at step {final_step}, but the cloud is at "
                f"{top.step} of {top.total_steps}; open the job again to continue"
            )
        if job.status != "running":  # all steps were done, then the connection was lost
            self._jobs.start(job.id, session.epoch)
        self._jobs.leases.check(job.id, session.epoch)
        top.save()
        if early:
            keep_only(top.folder, final_step)
        self._artifacts.keep_checkpoints(session.job_id, session.holder)
        spec, base_sha256 = session.spec, self._host.base_sha256(session.spec)
        with self._artifacts.writing_adapter(
            session.job_id,
            base_model=spec.model,
            base_hub_id=self._host.hub_id(spec.model),
            base_sha256=base_sha256,
            cut=spec.cut,
            steps=final_step,
            session_epoch=session.epoch,
        ) as folder:
            top.export(folder)
        trained = None if spec.tail else self._artifacts.adapter_sha256(session.job_id)
        self._jobs.succeed(
            session.job_id, session.epoch, adapter_sha256=trained, tokens=request.tokens, steps=final_step
        )
        self._training.pop(session.job_id, None)
        self._artifacts.drop_shown(session.job_id)
        return trained or ""

    def _open_done(self, job: Job, request: pb.OpenRequest) -> JobSession:
        """A session at the last step of a job that has succeeded; nothing but `commit` takes it."""
        done = self._artifacts.facts(job.id)["steps"]
        early = job.spec.train.early_stopping is not None
        if done not in request.checkpoint_steps or (request.total_steps != done and not early):
            check_unfinished(job.id, job.status)
        top = self._new_top(job, done, request.holder)
        top.step = done
        return self._maker.new_session(
            job, top, self._maker.new_cache(job, request), request.holder, self._jobs.next_epoch(job.id)
        )

    def _open_inference(self, job: Job, request: pb.OpenRequest) -> JobSession:
        self._maker.check(job, request)
        top = self._new_top(job, 1, request.holder)
        top.load_newest(request.checkpoint_steps)
        epoch = self._jobs.next_epoch(job.id)
        session = self._maker.new_session(
            job, top, self._maker.new_cache(job, request), request.holder, epoch, infer=True
        )
        self._inference[job.id, session.epoch] = session
        return session

    def _new_top(self, job: Job, total_steps: int, holder: str) -> TopSession:
        self._make_room(job.owner)
        return self._maker.new_top(job, total_steps, holder)

    def _make_room(self, owner: str) -> None:
        """Free the owner's oldest sessions that wait for their stream, to leave room for another."""
        waiting = sorted((one for one in self._waiting() if one.owner == owner), key=lambda one: one.opened)
        for session in waiting[: max(0, len(waiting) + 1 - MAX_WAITING_SESSIONS)]:
            self._drop_waiting(session)

    def _give_up(self, owner: str, size: int) -> None:
        """End the newest sessions, which hold so many bytes, of an owner beyond its share: another one needs them."""
        mine = [one for one in self._sessions() if one.owner == owner]
        for session in sorted(mine, key=lambda one: one.opened, reverse=True):
            if size <= 0:
                return
            holders = session.top, session.releases, session.machine, session.stream
            size -= sum(self.budget.held_by(one) for one in holders if one is not None)
            if session.stream is None:
                self._drop_waiting(session)
            else:
                self.end_stream(session.stream, CloudUnreachable(GAVE_UP))

    def _sessions(self) -> list[JobSession]:
        return [*self._training.values(), *self._inference.values()]

    def _waiting(self) -> list[JobSession]:
        return [one for one in self._sessions() if one.stream is None]

    def _drop_waiting(self, session: JobSession) -> None:
        if session.infer:
            del self._inference[session.job_id, session.epoch]
        else:
            self.drop(session.job_id, session.epoch)


@contextmanager
def _spanned(trace: str, span: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """A span under another side's, wherever its pass is computed."""
    with tracing.under(trace), span():
        yield
