"""Works through the queue of teachings, one at a time, on a thread of its own beside the jobs."""

from __future__ import annotations

import contextlib
import logging
import os
import threading

from privtune.cloud.compute.teaching.classroom import Classroom
from privtune.cloud.jobs.teaching_rows import Teaching
from privtune.cloud.jobs.teachings import Teachings
from privtune.shared.errors import InternalError, JobConflict, JobNotFound, JobPaused, PrivTuneError

log = logging.getLogger(__name__)

_NICE = 10  # jobs come first: their devices wait
_LOOK_S = 5.0  # for teachings that another process has put into the queue
_RENEW_S = 20.0


class School:
    """Begins with `start`; `stop` ends it after the present step, from which the next start continues."""

    def __init__(self, teachings: Teachings, classroom: Classroom) -> None:
        self._teachings, self._classroom = teachings, classroom
        self._closing, self._work = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="teaching", daemon=True)

    def start(self) -> None:
        """Recover what the last process left running, and begin."""
        self._teachings.recover()
        self._teachings.when_queued = self._work.set
        self._thread.start()
        threading.Thread(target=self._keep, name="teaching-lease", daemon=True).start()

    def stop(self, wait_s: float) -> None:
        """End after the present step, or be left behind: a checkpoint is never torn."""
        self._closing.set()
        self._work.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # this thread alone, where the system can
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._closing.is_set():
            self._work.clear()
            try:
                busy = self._next()
            except Exception as error:  # a disk that is full for now: later teachings must not wait for a restart
                unknown = not isinstance(error, PrivTuneError)
                log.error("the queue of teachings can't be read or written: %s", error, exc_info=unknown)
                busy = False
            if not busy:
                self._work.wait(_LOOK_S)

    def _keep(self) -> None:
        """Say that this cloud lives, however long a step takes, and take up what others have left."""
        while not self._closing.wait(_RENEW_S):
            try:
                self._teachings.renew()
                self._teachings.reap()
            except Exception as error:  # a database that is away
                log.error("the leases of teachings can't be looked after: %s", error)

    def _next(self) -> bool:
        """Whether there was a teaching to work on."""
        teaching = self._teachings.claim()
        if teaching is not None:
            try:
                self._teach(teaching)
            except (JobConflict, JobNotFound) as error:
                log.warning(error.message, extra={"teaching": teaching.id, "reason": error.reason})
        return teaching is not None

    def _teach(self, teaching: Teaching) -> None:
        facts = {"teaching": teaching.id, "model": teaching.spec.model, "corpus": teaching.spec.corpus}
        log.info("a teaching begins", extra=facts)
        try:
            result = self._classroom.teach(
                teaching.spec,
                lambda stage, step, steps, loss: self._teachings.progress(teaching.id, stage, step, steps, loss),
                lambda: self._closing.is_set() or self._teachings.cancelling(teaching.id),
                lambda: self._teachings.cancelling(teaching.id),
                lambda name: self._teachings.began(teaching.id, name),
            )
        except JobPaused:
            self._teachings.stopped(teaching.id)
        except PrivTuneError as error:
            log.warning(error.message, extra={"teaching": teaching.id, "reason": error.reason, "detail": error.detail})
            self._teachings.fail(teaching.id, error)
        except Exception:
            log.exception("unexpected failure of teaching %s", teaching.id)
            self._teachings.fail(teaching.id, InternalError("An unexpected failure in the cloud; its log says more."))
        else:
            self._teachings.succeed(teaching.id, result.name, result.card, result.sources)
