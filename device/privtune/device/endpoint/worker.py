"""One thread that generates all answers of a job: it alone uses the stream, the noise and the release store."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from privtune.device.home.paths import job_path
from privtune.device.inference.generate import IN_FLIGHT, Generated, generated, open_writer
from privtune.device.inference.generation.prompt_builder import Prompt
from privtune.device.inference.generation.sampling import Odds, Sampling
from privtune.device.inference.generation.writer import Reply, Writer
from privtune.device.session.run_settings import RunSettings
from privtune.shared.errors import InternalError, JobConflict, PrivTuneError, is_failure
from privtune.shared.modeling.bottom_package import BottomPackage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Update:
    """News about a question.

    text: what was generated since the last update.
    odds: of the tokens since then, where they were asked for.
    done: the finished answer; None while it is generated.
    error: why the question failed.
    """

    text: str = ""
    odds: tuple[Odds, ...] = ()
    done: Generated | None = None
    error: PrivTuneError | None = None


@dataclass(kw_only=True)
class PendingPrompt:
    """A prompt that waits for its answer.

    prompt: text or conversation.
    raw: the text is used as it is, without the chat template.
    sampling: how the answer is sampled.
    notify: called with each update, on the worker's thread.
    cancel: any thread may set it.
    reply: the answer so far; the worker's own.
    shown: characters of it that were reported; the worker's own.
    counted: tokens whose odds were reported; the worker's own.
    """

    prompt: Prompt
    raw: bool
    sampling: Sampling
    notify: Callable[[Update], None]
    cancel: threading.Event = field(default_factory=threading.Event)
    reply: Reply | None = None
    shown: int = 0
    counted: int = 0


class Worker:
    """Answers questions to one job's model, several at a time, in the order they were asked."""

    def __init__(self, job_id: str, settings: RunSettings, say: Callable[[str], None]) -> None:
        self.job_id, self._settings, self._say = job_id, settings, say
        self._inbox: queue.SimpleQueue[PendingPrompt | None] = queue.SimpleQueue()
        self._waiting: list[PendingPrompt] = []
        self._writing: dict[int, PendingPrompt] = {}
        self._parts: BottomPackage | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer-{job_id}", daemon=True)

    def start(self) -> None:
        """Load the model. Returns when questions can be answered; raises the error that prevents it."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End all answers, so that the cloud drops them, and the thread."""
        self._inbox.put(None)
        self._thread.join(timeout=30)

    def ask(self, question: PendingPrompt) -> None:
        """Queue a question. Raises JobConflict when the worker has ended."""
        if not self._thread.is_alive():
            raise JobConflict("this model is no longer served; start `privtune serve` again")
        self._inbox.put(question)

    @property
    def created(self) -> int:
        """When training finished, in seconds since 1970."""
        return int((job_path(self._settings.home, self.job_id) / "job.json").stat().st_mtime)

    @property
    def parts(self) -> BottomPackage:
        """The device's part of the model."""
        if self._parts is None:
            raise JobConflict("this model is not loaded yet")
        return self._parts

    def _run(self) -> None:
        try:
            with open_writer(self.job_id, self._settings, self._say) as writer:
                self._parts = writer.package
                self._ready.set()
                while self._turn(writer):
                    pass
        except BaseException as error:
            self._failure = error
            if self._ready.is_set():
                log.error("the writer of %s ended", self.job_id, exc_info=error)
        finally:
            self._ready.set()
            self._fail_all(JobConflict("this model is no longer served"))

    def _turn(self, writer: Writer) -> bool:
        """Take new questions, then generate one more token for each; False when asked to stop."""
        while self._idle or not self._inbox.empty():
            question = self._inbox.get()
            if question is None:
                return False
            self._waiting.append(question)
        for question in [question for question in self._writing.values() if question.cancel.is_set()]:
            self._end(writer, question)
        while self._waiting and len(self._writing) < IN_FLIGHT:
            self._begin(writer, self._waiting.pop(0))
        if self._writing:
            self._advance(writer)
        return True

    @property
    def _idle(self) -> bool:
        return not self._writing and not self._waiting

    def _begin(self, writer: Writer, question: PendingPrompt) -> None:
        if question.cancel.is_set():
            return
        try:
            asked = writer.prompts.asked(question.prompt, raw=question.raw)
            question.reply = writer.begin(asked, question.sampling)
        except BaseException as error:
            if not is_failure(error):
                raise
            question.notify(Update(error=_as_error(error)))
            return
        self._writing[question.reply.handle] = question
        question.notify(Update())

    def _advance(self, writer: Writer) -> None:
        try:
            replies = writer.advance()
        except BaseException as error:
            if not is_failure(error):
                raise
            writer.close()
            self._fail_all(_as_error(error))
            return
        for reply in replies:
            self._report(self._writing[reply.handle], reply)

    def _report(self, question: PendingPrompt, reply: Reply) -> None:
        text, question.shown = reply.text[question.shown :], len(reply.text)
        if reply.finish is not None:
            del self._writing[reply.handle]
        if text or reply.finish is not None:
            odds, question.counted = tuple(reply.odds[question.counted :]), len(reply.odds)
            done = generated(reply) if reply.finish is not None else None
            question.notify(Update(text=text, odds=odds, done=done))

    def _end(self, writer: Writer, question: PendingPrompt) -> None:
        if question.reply is not None:
            del self._writing[question.reply.handle]
            writer.end(question.reply, "cancelled")

    def _fail_all(self, error: PrivTuneError) -> None:
        for question in self._writing.values():
            question.notify(Update(error=error))
        self._writing = {}


def _as_error(error: BaseException) -> PrivTuneError:
    if isinstance(error, PrivTuneError):
        return error
    log.error("unexpected failure while writing", exc_info=error)
    return InternalError("Unexpected failure while writing; see the terminal of `privtune serve`.")
