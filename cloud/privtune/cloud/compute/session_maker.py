"""Makes the sessions of jobs: checks that a device fits, and enters what a session holds in the memory budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.job_session import JobSession
from privtune.cloud.compute.memory_budget import MemoryBudget
from privtune.cloud.compute.release_cache import ReleaseCache
from privtune.cloud.compute.step_machine import StepMachine
from privtune.cloud.compute.text_cache import TextCache
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.compute.zeroth_order import ZerothOrderMachine, ZerothOrderTop
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.states import Job
from privtune.cloud.settings import Settings
from privtune.shared.codec import check_probe
from privtune.shared.errors import VersionMismatch
from privtune.shared.wire import codec_name
from privtune.split.v1 import split_pb2 as pb


class SessionMaker:
    """Builds what one session needs. Runs on the compute thread.

    closing: whether the cloud shuts down.
    """

    def __init__(
        self,
        host: Host,
        jobs: Jobs,
        artifacts: Artifacts,
        settings: Settings,
        *,
        budget: MemoryBudget,
        texts: TextCache,
        closing: Callable[[], bool],
    ) -> None:
        self._host, self._jobs, self._artifacts, self._settings = host, jobs, artifacts, settings
        self._budget, self._texts, self._closing = budget, texts, closing

    def new_top(self, job: Job, total_steps: int, holder: str) -> TopSession:
        """A job's top, entered in the budget. Raises as `MemoryBudget.hold`."""
        kind = ZerothOrderTop if job.spec.zeroth_order.on else TopSession
        top = kind(self._host, job.spec, total_steps, self._artifacts.checkpoints(job.id, holder))
        self._budget.of(job.owner).hold(top, top.weight_bytes)
        return top

    def new_session(
        self,
        job: Job,
        top: TopSession,
        releases: ReleaseCache,
        holder: str,
        epoch: int,
        *,
        infer: bool = False,
        shows: bool = False,
    ) -> JobSession:
        """A session of these parts. shows: the state before and after a step is kept for the device to ask for."""
        if shows:  # the device repeats steps and compares hashes
            top.compute_alone()
        trains_by_slopes = isinstance(top, ZerothOrderTop) and not infer
        machine: type[StepMachine] = ZerothOrderMachine if trains_by_slopes else StepMachine
        return JobSession(
            job_id=job.id,
            owner=job.owner,
            holder=holder,
            epoch=epoch,
            spec=job.spec,
            top=top,
            releases=releases,
            machine=machine(
                top,
                releases,
                lambda: self._jobs.requested(job.id),
                texts=self._texts if infer else None,
                closing=self._closing,
                budget=self._budget.of(job.owner),
                max_padded_bytes=2 * self._settings.max_tensor_bytes,
                keep_table=partial(self._artifacts.keep_table, job.id),
                show=partial(self._artifacts.keep_shown, job.id) if shows else None,
            ),
            infer=infer,
        )

    def new_cache(self, job: Job, request: pb.OpenRequest) -> ReleaseCache:
        """An empty cache of a job's releases, with the table that the job's ids stand for if it is stored."""
        announced, most = request.table_sha256, self._settings.max_release_bytes
        releases = ReleaseCache(request.hidden_size, job.spec.codec, most, self._budget.of(job.owner), announced)
        table = self._artifacts.table(job.id) if announced else None
        if table is not None and table.sha256 == announced:
            releases.take_table(table)
        return releases

    def check(self, job: Job, request: pb.OpenRequest) -> None:
        """Raise `VersionMismatch` for a device whose job spec, model or codec differs from ours, or for a new base."""
        spec = job.spec
        partition = self._host.partition(spec.model, spec.task)
        if request.spec_fingerprint != spec.fingerprint():
            raise VersionMismatch("the device holds another description of this job; fetch the job again")
        if request.hidden_size != partition.hidden_size or request.model_fingerprint != partition.fingerprint():
            raise VersionMismatch(
                f"the device's copy of {spec.model!r} has another shape than the cloud's; "
                "use the same model on both sides or let the device fetch its part from the cloud"
            )
        base = self._host.base_sha256(spec)
        if self._artifacts.pinned_base(job.id) not in (None, base):
            raise VersionMismatch(
                f"job {job.id} was trained on other weights than this cloud now serves as {spec.model!r}; "
                "ask the operator to restore the old ones, or submit a new job"
            )
        if request.bottom_sha256 != self._host.bottom_sha256(spec):
            raise VersionMismatch(
                f"the device runs other weights than this cloud serves as {spec.model!r}; "
                "use the same model on both sides or let the device fetch its part from the cloud"
            )
        if codec_name(request.codec) != spec.codec or not check_probe(request.codec_probe, spec.codec):
            raise VersionMismatch(f"the device encodes {spec.codec} differently; upgrade the older side")
        self._artifacts.pin_base(job.id, base)
