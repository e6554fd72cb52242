"""Writes answers with a tuned language model, several at once over one stream: rows up, one state per token back.

Prompts that begin together go up in one message. What follows goes up in rounds, one row of each answer that has a new
token, and one round is under way at a time: both sides go through their weights once for all answers.
The cloud keeps keys and values of the rows it has, the device keeps the rows. An eviction in the cloud or a lost
connection therefore costs sending the same bytes once more, and no answer.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from tenacity import stop_after_attempt
from torch import Tensor

from privtune.device.data.batches import IndexArray
from privtune.device.inference.generation.growing_rows import GrowingText
from privtune.device.inference.generation.prompt_builder import Asked, Prompts
from privtune.device.inference.generation.sampling import Odds, Sampler, Sampling
from privtune.device.inference.generation.tail_text import TailText
from privtune.device.inference.generation.text_pieces import TextPieces
from privtune.device.inference.tuned import TextReleases, TunedModel
from privtune.device.link.rpc import Stream
from privtune.device.privacy.statements import Statement
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.errors import CloudUnreachable, FrameCorrupt, PrivTuneError
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.retry import retrying
from privtune.shared.wire import END, FORWARD, OUTPUT, RESEND, Message, pack_positions
from privtune.split.v1 import split_pb2 as pb

DEFAULT_NEW_TOKENS = 256
ROWS_TOGETHER = 1024  # of prompts in one message
FIRST_WAIT_S, LONGEST_WAIT_S, TRIES = 0.5, 4.0, 5  # when the connection is lost
_LOST = (CloudUnreachable, FrameCorrupt)
Finish = Literal["stop", "length", "cancelled"]


class Reply:
    """One answer while it is written.

    handle: its name on the stream.
    prompt: token ids that it follows.
    limit: most tokens that it may have.
    new_ids: its tokens so far.
    odds: of each of them, where the sampling wants these.
    text: what may be shown so far, with the true words for surrogates.
    finish: why it ended; None until then.
    admission: its entry in the ledger.
    growing, in_tail: its released rows, and its states in a tail; both until it ends.
    """

    def __init__(
        self,
        handle: int,
        prompt: Sequence[int],
        growing: GrowingText,
        sampling: Sampling,
        limit: int,
        pieces: TextPieces,
        in_tail: TailText | None,
    ) -> None:
        self.handle, self.prompt, self.limit = handle, tuple(prompt), limit
        self.new_ids: list[int] = []
        self.odds: list[Odds] = []
        self.text = ""
        self.finish: Finish | None = None
        self.admission = ""
        self.growing, self.pieces, self.sampler = growing, pieces, Sampler(sampling)
        self.in_tail = in_tail
        self.ignore_end, self._alternatives = sampling.ignore_end, sampling.alternatives

    def choose(self, logits_V: Tensor) -> int:
        """The next token, its odds noted."""
        token = self.sampler.choose(logits_V)
        if self._alternatives is not None:
            self.odds.append(Odds.of(token, logits_V, self._alternatives))
        return token

    def final_state(self, rows_MD: Tensor) -> Tensor:
        """out_D, from which the next token is chosen. rows_MD: the states that came back."""
        if self.in_tail is not None:
            rows_MD = self.in_tail.extend(rows_MD, self.growing)
        return rows_MD[-1]


class Writer:
    """Begins answers and continues them, a token of some or all at each `advance`. One caller at a time.

    Args:
        tuned: the model.
        texts: what releases its rows.
        surrogates: the job's; None where texts leave as they are.
        say: gets warnings and lost connections.
    """

    def __init__(
        self, tuned: TunedModel, texts: TextReleases, surrogates: Surrogates | None, say: Callable[[str], None]
    ) -> None:
        self._tuned, self._texts, self._say = tuned, texts, say
        self.prompts = Prompts(tuned.package, tuned.state.prompt, surrogates)
        self._end_ids = self.prompts.end_ids()
        self._handles, self._numbers = itertools.count(), itertools.count()
        self._stream: Stream | None = None
        self._active: dict[int, Reply] = {}
        # By message that is not answered yet: whose rows are in it, and how many states of each were asked for.
        self._sent: dict[int, list[tuple[Reply, int]]] = {}
        self._round: int | None = None  # the number of the round under way
        self._ready: list[Reply] = []  # whose next row waits for the next round
        self._new: list[Reply] = []  # whose rows this stream has not had
        self._answers = False  # whether the cloud has answered since it was last given up

    @property
    def package(self) -> BottomPackage:
        """The device's part of the model."""
        return self._tuned.package

    @property
    def statement(self) -> Statement:
        """What may be claimed for the released rows."""
        return self._texts.releasing.statement

    @property
    def active(self) -> int:
        """Answers that are being written."""
        return len(self._active)

    def begin(self, asked: Asked, sampling: Sampling) -> Reply:
        """Start an answer to a prompt of `prompts.asked`.

        Raises PolicyRefused, before anything is sent, when the budget does not allow the prompt with a longest answer.
        """
        prompt = asked.ids
        wanted, room = sampling.max_new_tokens or DEFAULT_NEW_TOKENS, self.prompts.room(prompt)
        limit = wanted if room is None else min(wanted, room)
        growing = GrowingText(self._texts.rows)
        pieces = TextPieces(self._tuned.package.tokenizer, prompt, sampling.stop, asked.surrogates)
        tail = self._tuned.states.head.tail
        in_tail = TailText(tail) if tail is not None else None
        reply = Reply(next(self._handles), prompt, growing, sampling, limit, pieces, in_tail)
        # The last token is chosen and never sent.
        releasing, length = self._texts.releasing, len(prompt) + limit - 1
        reply.admission, warning = releasing.account.admit_text(
            releasing, prompt=prompt, rows=growing.missing(prompt) + limit - 1, length=length
        )
        if warning is not None:
            self._say(warning)
        try:
            growing.extend(prompt)
            self._active[reply.handle] = reply
            self._new.append(reply)
        except BaseException:
            self.end(reply, "cancelled")
            raise
        return reply

    def advance(self) -> list[Reply]:
        """Wait for the cloud's next answer; the replies that got a token.

        Raises CloudUnreachable when the connection can't be restored, and whatever ended the stream otherwise; the
        replies under way are then lost, and further ones may be begun.
        """
        try:
            return retrying(
                self._next_answer,
                again=lambda error: isinstance(error, _LOST) and self._answers,
                stop=stop_after_attempt(TRIES),
                first_s=FIRST_WAIT_S,
                longest_s=LONGEST_WAIT_S,
                before_wait=self._reconnect_later,
            )
        except PrivTuneError as error:
            self._answers = self._answers and not isinstance(error, _LOST)
            self._disconnect()
            raise

    def _next_answer(self) -> list[Reply]:
        stream = self._connected()
        while True:
            self._send_new(stream)
            advanced = self._answered(stream, stream.receive())
            if self._round is None and self._ready:
                self._send_round(stream)
            if advanced:
                return advanced

    def _reconnect_later(self, error: BaseException, wait_s: float) -> None:
        self._disconnect()
        self._say(f"{error}; trying again in {wait_s:g} s")

    def end(self, reply: Reply, why: Finish) -> None:
        """End a reply that is not finished: the cloud frees what it keeps of it, and the ledger is settled."""
        if reply.finish is not None:
            return
        reply.finish = why
        self._ready = [other for other in self._ready if other is not reply]
        self._new = [other for other in self._new if other is not reply]
        if self._active.pop(reply.handle, None) is not None and self._stream is not None:
            self._stream.send(Message(kind=END, step=0, forward=pb.ForwardHeader(record_ids=[reply.handle])))
        releasing, rows = self._texts.releasing, reply.growing
        releasing.account.settle_text(reply.admission, releasing, rows=rows.drawn, length=len(rows.ids))
        del reply.growing, reply.in_tail  # keys, values and rows: a megabyte per text, and there may be many answers

    def close(self) -> None:
        """End all replies."""
        for reply in list(self._active.values()):
            self.end(reply, "cancelled")

    def _answered(self, stream: Stream, message: Message) -> list[Reply]:
        """Act on an answer to one of our messages; the replies that got a token."""
        sent = self._sent.pop(message.micro_batch, [])
        if message.micro_batch == self._round:
            self._round = None
        if message.kind == RESEND:
            for reply, _ in sent:
                if reply.finish is None:  # some have ended since
                    self._send(stream, [reply], 0)
        if message.kind != OUTPUT:
            return []
        asked = sum(count for _, count in sent)
        rows_MD = torch.from_numpy(message.tensor(rows=asked, width=self._tuned.package.hidden_size))
        parts = torch.split(rows_MD, [count for _, count in sent])
        alive = [(reply, rows) for (reply, _), rows in zip(sent, parts, strict=True) if reply.finish is None]
        if not alive:
            return []
        self._answers = True
        logits_NV = self._tuned.states.logits(torch.stack([reply.final_state(rows) for reply, rows in alive]))
        for (reply, _), logits_V in zip(alive, logits_NV, strict=True):
            self._take(reply, reply.choose(logits_V))
        advanced = [reply for reply, _ in alive]
        if unfinished := [reply for reply in advanced if reply.finish is None]:
            newest = [reply.new_ids[-1] for reply in unfinished]
            GrowingText.extend_together([reply.growing for reply in unfinished], newest)
            self._ready += unfinished
        return advanced

    def _take(self, reply: Reply, token: int) -> None:
        """Write a token; finish, if it is the last one."""
        reply.new_ids.append(token)
        if token in self._end_ids and not reply.ignore_end:
            del reply.odds[len(reply.new_ids) - 1 :]  # it is no part of the answer
            self._finish(reply, "stop")
            return
        reply.text += reply.pieces.push(token)
        if reply.pieces.stopped or len(reply.new_ids) >= reply.limit:
            self._finish(reply, "stop" if reply.pieces.stopped else "length")

    def _finish(self, reply: Reply, why: Finish) -> None:
        reply.text += reply.pieces.finish()
        self.end(reply, "stop" if reply.pieces.stopped else why)

    def _send_new(self, stream: Stream) -> None:
        """All rows of the replies that have just begun, several in a message: the cloud computes them at once."""
        waiting, self._new = deque(self._new), []
        while waiting:
            together = [waiting.popleft()]
            rows = len(together[0].growing.ids)
            while waiting and rows + len(waiting[0].growing.ids) <= ROWS_TOGETHER:
                together.append(waiting.popleft())
                rows += len(together[-1].growing.ids)
            self._send(stream, together, 0)

    def _send_round(self, stream: Stream) -> None:
        """The newest row of every reply that has one to send."""
        replies, self._ready = self._ready, []
        self._round = self._send(stream, replies, -1)

    def _send(self, stream: Stream, replies: list[Reply], start: int) -> int:
        """The rows of each text from `start` on (0: all, -1: the newest), as one message; its number."""
        number = next(self._numbers)
        pasts = [len(reply.growing.ids[:start]) if start else 0 for reply in replies]
        lengths = [len(reply.growing.ids) - past for reply, past in zip(replies, pasts, strict=True)]
        asked_N, counts = self._asked(np.array(lengths, dtype=np.int64))
        header = pb.ForwardHeader(
            record_ids=[reply.handle for reply in replies],
            lengths=lengths,
            inlined=[True] * len(replies),
            past=pasts,
            readout=pack_positions(asked_N),
            forward_only=True,
        )
        width, codec = self._texts.releasing.noise.mechanism.sent_as(self._tuned.state.spec.codec)
        message = Message(
            kind=FORWARD,
            step=0,
            micro_batch=number,
            payload=b"".join(reply.growing.encoded(past) for reply, past in zip(replies, pasts, strict=True)),
            rows=sum(lengths),
            width=width,
            codec=codec,
            forward=header,
        )
        self._sent[number] = list(zip(replies, counts, strict=True))
        stream.send(message)
        return number

    def _asked(self, lengths_B: IndexArray) -> tuple[IndexArray, list[int]]:
        """Whose states the cloud is to send (none: all), and how many of each text: the last, or all for a tail."""
        if self._tuned.states.head.tail is not None:
            return lengths_B[:0], lengths_B.tolist()
        return np.arange(len(lengths_B)) * int(lengths_B.max()) + lengths_B - 1, [1] * len(lengths_B)

    def _connected(self) -> Stream:
        """The stream; a new one resumes every reply."""
        if self._stream is None:
            self._stream = self._tuned.stream()
            self._new = list(self._active.values())
        return self._stream

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        self._sent, self._round, self._ready = {}, None, []
        if stream is not None:
            stream.abort()
