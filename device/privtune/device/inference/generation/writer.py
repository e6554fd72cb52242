"""Writes answers with a tuned language model, several at once over one stream: rows up, one state a token back.

Prompts that begin together go up in one message. What follows goes up in rounds, a row of each answer that has a token
to go on from, and one round is under way at a time: so both sides go through their weights once for all answers.
The cloud keeps keys and values of the rows it has; the device keeps the rows. So what the cloud let go, or a connection
that was lost, costs one sending of the same bytes and no answer.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from privtune.device.data.batches import IndexArray
from privtune.device.inference.generation.growing_rows import GrowingText
from privtune.device.inference.generation.prompt_builder import Prompts
from privtune.device.inference.generation.sampling import Sampler, Sampling
from privtune.device.inference.generation.tail_text import TailText
from privtune.device.inference.generation.text_pieces import TextPieces
from privtune.device.inference.tuned import Texts, TunedModel
from privtune.device.link.rpc import Stream
from privtune.device.model.tail import every_row
from privtune.device.privacy.statements import Statement
from privtune.shared.errors import CloudUnreachable, FrameCorrupt, PrivTuneError
from privtune.shared.modeling.package import BottomPackage
from privtune.shared.wire import END, FORWARD, OUTPUT, RESEND, Message, pack_positions
from privtune.split.v1 import split_pb2 as pb

DEFAULT_NEW_TOKENS = 256
ROWS_TOGETHER = 1024  # of prompts in one message
BACKOFF_S = (0.5, 1.0, 2.0, 4.0)
Finish = Literal["stop", "length", "cancelled"]


class Reply:
    """One answer while it is written. `text` is what may be shown so far; `finish`: why it ended, None until then.

    growing, onward: its rows here and its states in a tail, until it ends.
    """

    def __init__(
        self,
        handle: int,
        prompt: Sequence[int],
        growing: GrowingText,
        sampling: Sampling,
        limit: int,
        pieces: TextPieces,
        onward: TailText | None,
    ) -> None:
        self.handle, self.prompt, self.limit = handle, tuple(prompt), limit
        self.new_ids: list[int] = []
        self.text = ""
        self.finish: Finish | None = None
        self.admission = ""
        self.growing, self.pieces, self.sampler = growing, pieces, Sampler(sampling)
        self.onward = onward
        self.ignore_end = sampling.ignore_end

    def final_state(self, rows_MD: Tensor) -> Tensor:
        """out_D, from which the next token is chosen, of the states that came back."""
        if self.onward is not None:
            rows_MD = self.onward.extend(rows_MD, self.growing)
        return rows_MD[-1]


class Writer:
    """Begins answers and goes on with them, a token of some or all at each `advance`. One caller at a time.

    say: told of warnings and of a connection that was lost.
    """

    def __init__(self, tuned: TunedModel, texts: Texts, say: Callable[[str], None] = lambda _: None) -> None:
        self._tuned, self._texts, self._say = tuned, texts, say
        self.prompts = Prompts(tuned.parts, tuned.state.prompt)
        self._end_ids = self.prompts.end_ids()
        self._handles, self._numbers = itertools.count(), itertools.count()
        self._stream: Stream | None = None
        self._active: dict[int, Reply] = {}
        # Whose rows are in a message that is not answered yet, and how many states of each were asked for.
        self._sent: dict[int, list[tuple[Reply, int]]] = {}
        self._round: int | None = None  # the one of these that goes on with several
        self._ready: list[Reply] = []  # whose next row waits for the next round
        self._new: list[Reply] = []  # whose rows this stream has not had
        self._failures: int | None = None  # since the last answer; None before the first one

    @property
    def parts(self) -> BottomPackage:
        """The device's part of the model."""
        return self._tuned.parts

    @property
    def statement(self) -> Statement:
        """What may be claimed for the rows."""
        return self._texts.how.statement

    @property
    def active(self) -> int:
        """Answers that are being written."""
        return len(self._active)

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> Reply:
        """Start an answer to a prompt of `prompts.ids`.

        Raises PolicyRefused, before anything is sent, when the budget does not allow the prompt and a longest answer.
        """
        wanted, room = sampling.max_new_tokens or DEFAULT_NEW_TOKENS, self.prompts.room(prompt)
        limit = wanted if room is None else min(wanted, room)
        growing = GrowingText(self._texts.rows)
        pieces = TextPieces(self._tuned.parts.tokenizer, prompt, sampling.stop)
        tail = self._tuned.head.tail
        onward = TailText(tail) if tail is not None else None
        reply = Reply(next(self._handles), prompt, growing, sampling, limit, pieces, onward)
        # The last token is chosen and never sent.
        reply.admission, warning = self._texts.account.admit_text(
            self._texts.how, rows=growing.missing(prompt) + limit - 1, length=len(prompt) + limit - 1
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

        Raises CloudUnreachable when the connection can't be brought back, and whatever ended the stream otherwise; the
        replies under way are then lost, and further ones may be begun.
        """
        while True:
            try:
                stream = self._connected()
                self._send_new(stream)
                message = stream.receive()
                told = self._answered(stream, message)
                if self._round is None and self._ready:
                    self._send_round(stream)
                if told:
                    return told
            except (CloudUnreachable, FrameCorrupt) as error:
                self._disconnect()
                self._wait(error)
            except PrivTuneError:
                self._disconnect()
                raise

    def end(self, reply: Reply, why: Finish) -> None:
        """End a reply that is not finished: what the cloud keeps of it is let go, and the ledger is settled."""
        if reply.finish is not None:
            return
        reply.finish = why
        self._ready = [other for other in self._ready if other is not reply]
        self._new = [other for other in self._new if other is not reply]
        if self._active.pop(reply.handle, None) is not None and self._stream is not None:
            self._stream.send(Message(kind=END, step=0, forward=pb.ForwardHeader(record_ids=[reply.handle])))
        self._texts.account.settle_text(
            reply.admission, self._texts.how, rows=reply.growing.drawn, length=len(reply.growing.ids)
        )
        del reply.growing, reply.onward  # keys, values and rows: a megabyte a text, and there may be many answers

    def close(self) -> None:
        """End all replies."""
        for reply in list(self._active.values()):
            self.end(reply, "cancelled")

    def _answered(self, stream: Stream, message: Message) -> list[Reply]:
        """Act on an answer to a message of ours; the replies that got a token."""
        sent = self._sent.pop(message.micro_batch, [])
        if message.micro_batch == self._round:
            self._round = None
        if message.kind == RESEND:
            for reply, _ in sent:
                if reply.finish is None:  # some ended meanwhile
                    self._send_whole(stream, reply)
        if message.kind != OUTPUT:
            return []
        rows_MD = torch.from_numpy(message.tensor())
        if len(rows_MD) != sum(count for _, count in sent):
            raise FrameCorrupt(
                f"the cloud sent {len(rows_MD)} states; {sum(count for _, count in sent)} were asked for"
            )
        parts = torch.split(rows_MD, [count for _, count in sent])
        going_on = [(reply, rows) for (reply, _), rows in zip(sent, parts, strict=True) if reply.finish is None]
        if not going_on:
            return []
        self._failures = 0
        logits_NV = self._tuned.logits(torch.stack([reply.final_state(rows) for reply, rows in going_on]))
        for (reply, _), logits_V in zip(going_on, logits_NV, strict=True):
            self._take(reply, reply.sampler.choose(logits_V))
        told = [reply for reply, _ in going_on]
        if unfinished := [reply for reply in told if reply.finish is None]:
            newest = [reply.new_ids[-1] for reply in unfinished]
            GrowingText.extend_together([reply.growing for reply in unfinished], newest)
            self._ready += unfinished
        return told

    def _take(self, reply: Reply, token: int) -> None:
        """Write a token; finish, if it is the last one."""
        reply.new_ids.append(token)
        if token in self._end_ids and not reply.ignore_end:
            self._finish(reply, "stop")
            return
        reply.text += reply.pieces.push(token)
        if reply.pieces.stopped or len(reply.new_ids) >= reply.limit:
            self._finish(reply, "stop" if reply.pieces.stopped else "length")

    def _finish(self, reply: Reply, why: Finish) -> None:
        reply.text += reply.pieces.finish()
        self.end(reply, "stop" if reply.pieces.stopped else why)

    def _send_whole(self, stream: Stream, reply: Reply) -> None:
        """All rows of a reply's text, for a cloud that keeps nothing of it."""
        self._send(stream, [reply], 0)

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
        message = Message(
            kind=FORWARD,
            step=0,
            micro_batch=number,
            payload=b"".join(reply.growing.encoded(past) for reply, past in zip(replies, pasts, strict=True)),
            rows=sum(lengths),
            width=self._tuned.parts.hidden_size,
            codec=self._tuned.state.spec.codec,
            forward=header,
        )
        self._sent[number] = list(zip(replies, counts, strict=True))
        stream.send(message)
        return number

    def _asked(self, lengths_B: IndexArray) -> tuple[IndexArray, list[int]]:
        """Whose states the cloud is to send, and how many of each text: the last, or all that a tail goes on from."""
        if self._tuned.head.tail is not None:
            return every_row(lengths_B), lengths_B.tolist()
        return np.arange(len(lengths_B)) * int(lengths_B.max()) + lengths_B - 1, [1] * len(lengths_B)

    def _connected(self) -> Stream:
        """The stream; a new one takes up every reply where it was."""
        if self._stream is None:
            self._stream = self._tuned.stream()
            self._new = list(self._active.values())
        return self._stream

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        self._sent, self._round, self._ready = {}, None, []
        if stream is not None:
            stream.abort()

    def _wait(self, error: PrivTuneError) -> None:
        """Before another attempt; raises `error` when there were enough, or when nothing ever came."""
        if self._failures is None or self._failures >= len(BACKOFF_S):
            raise error
        pause = BACKOFF_S[self._failures]
        self._failures += 1
        self._say(f"{error.message}; trying again in {pause:g} s")
        time.sleep(pause)
