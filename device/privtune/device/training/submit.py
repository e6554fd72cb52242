"""From an owner's request to a job in the cloud: checked here first, submitted once, resumed by the same request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from privtune.device.account.early_refusal import refuse_early, refuse_slopes_early
from privtune.device.account.run_account import source_of
from privtune.device.data.source import NOT_IN_MEMORY, DataSource, own_terms, read_for_training
from privtune.device.home.job_lock import job_lock
from privtune.device.home.policy import AuditRule, Policy, budget_of
from privtune.device.home.policy_file import home_policy
from privtune.device.home.run_request import RunRequest, unfinished
from privtune.device.link.rest import HELD, ControlPlane, job_spec, phase_of
from privtune.device.link.rest_client import Json
from privtune.device.model.tail import check_tail
from privtune.device.protections.protection import DEFAULT
from privtune.device.session.run_settings import RunSettings
from privtune.device.surrogates.surrogates import SECRET_BYTES, Surrogates, check_recognisers
from privtune.device.training.job import RunResult, refuse_job, run_job
from privtune.device.training.progress import TrainingProgress
from privtune.device.training.sharing import check_sharing
from privtune.device.training.spot_checks import check_spot_checks
from privtune.shared.errors import (
    CloudUnreachable,
    DataInvalid,
    InternalError,
    InvalidInput,
    JobConflict,
    JobNotFound,
    JobPaused,
    PolicyRefused,
    PrivTuneError,
    VersionMismatch,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.gguf_source import check_gguf_reader, is_gguf
from privtune.shared.validation import first_problem

Say = Callable[[str], None]
UNFINISHED = ("queued", "running", "paused")


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What the owner allows explicitly; without it such a job is refused.

    protection: the least protection by name; with `none`, a text in which nothing is replaced may be read by the cloud,
        from clean vectors or from a language model's gradients.
    shared_labels: labels go to the cloud.
    another_noise: the data are released under another noise distribution than before.
    """

    protection: str = DEFAULT
    shared_labels: bool = False
    another_noise: bool = False


def check_request(
    request: RunRequest, home: Path, consent: Consent, say: Say, audit: AuditRule | None = None
) -> RunRequest:
    """The request with its labels counted. Nothing is sent: the policy and all of the data are checked here.

    audit: what the owner asks for; the policy's rule, where it has one, takes precedence.

    Raises InvalidInput, DataInvalid or PolicyRefused.
    """
    spec = request.spec
    if not spec.surrogates.on and consent.protection != "none":
        _refuse_readable(spec)
    policy = home_policy(home)
    if policy is not None:
        policy.check(spec)
    rule = (policy.audit if policy is not None else None) or audit
    if rule is not None:
        rule.check(spec, request.local_model)
    check_packages(spec, request.local_model)
    if request.share_figures:
        check_sharing(spec, policy)
    if request.spot_checks:
        check_spot_checks(spec, request.local_model)
    classes = check_data(request.train, request.validation, spec, say)
    if spec.labels == "shared":
        spec = _with_classes(spec, classes)
    return replace(request, spec=spec, another_noise=consent.another_noise)


def _refuse_readable(spec: JobSpec) -> None:
    """Refuse a job without surrogates whose text the cloud can read."""
    mean_it = "Say --protect none if you mean it."
    if spec.mechanism.name == "none":
        raise InvalidInput(
            f"Nothing is replaced and no noise is added, so the cloud could read nearly every word. {mean_it}",
            param="protect",
        )
    if spec.task == "causal-lm" and not spec.tail:
        raise InvalidInput(
            "A language model that trains in the cloud needs gradients from this device that name its text, whatever "
            "the noise. Let names be replaced (--protect names), or use --tail 4 to train the last four blocks here. "
            f"{mean_it}",
            param="protect",
        )


def _with_classes(spec: JobSpec, classes: int) -> JobSpec:
    try:
        return JobSpec.model_validate(spec.model_dump() | {"num_labels": classes})
    except ValidationError as error:
        raise InvalidInput(f"{first_problem(error.errors()).sentence}.") from None


def check_packages(spec: JobSpec, local_model: str | None) -> None:
    """Raises PackageMissing where the job needs an optional package that this machine lacks."""
    if spec.surrogates.on:
        check_recognisers()
    check_tail(spec)
    if local_model is not None and is_gguf(local_model):
        check_gguf_reader()


def check_data(train: DataSource, validation: DataSource | None, spec: JobSpec, say: Say) -> int:
    """Read all records once, so that mistakes show before a job exists. Returns the number of labels."""
    _check_surrogates(spec, train, validation)
    _, _, names = read_for_training(train, validation, spec.task, say)
    return len(names)


def _check_surrogates(spec: JobSpec, train: DataSource, validation: DataSource | None) -> None:
    """Whether all that surrogates need is here: missing in a run, it would end the job."""
    terms = own_terms(spec.surrogates, train, validation)
    if spec.surrogates.on:
        Surrogates(spec.surrogates, bytes(SECRET_BYTES), terms)


def submit(request: RunRequest, home: Path, control: ControlPlane, say: Say, *, new: bool) -> tuple[str, RunRequest]:
    """The id of the job to work on, and its request: an unfinished job that asks for the same, or a new one.

    new: start a new job even if there is an unfinished one.

    Raises PolicyRefused where the budget can't allow the job, before the cloud is asked for anything.
    """
    request = replace(request, cloud=control.url)
    known = [] if new else unfinished(home, request)
    budget = budget_of(home_policy(home), another_noise=request.another_noise)
    for data in (request.train, request.validation):
        if data is not None:
            refuse_early(home, request.spec, source_of(data.path), budget, resumed=known)
    if not known:
        refuse_slopes_early(home, request.spec, source_of(request.train.path), budget)
    for job_id in known:
        try:
            job = control.get_job(job_id)
        except JobNotFound:
            continue
        before = RunRequest.load(home, job_id)
        if before is not None and job["status"] in UNFINISHED:
            say(f"resuming the unfinished job {job_id} of the same data and settings (--new starts a new one)")
            _release_hold(job, control)
            return job_id, replace(before, train=request.train, validation=request.validation)  # with what is in memory
    job = control.create_job(request.spec)
    if job_spec(job) != request.spec:
        raise VersionMismatch(f"The cloud changed the description of job {job['id']}; nothing was sent. Upgrade it.")
    request.save(home, job["id"])
    say(f"submitted job {job['id']}")
    return job["id"], request


def resume(
    job_id: str,
    home: Path,
    control: ControlPlane,
    data: Callable[[], tuple[DataSource, DataSource | None]] | None,
    local_model: str | None,
    consent: Consent,
    say: Say,
) -> RunRequest:
    """What to run for a job that exists: as it was asked for on this device, else the cloud's description with `data`.

    data: gives training and held-out records; None when the owner named none.

    Raises InvalidInput when the job was not started here and there is no data, PolicyRefused, DataInvalid.
    """
    job = control.get_job(job_id)
    request = RunRequest.load(home, job_id)
    if request is None:
        if data is None:
            raise InvalidInput(f"Job {job_id} was not started by `finetune` here: give its data with --data.")
        train, validation = data()
        spec = _admitted(job, home, consent)
        check_packages(spec, local_model)
        check_data(train, validation, spec, say)
        request = RunRequest(
            cloud=control.url,
            spec=spec,
            train=train,
            validation=validation,
            local_model=local_model,
            another_noise=consent.another_noise,
        )
        request.save(home, job_id)
    else:
        if request.own_loop:
            raise JobConflict(f"Job {job_id} trains in a loop of your own: open it with `Client.remote_top` again.")
        request = _in_memory_again(request, data)
        check_packages(request.spec, request.local_model)
        _check_surrogates(request.spec, request.train, request.validation)
    _release_hold(job, control)
    return request


def _in_memory_again(
    request: RunRequest, data: Callable[[], tuple[DataSource, DataSource | None]] | None
) -> RunRequest:
    """The request with what was in memory. Raises DataInvalid where it is not given again."""
    if all(one is None or one.readable for one in (request.train, request.validation)):
        return request
    given = {one.sha256: one.table for one in (() if data is None else data()) if one is not None}
    train, validation = (
        one if one is None or one.readable else replace(one, table=given.get(one.sha256))
        for one in (request.train, request.validation)
    )
    if train is None or any(one is not None and not one.readable for one in (train, validation)):
        raise DataInvalid(NOT_IN_MEMORY)
    return replace(request, train=train, validation=validation)


def train(
    job_id: str, request: RunRequest, settings: RunSettings, progress: TrainingProgress, stop: threading.Event
) -> RunResult:
    """Run the job to its end on this device; see `run_job` for what it raises.

    A pause and a lost cloud say how to resume; a refusal by the device's policy is reported to the cloud.
    """
    allowed = settings.another_noise or request.another_noise
    settings = replace(
        settings,
        local_model=request.local_model,
        another_noise=allowed,
        spot_checks=request.spot_checks,
        share_figures=request.share_figures,
    )
    with job_lock(settings.home, job_id):
        try:
            return run_job(job_id, request.spec, request.train, request.validation, settings, progress, stop)
        except (JobPaused, CloudUnreachable) as error:
            hint = f"To resume: privtune finetune --job {job_id}"
            raise type(error)(f"{error.message.rstrip('.')}. {hint}", detail=error.detail) from None
        except PolicyRefused as error:
            report_refusal(job_id, error, settings, progress.message)
            raise


def report_refusal(job_id: str, error: PrivTuneError, settings: RunSettings, say: Say) -> None:
    """Report to the cloud that this device refuses the job.

    A cloud that is unreachable, or where the job has ended already, is worth a line only.

    Raises Unauthenticated, PermissionDenied.
    """
    try:
        refuse_job(job_id, error, settings)
    except (CloudUnreachable, JobConflict, VersionMismatch, InternalError) as failed:
        say(f"could not report this to the cloud: {failed.message}")


def _release_hold(job: Json, control: ControlPlane) -> None:
    """A job that was paused over REST resumes: its owner asked for it here."""
    if phase_of(job) == HELD:
        control.resume(job["id"])


def _admitted(job: Json, home: Path, consent: Consent) -> JobSpec:
    """A description that came from elsewhere passes the agent's default policy, but for what the owner allows here.

    Where the device has a policy of its own, `run_job` asks that one instead.
    """
    spec = job_spec(job)
    if home_policy(home) is None:
        Policy(
            protections=(consent.protection,),
            allow_shared_labels=consent.shared_labels,
            gradients="any" if consent.protection == "none" else "no-text",
        ).check(spec)
    return spec
