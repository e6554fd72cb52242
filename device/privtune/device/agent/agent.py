"""The agent: waits for jobs that name its data sets, checks each against the policy, and runs them one after another.

Whatever a job raises, the agent logs it privately, sets the job aside and waits for the next; a job that ends the
process itself is begun three times at most (`attempts`).
After an interruption (a restart, a closed lid) it resumes the jobs that it had begun, unless a person paused them.
While the cloud is unreachable it says so once and keeps trying. A job that another device holds is tried again, so that
it is taken up once that device's lease has run out.

The screen is for people. The log has the same events as ids and reasons, without messages, which may quote the data.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from privtune.device.agent.agent_config import AgentConfig
from privtune.device.agent.attempts import attempt
from privtune.device.data.source import DataSource
from privtune.device.home.failure_log import log_failure
from privtune.device.home.job_lock import job_lock
from privtune.device.home.paths import holds_job
from privtune.device.link.rest import HELD, ControlPlane, Json, job_spec, phase_of
from privtune.device.protections.readable import what_the_cloud_reads
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import RunResult, ends_job, run_job
from privtune.device.training.progress import TrainingProgress
from privtune.device.training.submit import check_packages, report_refusal
from privtune.shared.errors import (
    CloudUnreachable,
    InternalError,
    InvalidInput,
    JobCancelled,
    JobFailed,
    JobHeld,
    JobPaused,
    PackageMissing,
    PermissionDenied,
    PolicyRefused,
    PrivTuneError,
    RateLimited,
    Unauthenticated,
    is_failure,
)
from privtune.shared.job_spec import JobSpec
from privtune.shared.retry import retrying

log = logging.getLogger(__name__)

WAITING = ("queued", "paused")
LONGEST_WAIT_S = 60.0
HELD_WAIT_S = 15.0  # until a job that another device holds is tried again, if it then waits for one


class Watcher(TrainingProgress, Protocol):
    """Progress of runs, and their results."""

    def finished(self, result: RunResult) -> None:
        """A job succeeded."""


@dataclass(kw_only=True)
class Agent:
    """One agent process.

    control: the cloud's job API.
    config: data sets, policy and local models.
    settings: how to reach the gateway. With an empty `grpc_address`, the cloud is asked for the address.
    screen: shows progress and results.
    stop: set it to pause the running job and end.
    once: end after one job, with that job's error if it had one.
    poll_s: seconds between two requests for the list of jobs.
    held_wait_s: seconds until a job that another device holds is tried again.
    """

    control: ControlPlane
    config: AgentConfig
    settings: RunSettings
    screen: Watcher
    stop: threading.Event
    once: bool = False
    poll_s: float = 2.0
    held_wait_s: float = HELD_WAIT_S
    # Jobs that failed here without ending, or can't run here: reported, and not tried again by this process.
    _set_aside: set[str] = field(default_factory=set)
    _held_until: dict[str, float] = field(default_factory=dict)  # by job, on this process's clock
    _reached: bool = False  # the cloud has answered this process

    def run(self) -> None:
        """Work until `stop` is set; with `once`, until one job has ended.

        Raises:
            Unauthenticated, PermissionDenied: the cloud refuses this device's key.
            PrivTuneError: the first answer is not that of a PrivTune cloud.
            JobPaused: stopped while a job was running.
            PrivTuneError: with `once`, any error of that job.
        """
        names = ", ".join(f"device://{name}" for name in self.config.datasets)
        self.screen.message(f"waiting for jobs on {names} at {self.control.url}")
        log.info("waiting for jobs", extra={"cloud": self.control.url, "datasets": list(self.config.datasets)})
        while not self.stop.is_set():
            job = self._poll()
            if job is None:
                self.stop.wait(self.poll_s)
                continue
            finished = self._work_on(job)
            if finished and self.once:
                return

    def _poll(self) -> Json | None:
        """The next job, or None. While the cloud is away it keeps trying and says so once."""
        away = False

        def attempt() -> Json | None:
            return None if self.stop.is_set() else self._next_job()

        def again(error: BaseException) -> bool:
            if isinstance(error, (Unauthenticated, PermissionDenied)) or not isinstance(error, Exception):
                return False
            # Before the first answer, an error of the table is a wrong address, say.
            return self._reached or isinstance(error, CloudUnreachable) or not isinstance(error, PrivTuneError)

        def say(error: BaseException, wait_s: float) -> None:
            nonlocal away
            if not away and isinstance(error, Exception):
                log.warning("the cloud is away", extra={"reason": _reason(error)})
                self.screen.message(f"{self._known(error).message} Still trying.")
            away = True

        job = retrying(
            attempt,
            again=again,
            first_s=2 * self.poll_s,
            longest_s=LONGEST_WAIT_S,
            before_wait=say,
            interrupt=self.stop,
        )
        if away and not self.stop.is_set():
            log.info("the cloud is back")
            self.screen.message("the cloud is back")
        self._reached = True
        return job

    def _next_job(self) -> Json | None:
        """The oldest job that is for this device and can run."""
        mine = [job for job in self.control.list_jobs(status=WAITING) if self._takes(job)]
        if not mine:
            return None
        return min(mine, key=lambda job: (_created(job), job["id"]))

    def _takes(self, job: Json) -> bool:
        if not isinstance(job.get("training_file"), str) or not isinstance(job.get("privtune"), dict):
            return False
        if self._held_until.get(job["id"], 0.0) > time.monotonic():
            return False
        if job["id"] in self._set_aside or phase_of(job) == HELD or not self.config.knows(job.get("training_file")):
            return False
        # A paused job belongs to the device that began it: its head is there.
        return job["status"] == "queued" or holds_job(self.settings.home, job["id"])

    def _work_on(self, job: Json) -> bool:
        """Run one job. True when it has ended here. Errors are shown; with `once` they are raised as well."""
        try:
            with _logged(job["id"]):
                self._run(job)
        except (CloudUnreachable, RateLimited) as error:
            self.screen.message(f"job {job['id']}: {error.message}")
            return False  # it waits as paused, and the next look finds it
        except (JobPaused, JobCancelled, JobFailed) as error:
            self.screen.message(f"job {job['id']}: {error.message}")
            if self.stop.is_set() or self.once:
                raise
        except (Unauthenticated, PermissionDenied):
            raise
        except PackageMissing as error:
            self.screen.message(
                f"job {job['id']} is left to a device that can run it: {error.message}; then start the agent again"
            )
            self._set_aside.add(job["id"])
            return False
        except JobHeld as error:
            if job["id"] not in self._held_until:
                self.screen.message(f"job {job['id']}: {error.message}; it is tried again then")
            self._held_until[job["id"]] = time.monotonic() + self.held_wait_s
            if self.once:
                raise
            return False
        except PrivTuneError as error:
            self.screen.message(f"job {job['id']}: {error.message} [{error.reason}]")
            self._set_aside.add(job["id"])
            self._report(job["id"], error)
            if self.once:
                raise
        except BaseException as error:  # one bad job must not end the agent, nor be taken up again and again
            if not is_failure(error):
                raise
            known = self._known(error)
            self.screen.message(f"job {job['id']} is set aside: {known.message}")
            self._set_aside.add(job["id"])
            if self.once:
                raise known from error
        return True

    def _known(self, error: BaseException) -> PrivTuneError:
        """The error itself, or for any other an InternalError, its traceback in the private log."""
        if isinstance(error, PrivTuneError):
            return error
        file = log_failure(self.settings.home, "".join(traceback.format_exception(error)))
        where = f" The details are in {file} (private)." if file else ""
        return InternalError(f"Unexpected failure ({type(error).__name__}).{where}")

    def _run(self, job: Json) -> None:
        spec = job_spec(job)
        settings = self._reachable(spec)
        train, validation = self._admit(spec)
        check_packages(spec, settings.local_model)
        facts = {"job": job["id"], "task": spec.task, "dataset": spec.training_file, "model": spec.model}
        log.info("a job begins", extra=facts)
        self.screen.message(f"job {job['id']}: {spec.task} on {spec.training_file} with {spec.model}")
        for line in what_the_cloud_reads(spec):
            self.screen.message(line)
        with job_lock(settings.home, job["id"]), attempt(settings.home, job["id"]):
            result = run_job(job["id"], spec, train, validation, settings, self.screen, self.stop)
        self.screen.finished(result)

    def _admit(self, spec: JobSpec) -> tuple[DataSource, DataSource | None]:
        """The policy first, then the data; nothing has been sent yet."""
        try:
            self.config.policy.check(spec)
            return self.config.sources(spec)
        except InvalidInput as error:
            raise PolicyRefused(error.message, private=error.private) from None

    def _reachable(self, spec: JobSpec) -> RunSettings:
        address = self.settings.grpc_address or self.control.grpc_address()
        model, policy = self.config.local_models.get(spec.model), self.config.policy
        return replace(self.settings, grpc_address=address, local_model=model, policy=policy, tell_data=True)

    def _report(self, job_id: str, error: PrivTuneError) -> None:
        """A refusal by the policy fails the job in the cloud; `run_job` reports its own errors; other jobs wait."""
        if isinstance(error, PolicyRefused):
            try:
                address = self.settings.grpc_address or self.control.grpc_address()
                report_refusal(job_id, error, replace(self.settings, grpc_address=address), self.screen.message)
            except (Unauthenticated, PermissionDenied):
                raise
            except BaseException as failed:
                if not is_failure(failed):
                    raise
                self.screen.message(f"could not report this to the cloud: {self._known(failed).message}")
        elif not ends_job(error, job_id, self.settings.home):
            self.screen.message(f"job {job_id} is set aside; start the agent again to try it once more")


@contextmanager
def _logged(job_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        log.warning("a job stops", extra={"job": job_id, "reason": _reason(error)})
        raise
    log.info("a job has succeeded", extra={"job": job_id})


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, PrivTuneError) else type(error).__name__


def _created(job: Json) -> float:
    created = job.get("created_at")
    return created if isinstance(created, int | float) else 0
