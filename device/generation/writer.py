"""Writes answers with a tuned language model, several at once over one stream: rows up, one state a token back.

The cloud keeps keys and values of the rows it has; the device keeps the rows. So what the cloud let go, or a connection
that was lost, costs one sending of the same bytes and no answer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from privtune.split.v1 import split_pb2 as pb

from device.generation.prompts import Prompts
from device.generation.rows import GrowingText
from device.generation.sampling import Sampler, Sampling
from device.generation.tailtext import TailText
from device.generation.text import TextPieces
from device.link import Stream
from device.tuned import Texts, TunedModel
from shared.errors import CloudUnreachable, FrameCorrupt, PrivTuneError
from shared.modeling.package import BottomPackage
from shared.privacy import Statement
from shared.wire import END, FORWARD, OUTPUT, RESEND, Message, pack_positions

DEFAULT_NEW_TOKENS = 256
BACKOFF_S = (0.5, 1.0, 2.0, 4.0)
Finish = Literal["stop", "length", "cancelled"]


class Reply:
    """One answer while it is written. `text` is what may be shown so far; `finish`: why it ended, None until then."""

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


class Writer:
    """Begins answers and goes on with them, one token at each `advance`. One caller at a time.

    say: told of warnings and of a connection that was lost.
    """

    def __init__(self, tuned: TunedModel, texts: Texts, say: Callable[[str], None] = lambda _: None) -> None:
        self._tuned, self._texts, self._say = tuned, texts, say
        self.prompts = Prompts(tuned.parts, tuned.state.prompt)
        self._end_ids = self.prompts.end_ids()
        self._handles = itertools.count()
        self._stream: Stream | None = None
        self._active: dict[int, Reply] = {}
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
            if self._stream is not None:
                self._send(self._stream, reply, 0)
        except BaseException:
            self.end(reply, "cancelled")
            raise
        return reply

    def advance(self) -> Reply:
        """Wait for the cloud's next answer; the reply that got a token.

        Raises CloudUnreachable when the connection can't be brought back, and whatever ended the stream otherwise; the
        replies under way are then lost, and further ones may be begun.
        """
        while True:
            try:
                message = self._connected().receive()
                reply = self._active.get(message.micro_batch)
                if reply is None:
                    continue  # it was ended meanwhile
                if message.kind == RESEND:
                    self._send(self._connected(), reply, 0)
                elif message.kind == OUTPUT:
                    self._failures = 0
                    self._take(reply, message)
                    return reply
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
        if self._active.pop(reply.handle, None) is not None and self._stream is not None:
            self._stream.send(Message(kind=END, step=0, forward=pb.ForwardHeader(record_ids=[reply.handle])))
        self._texts.account.settle_text(
            reply.admission, self._texts.how, rows=reply.growing.drawn, length=len(reply.growing.ids)
        )

    def close(self) -> None:
        """End all replies."""
        for reply in list(self._active.values()):
            self.end(reply, "cancelled")

    def _take(self, reply: Reply, message: Message) -> None:
        """Choose a token from the state that came back; go on, or finish."""
        rows_MD = torch.from_numpy(message.tensor())
        if reply.onward is not None:
            rows_MD = reply.onward.extend(rows_MD, reply.growing)
        logits_1V = self._tuned.logits(rows_MD[-1:])
        token = reply.sampler.choose(logits_1V[0])
        reply.new_ids.append(token)
        if token in self._end_ids and not reply.ignore_end:
            self._finish(reply, "stop")
            return
        reply.text += reply.pieces.push(token)
        if reply.pieces.stopped or len(reply.new_ids) >= reply.limit:
            self._finish(reply, "stop" if reply.pieces.stopped else "length")
            return
        reply.growing.extend([token])
        self._send(self._connected(), reply, len(reply.growing.ids) - 1)

    def _finish(self, reply: Reply, why: Finish) -> None:
        reply.text += reply.pieces.finish()
        self.end(reply, "stop" if reply.pieces.stopped else why)

    def _send(self, stream: Stream, reply: Reply, past: int) -> None:
        """The rows of a reply's text from `past` on."""
        rows = len(reply.growing.ids) - past
        asked_N = np.arange(0 if reply.onward is not None else rows - 1, rows, dtype=np.int64)
        header = pb.ForwardHeader(
            record_ids=[reply.handle],
            lengths=[rows],
            inlined=[True],
            past=[past],
            readout=pack_positions(asked_N),
            forward_only=True,
        )
        stream.send(
            Message(
                kind=FORWARD,
                step=len(reply.new_ids),
                micro_batch=reply.handle,
                payload=reply.growing.encoded(past),
                rows=rows,
                width=self._tuned.parts.hidden_size,
                codec=self._tuned.state.spec.codec,
                forward=header,
            )
        )

    def _connected(self) -> Stream:
        """The stream; a new one takes up every reply where it was."""
        if self._stream is None:
            self._stream = self._tuned.stream()
            for reply in self._active.values():
                self._send(self._stream, reply, 0)
        return self._stream

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
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
