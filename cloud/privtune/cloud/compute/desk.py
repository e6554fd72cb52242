"""The link between job records and the tops in memory: opens, resumes, commits and parks them.

Runs on the compute thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.memory_budget import MemoryBudget
from privtune.cloud.compute.release_cache import ReleaseCache
from privtune.cloud.compute.step_machine import StepMachine
from privtune.cloud.compute.text_cache import TextCache
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.states import Job
from privtune.cloud.settings import Settings
from privtune.shared.codec import check_probe
from privtune.shared.errors import JobConflict, SessionSuperseded, VersionMismatch
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.checkpoint import checkpoint_steps
from privtune.shared.wire import codec_name
from privtune.split.v1 import split_pb2 as pb

# Jobs whose tops stay in memory for inference; the least recently opened is evicted first.
MAX_INFERENCE_SESSIONS = 4


@dataclass(kw_only=True)
class JobSession:
    """One device's session on one job.

    epoch: grows with every session of the job; calls and frames of an older one are refused.
    bytes_up: bytes received on the session's stream.
    """

    job_id: str
    epoch: int
    spec: JobSpec
    top: TopSession
    releases: ReleaseCache
    machine: StepMachine
    bytes_up: int = 0


class Desk:
    """All sessions of this cloud, by job: at most one for training and one for inference each."""

    def __init__(self, host: Host, jobs: Jobs, artifacts: Artifacts, settings: Settings) -> None:
        self._host, self._jobs, self._artifacts, self._settings = host, jobs, artifacts, settings
        self._training: dict[str, JobSession] = {}
        self._inference: dict[str, JobSession] = {}
        self._budget = MemoryBudget(settings.max_memory_bytes)
        self.texts = TextCache(
            max_bytes=settings.max_texts_bytes,
            max_texts=settings.max_texts,
            idle_s=settings.texts_idle_s,
            budget=self._budget,
        )
        self._lock = threading.Lock()

    def open(self, owner: str, request: pb.OpenRequest) -> JobSession:
        """Check that the device fits the job, then rewind the job to the newest step that both sides hold.

        Raises `JobNotFound`, `JobConflict` for a job that has ended, `VersionMismatch` for another model or codec.
        """
        job = self._jobs.get(request.job_id, owner)
        if request.infer:
            return self._open_inference(job, request)
        if job.status in ("succeeded", "failed", "cancelled"):
            raise JobConflict(f"job {job.id} is {job.status} and can't be trained any more; submit a new one")
        self._check(job.spec, request)
        before = self._training.get(job.id)
        if before is not None and before.top.total_steps == request.total_steps:
            top, releases = before.top, before.releases
        else:
            top = TopSession(self._host, job.spec, request.total_steps, self._artifacts.checkpoints(job.id))
            releases = self._new_cache(job.spec, request)
        common = set(request.checkpoint_steps) & set(checkpoint_steps(top.folder))
        top.rewind(max(common, default=0))
        return self._enter(self._training, job, top, releases)

    def current(self, job_id: str, epoch: int, *, infer: bool = False) -> JobSession:
        """The job's present session. Raises `JobConflict` when there is none, `SessionSuperseded` for another epoch."""
        session = (self._inference if infer else self._training).get(job_id)
        if session is None:
            raise JobConflict("this job has no open session (the cloud may have restarted); open it again")
        if session.epoch != epoch:
            raise SessionSuperseded("a newer session holds this job; this one ends here")
        return session

    def step_done(self, session: JobSession, report: pb.StepReport) -> None:
        """Report progress to the control plane; a step with a checkpoint is recorded durably."""
        self._jobs.progress(
            session.job_id,
            step=session.top.step,
            total_steps=session.top.total_steps,
            bytes_up=session.bytes_up,
            grad_norm=report.grad_norm,
        )
        if report.checkpointed:
            self._jobs.record_checkpoint(session.job_id, session.top.step)

    def stream_ended(self, session: JobSession, why: str) -> None:
        """Set the state of a job whose stream has ended: as its owner asked, or waiting for its device."""
        if self._training.get(session.job_id) is not session:
            return
        if session.machine.outcome == pb.STEP_OUTCOME_CANCEL:
            self._jobs.cancelled(session.job_id, "cancelled on request; the last checkpoint is kept")
            self._training.pop(session.job_id, None)
        elif session.machine.outcome == pb.STEP_OUTCOME_PAUSE:
            self._jobs.paused(session.job_id, f"paused on request after step {session.top.step}")
        else:
            self._jobs.disconnected(session.job_id, why)

    def inference_ended(self, session: JobSession) -> None:
        """Free the texts of an inference stream that has ended."""
        self.texts.drop_session(session.machine)

    def commit(self, session: JobSession, final_step: int, tokens: int) -> str:
        """Write the adapter of a job that has done all its steps, and mark the job as succeeded.

        tokens: released rows over all epochs, as the device counted them.
        Returns the SHA-256 of the adapter's weights; "" for a job with a tail, whose weights are on the device.
        """
        if final_step != session.top.step or final_step != session.top.total_steps:
            raise JobConflict(
                f"the device ends the job at step {final_step}, but {session.top.step} of "
                f"{session.top.total_steps} steps are done; open the job again to continue"
            )
        session.top.save()
        spec, base_sha256 = session.spec, self._host.base_sha256(session.spec)
        with self._artifacts.writing_adapter(
            session.job_id, base_model=spec.model, base_sha256=base_sha256, cut=spec.cut, steps=final_step
        ) as folder:
            session.top.export(folder)
        trained = None if spec.tail else self._artifacts.adapter_sha256(session.job_id)
        self._jobs.succeed(session.job_id, adapter_sha256=trained, tokens=tokens, steps=final_step)
        self._training.pop(session.job_id, None)
        return trained or ""

    def _open_inference(self, job: Job, request: pb.OpenRequest) -> JobSession:
        self._check(job.spec, request)
        trained_on = self._artifacts.adapter_base(job.id)
        if trained_on is not None and trained_on != self._host.base_sha256(job.spec):
            raise VersionMismatch(
                f"job {job.id} was trained on other weights than this cloud now serves as "
                f"{job.spec.model!r}; ask the operator to restore the old ones"
            )
        top = TopSession(self._host, job.spec, 1, self._artifacts.checkpoints(job.id))
        top.load_newest()
        while len(self._inference) >= MAX_INFERENCE_SESSIONS:
            del self._inference[next(iter(self._inference))]
        return self._enter(self._inference, job, top, self._new_cache(job.spec, request))

    def _enter(self, sessions: dict[str, JobSession], job: Job, top: TopSession, releases: ReleaseCache) -> JobSession:
        infer = sessions is self._inference
        with self._lock:
            session = JobSession(
                job_id=job.id,
                epoch=self._jobs.next_epoch(job.id),
                spec=job.spec,
                top=top,
                releases=releases,
                machine=StepMachine(
                    top,
                    releases,
                    lambda: self._jobs.requested(job.id),
                    texts=self.texts if infer else None,
                    budget=self._budget,
                    max_padded_bytes=2 * self._settings.max_tensor_bytes,
                ),
            )
            sessions.pop(job.id, None)
            sessions[job.id] = session
        return session

    def _new_cache(self, spec: JobSpec, request: pb.OpenRequest) -> ReleaseCache:
        return ReleaseCache(request.hidden_size, spec.codec, self._settings.max_release_bytes, self._budget)

    def _check(self, spec: JobSpec, request: pb.OpenRequest) -> None:
        """Raise `VersionMismatch` for a device whose job spec, model or codec differs from ours."""
        partition = self._host.partition(spec.model, spec.task)
        if request.spec_fingerprint != spec.fingerprint():
            raise VersionMismatch("the device holds another description of this job; fetch the job again")
        if request.hidden_size != partition.hidden_size or request.model_fingerprint != partition.fingerprint():
            raise VersionMismatch(
                f"the device's copy of {spec.model!r} has another shape than the cloud's; "
                "use the same model on both sides or let the device fetch its part from the cloud"
            )
        if codec_name(request.codec) != spec.codec or not check_probe(request.codec_probe, spec.codec):
            raise VersionMismatch(f"the device encodes {spec.codec} differently; upgrade the older side")
