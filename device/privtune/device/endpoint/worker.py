"""One thread that writes all answers of a job: it alone touches the stream, the noise and the release store."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from privtune.device.inference.generate import IN_FLIGHT, Generated, generated, open_writer
from privtune.device.inference.generation.prompt_builder import Prompt
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.generation.writer import Reply, Writer
from privtune.device.session.run_settings import RunSettings
from privtune.shared.errors import InternalError, JobConflict, PrivTuneError
from privtune.shared.modeling.package import BottomPackage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class News:
    """What became of a question: some text, its end, or why it failed."""

    text: str = ""
    done: Generated | None = None
    error: PrivTuneError | None = None


@dataclass(kw_only=True)
class Ticket:
    """A question that was asked. tell: called on the worker's thread; cancel: any thread may set it."""

    prompt: Prompt
    raw: bool
    sampling: Sampling
    tell: Callable[[News], None]
    cancel: threading.Event = field(default_factory=threading.Event)
    reply: Reply | None = None
    shown: int = 0


class Worker:
    """Answers questions to one job's model, several at a time, in the order asked."""

    def __init__(self, job_id: str, settings: RunSettings, say: Callable[[str], None]) -> None:
        self.job_id, self._settings, self._say = job_id, settings, say
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._waiting: list[Ticket] = []
        self._writing: dict[int, Ticket] = {}
        self._parts: BottomPackage | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer-{job_id}", daemon=True)

    def start(self) -> None:
        """Load the model; returns when questions can be answered, raises what hinders it."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End all answers, so that the cloud lets go of them, and the thread."""
        self._inbox.put(None)
        self._thread.join(timeout=30)

    def ask(self, ticket: Ticket) -> None:
        """Queue a question. Raises JobConflict when the worker has ended."""
        if not self._thread.is_alive():
            raise JobConflict("this model is no longer served; start `privtune serve` again")
        self._inbox.put(ticket)

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
        """Take what came in, then write on; False when asked to stop."""
        while self._idle or not self._inbox.empty():
            ticket = self._inbox.get()
            if ticket is None:
                return False
            self._waiting.append(ticket)
        for ticket in [ticket for ticket in self._writing.values() if ticket.cancel.is_set()]:
            self._end(writer, ticket)
        while self._waiting and len(self._writing) < IN_FLIGHT:
            self._begin(writer, self._waiting.pop(0))
        if self._writing:
            self._advance(writer)
        return True

    @property
    def _idle(self) -> bool:
        return not self._writing and not self._waiting

    def _begin(self, writer: Writer, ticket: Ticket) -> None:
        if ticket.cancel.is_set():
            return
        try:
            ids = writer.prompts.ids(ticket.prompt, raw=ticket.raw)
            ticket.reply = writer.begin(ids, ticket.sampling)
        except Exception as error:
            ticket.tell(News(error=_told(error)))
            return
        self._writing[ticket.reply.handle] = ticket
        ticket.tell(News())

    def _advance(self, writer: Writer) -> None:
        try:
            replies = writer.advance()
        except Exception as error:
            writer.close()
            self._fail_all(_told(error))
            return
        for reply in replies:
            self._tell(self._writing[reply.handle], reply)

    def _tell(self, ticket: Ticket, reply: Reply) -> None:
        text, ticket.shown = reply.text[ticket.shown :], len(reply.text)
        if reply.finish is not None:
            del self._writing[reply.handle]
        if text or reply.finish is not None:
            ticket.tell(News(text=text, done=generated(reply) if reply.finish is not None else None))

    def _end(self, writer: Writer, ticket: Ticket) -> None:
        if ticket.reply is not None:
            del self._writing[ticket.reply.handle]
            writer.end(ticket.reply, "cancelled")

    def _fail_all(self, error: PrivTuneError) -> None:
        for ticket in self._writing.values():
            ticket.tell(News(error=error))
        self._writing = {}


def _told(error: Exception) -> PrivTuneError:
    if isinstance(error, PrivTuneError):
        return error
    log.error("unexpected failure while writing", exc_info=error)
    return InternalError("Unexpected failure while writing; the terminal of `privtune serve` says more.")
