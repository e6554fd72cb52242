"""Runs one job on this device from its data to the finished adapter, through lost connections and restarts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tenacity import stop_after_delay

from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.paths import holds_job
from privtune.device.link.rpc import Link
from privtune.device.model.final_states import FinalStates, StateStore
from privtune.device.model.head import HeadTrainer
from privtune.device.privacy.statements import LabelStatement, SlopeStatement, Statement
from privtune.device.release.perturber import Uploader
from privtune.device.runtime.memory import trim
from privtune.device.session.handshake import hand_over, open_request
from privtune.device.session.run_settings import RunSettings
from privtune.device.surrogates.replacement import Replacement
from privtune.device.training.loop import Totals, TrainingSession, evaluate_session, train_steps
from privtune.device.training.prepare import Prepared, RunContext, prepared
from privtune.device.training.progress import StartInfo, TrainingProgress
from privtune.device.training.sharing import Sharing, check_sharing
from privtune.device.training.slope_loop import train_by_slopes
from privtune.device.training.spot_checks import SpotChecks
from privtune.device.training.spot_report import SpotReport
from privtune.device.training.stopping import best_step, has_ended, kept_line
from privtune.shared.errors import (
    AuditRefused,
    CloudCheated,
    CloudUnreachable,
    CutOutOfRange,
    DataInvalid,
    FrameCorrupt,
    InvalidInput,
    JobCancelled,
    JobPaused,
    MessageTooLarge,
    ModelUnsupported,
    NonFinite,
    PackageMissing,
    PolicyRefused,
    PrivTuneError,
    RateLimited,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import TaughtBlocks
from privtune.shared.modeling.checkpoint import checkpoint_steps, keep_only
from privtune.shared.retry import retrying
from privtune.shared.tracing import span
from privtune.split.v1 import split_pb2 as pb

STATES_BYTES = 256 << 30  # of what the cloud computes for a job with a tail: a bound against nonsense, not a quota
# Trying again would end the same way.
_HOPELESS = (InvalidInput, DataInvalid, NonFinite, ModelUnsupported, CutOutOfRange, MessageTooLarge, CloudCheated)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished job, as seen from the device. Tokens, seconds and bytes are this process's.

    job_id: the job.
    folder: what the device keeps of it.
    steps: optimiser steps after which the model was trained.
    tokens: rows that trained.
    seconds: spent on steps.
    bytes_up, bytes_down: on the stream.
    metrics: of the last evaluation, empty without held-out records.
    statement: what may be claimed for the releases.
    label_names: in the order of the class numbers, empty for a language model.
    adapter_sha256: of what was trained, adapter or tail.
    label_statement: what may be claimed for randomised labels.
    slopes: what may be claimed for the slopes of a zeroth-order job.
    exportable: a plain model has a place for all that was trained (none for a skip).
    replacement: what surrogates did in the records; None without surrogates.
    taught: hash and card of the taught blocks that it began with; None without.
    spot_checks: what was checked of the cloud's work; None where nothing was.
    """

    job_id: str
    folder: Path
    steps: int
    tokens: int
    seconds: float
    bytes_up: int
    bytes_down: int
    metrics: dict[str, float]
    statement: Statement
    label_names: tuple[str, ...]
    adapter_sha256: str
    label_statement: LabelStatement | None = None
    slopes: SlopeStatement | None = None
    exportable: bool = True
    replacement: Replacement | None = None
    taught: TaughtBlocks | None = None
    spot_checks: SpotReport | None = None


def run_job(
    job_id: str,
    spec: JobSpec,
    train: DataSource,
    validation: DataSource | None,
    settings: RunSettings,
    progress: TrainingProgress,
    stop: threading.Event,
) -> RunResult:
    """Train the job to its end, resuming where both sides left off.

    An error that another try does not mend also fails the job in the cloud, with the reason. The policy's refusal does
    not: that is for the caller (`refuse_job`).

    Raises:
        JobPaused: `stop` was set; both sides have a checkpoint.
        CloudUnreachable: the cloud stayed away for longer than the patience.
        PrivTuneError: any other of the table.
    """
    with settings.account(job_id) as account, Link(settings.endpoint, account.transcript) as link:
        run = RunContext(
            job_id=job_id,
            spec=spec,
            settings=settings,
            link=link,
            account=account,
            progress=progress,
            stop=stop,
        )
        with failing(run):
            if settings.policy is not None:
                settings.policy.check(spec)
            return _run(run, train, validation)


@contextlib.contextmanager
def failing(run: RunContext) -> Iterator[None]:
    """An error in here that another try does not mend fails the job in the cloud, too."""
    try:
        yield
    except _HOPELESS as error:
        if ends_job(error, run.job_id, run.settings.home):
            # The owner sees `error` in any case; the job may have failed in the cloud for the same reason already.
            with contextlib.suppress(PrivTuneError):
                run.link.refuse(run.job_id, _public(error), run.folder.holder())
        raise


def ends_job(error: PrivTuneError, job_id: str, home: Path) -> bool:
    """Whether `run_job` has failed the job because of this error; if not, the job waits and can be tried again."""
    # A file that changed under a job that had begun can be put back.
    mendable = isinstance(error, DataInvalid) and holds_job(home, job_id)
    return isinstance(error, _HOPELESS) and not mendable and not isinstance(error, PackageMissing)


def refuse_job(job_id: str, error: PrivTuneError, settings: RunSettings) -> None:
    """Report to the cloud that this device will not run the job, and why."""
    with settings.account(job_id) as account, Link(settings.endpoint, account.transcript) as link:
        link.refuse(job_id, _public(error), JobFolder(settings.home, job_id).holder())


def _public(error: PrivTuneError) -> PrivTuneError:
    """What the cloud may know of an error: files, lines, columns, counts and an audit's figures stay at home."""
    if isinstance(error, AuditRefused):
        return PolicyRefused("the device's audit of its own data refuses the job; the owner's terminal or log says why")
    if isinstance(error, DataInvalid):
        return DataInvalid("the device can't use its data set; the owner's terminal or agent log says why")
    if error.private:
        return type(error)("the job does not fit the device's data or budget; the owner's terminal or log says why")
    return error


def _run(run: RunContext, train: DataSource, validation: DataSource | None) -> RunResult:
    """Prepare, train, and keep the result."""
    if run.settings.shares:
        check_sharing(run.spec, run.settings.policy)
        run = replace(run, progress=Sharing(run.progress, run.link))
    totals = Totals()
    with prepared(run, train, validation) as job:
        table = job.releasing.noise.mechanism.table
        checks = SpotChecks(run.settings, run.spec, run.folder, run.link, job.plan.total_steps, table)
        run.progress.message(checks.announcement())
        trained = _train_to_the_end(run, job, totals, checks)
    state = run.folder.load()
    final = state.kept_step or job.plan.total_steps
    result = ended(run, job, totals, trained, final, checks.report)
    if state.kept_step is not None:
        keep_only(run.folder.checkpoints, final)
    return result


def ended(
    run: RunContext, job: Prepared, totals: Totals, trained: str, steps: int, checked: SpotReport | None = None
) -> RunResult:
    """Keep what came of a job that is done after `steps` steps. trained: SHA-256 of what was trained."""
    run.folder.save(replace(run.folder.load(), final_step=steps))
    result = RunResult(
        job_id=run.job_id,
        folder=run.folder.path,
        steps=steps,
        tokens=totals.tokens,
        seconds=totals.seconds,
        bytes_up=totals.bytes_up,
        bytes_down=totals.bytes_down,
        metrics=totals.metrics,
        statement=job.releasing.statement,
        label_names=job.state.label_names,
        adapter_sha256=trained,
        label_statement=job.label_statement,
        slopes=None if job.slopes is None else job.slopes.statement,
        exportable=not run.spec.tail or run.spec.skip == "none",
        replacement=job.releasing.replacement,
        taught=job.package.taught,
        spot_checks=checked,
    )
    run.folder.write_json("report.json", asdict(result) | {"folder": str(result.folder)})
    return result


def _train_to_the_end(run: RunContext, job: Prepared, totals: Totals, checks: SpotChecks) -> str:
    """Sessions until the last step is done; the SHA-256 of what was trained."""
    head = HeadTrainer(
        job.package.head,
        run.spec.optim,
        tail=job.tail,
        seed=run.spec.train.seed,
        total_steps=job.plan.total_steps,
        label_epsilon=run.spec.label_epsilon,
    )
    trim()  # after reading, checking and encoding the data
    if job.tail is None:
        trained = _patiently(lambda: _traced(run, job, head, totals, checks, None), run, totals)
        checks.ended()
        return trained
    with _states(run, job.releasing.store.fingerprint) as kept:
        _patiently(lambda: _traced(run, job, head, totals, checks, kept), run, totals)
    return job.tail.sha256()


def _traced(run: RunContext, *parts: Any) -> str:
    with span("session", job=run.job_id):
        return _session(run, *parts)


def _session(
    run: RunContext, job: Prepared, head: HeadTrainer, totals: Totals, checks: SpotChecks, kept: StateStore | None
) -> str:
    """One session, from the newest checkpoint that both sides hold to the commit; the adapter's SHA-256."""
    kept_step, steps = run.folder.load().kept_step, checkpoint_steps(run.folder.checkpoints)
    request = open_request(
        job.package,
        run.job_id,
        run.spec,
        job.state.holder,
        total_steps=job.plan.total_steps,
        checkpoint_steps=[kept_step] if kept_step in steps else steps,
        table=job.releasing.noise.mechanism.table,
        spot_checks=checks.of_steps,
    )
    opened = run.link.open(request)
    checks.opened(opened)
    head.rewind(run.folder.checkpoints, opened.resume_step)
    run.progress.started(start_info(run, job, head, opened))
    commit = pb.CommitRequest(
        job_id=run.job_id,
        session_epoch=opened.session_epoch,
        final_step=job.plan.total_steps,
        tokens=totals.tokens,
    )
    done = opened.resume_step
    if kept_step == done:  # chosen in a run before; the answer to its commit is missing
        return _commit_best(run, job, head, commit, totals)
    if kept_step is not None:  # the cloud has lost that state
        run.folder.save(replace(run.folder.load(), kept_step=None))
    # The answer to the last commit is missing, or less.
    only_to_end = done == job.plan.total_steps and run.spec.train.early_stopping is None
    if only_to_end:
        totals.metrics = run.folder.evaluation(done)
        if totals.metrics or job.validation is None or job.state.final_step is not None:
            return run.link.commit(commit).adapter_sha256
    stream = run.link.stream(opened, run.job_id, infer=False, patience=run.settings.no_progress_timeout)
    try:
        hand_over(job.releasing.noise.mechanism.table, stream, opened)
        session = TrainingSession(
            run=run,
            job=job,
            stream=stream,
            states=FinalStates(head, job.releasing.perturber, job.package, run.spec, kept),
            uploader=Uploader(*job.releasing.noise.mechanism.sent_as(run.spec.codec)),
            totals=totals,
            checks=checks,
        )
        evaluated = job.validation is None or not job.plan.evaluates_after(done) or run.folder.evaluation(done)
        if not evaluated and job.validation is not None:  # the run before ended before this evaluation
            totals.metrics = evaluate_session(session, job.validation, done)
        if not has_ended(run.folder.evaluations(done), run.spec.train):
            trained = train_by_slopes if run.spec.zeroth_order.on else train_steps
            totals.metrics = trained(session, done) or totals.metrics
        commit.tokens = totals.tokens
        if run.spec.train.early_stopping is not None:
            return _commit_best(run, job, head, commit, totals)
        return run.link.commit(commit).adapter_sha256
    finally:
        stream.close()
        totals.bytes_up += stream.bytes_up
        totals.bytes_down += stream.bytes_down


def _commit_best(run: RunContext, job: Prepared, head: HeadTrainer, commit: pb.CommitRequest, totals: Totals) -> str:
    """End a job with early stopping in its best state, which is on disk before the cloud hears of it."""
    evaluations, train = run.folder.evaluations(job.plan.total_steps), run.spec.train
    best = best_step(evaluations, train)
    state = run.folder.load()
    if state.kept_step is None:
        run.folder.save(replace(state, kept_step=best))
        run.progress.message(kept_line(evaluations, train, job.plan.total_steps))
    head.rewind(run.folder.checkpoints, best)
    totals.metrics = dict(evaluations[best])
    commit.final_step = best
    return run.link.commit(commit).adapter_sha256


def start_info(run: RunContext, job: Prepared, head: HeadTrainer, opened: pb.OpenResponse) -> StartInfo:
    """What is known before the first step of a session."""
    return StartInfo(
        job_id=run.job_id,
        statement=job.releasing.statement,
        total_steps=job.plan.total_steps,
        start_step=opened.resume_step,
        records=len(job.train),
        validation_records=len(job.validation) if job.validation is not None else 0,
        truncated=job.train.truncated,
        dropped=job.train.dropped,
        device_parameters=head.trainable_parameters if run.spec.labels == "private" else 0,
        cloud_parameters=opened.top_parameters * 1000,
        label_statement=job.label_statement,
        slopes=None if job.slopes is None else job.slopes.statement,
        tail=run.spec.tail,
        replacement=job.releasing.replacement,
        session_epoch=opened.session_epoch,
        verdict=job.verdict,
    )


def _patiently(session: Callable[[], str], run: RunContext, totals: Totals) -> str:
    """Sessions until one ends well, as long as each makes progress within the patience.

    A job that has not made a step yet is not waited for: its owner sees at once that the cloud is away.
    """
    waited = False

    def attempt() -> str:
        if waited and run.stop.is_set():
            raise JobPaused("stopped while the cloud was away; the job resumes from its last checkpoint")
        return session()

    def before_wait(error: BaseException, wait_s: float) -> None:
        nonlocal waited
        waited = True
        run.progress.message(f"{error}; trying again in {wait_s:.0f} s")

    return retrying(
        attempt,
        again=lambda error: isinstance(error, CloudUnreachable | FrameCorrupt | RateLimited) and totals.steps > 0,
        stop=stop_after_delay(run.settings.no_progress_timeout),
        progress=lambda: totals.steps,
        before_wait=before_wait,
        interrupt=run.stop,
    )


@contextlib.contextmanager
def _states(run: RunContext, scope: str) -> Iterator[StateStore]:
    """What the cloud computes for a tail; kept while the job can be resumed, gone when it is done or cancelled."""
    resumable = False
    states = StateStore(run.folder.states, scope, STATES_BYTES)
    try:
        yield states
    except BaseException as error:
        resumable = not isinstance(error, JobCancelled)
        raise
    finally:
        states.close()
        if not resumable:
            run.folder.states.unlink(missing_ok=True)
