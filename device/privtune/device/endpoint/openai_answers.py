"""Answers in OpenAI's shapes, as one document or as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from privtune.device.endpoint.openai_errors import body_of
from privtune.device.endpoint.openai_logprobs import Logprobs
from privtune.device.endpoint.worker import Update
from privtune.device.inference.generate import Generated
from privtune.device.inference.generation.sampling import Odds
from privtune.shared.errors import PrivTuneError

Json = dict[str, Any]
_DONE = "data: [DONE]\n\n"


def event(document: Json) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def usage(answers: list[Generated], times: int = 1) -> Json:
    """Number of tokens read and generated. times: answers to each prompt, which counts once."""
    prompt, completion = sum(a.prompt_tokens for a in answers[::times]), sum(len(a.tokens) for a in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class AnswerShape:
    """The documents of one answer.

    model: the name that the client gave.
    chat: for the chat route; otherwise for the text route.
    logprobs: spells the tokens of log probabilities; None: none are wanted.
    times: answers to each prompt.
    count: a stream ends with the usage.
    """

    def __init__(
        self, model: str, *, chat: bool, logprobs: Logprobs | None = None, times: int = 1, count: bool = False
    ) -> None:
        self._chat, self._logprobs, self._times, self._count = chat, logprobs, times, count
        self._begun: set[int] = set()
        self._spelled: dict[int, int] = {}  # characters of each choice whose log probabilities were sent
        self._about: Json = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, answers: list[Generated]) -> Json:
        """The complete answer."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._about, "object": kind, "choices": choices, "usage": usage(answers, self._times)}

    def begun(self) -> Iterator[str]:
        """The events before the first piece."""
        yield from ()

    def updated(self, index: int, update: Update) -> Iterator[str]:
        """The events of news about choice `index`."""
        if update.text or update.odds or index not in self._begun:
            yield self._piece(index, update.text, first=index not in self._begun, odds=update.odds)
            self._begun.add(index)
        if update.done is not None:
            yield self._piece(index, "", update.done.finish)

    def failed(self, error: PrivTuneError) -> str:
        """The event of an answer that failed halfway."""
        return event(body_of(error))

    def ended(self, answers: list[Generated]) -> Iterator[str]:
        """The last events; the usage for clients that asked for it."""
        if self._count:
            yield self._event([], usage=usage(answers, self._times))
        yield _DONE

    def _piece(
        self, index: int, text: str, finish: str | None = None, *, first: bool = False, odds: Sequence[Odds] = ()
    ) -> str:
        """A piece of choice `index`, as an event."""
        about: Json = {"index": index, "finish_reason": finish, "logprobs": self._said(index, odds) if odds else None}
        if not self._chat:
            return self._event([{**about, "text": text}])
        delta: Json = {"role": "assistant"} if first else {}
        return self._event([{**about, "delta": delta | ({"content": text} if text or first else {})}])

    def _said(self, index: int, odds: Sequence[Odds]) -> Json | None:
        """The log probabilities of further tokens of a choice."""
        if self._logprobs is None:
            return None
        if self._chat:
            return {"content": self._logprobs.of_chat(odds), "refusal": None}
        offset = self._spelled.get(index, 0)
        self._spelled[index] = offset + self._logprobs.characters(odds)
        return self._logprobs.of_text(odds, offset)

    def _event(self, choices: list[Json], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return event({**self._about, "object": kind, "choices": choices, **more})

    def _choice(self, index: int, answer: Generated) -> Json:
        about: Json = {"index": index, "finish_reason": answer.finish, "logprobs": self._said(index, answer.odds)}
        if not self._chat:
            return {**about, "text": answer.text}
        return {**about, "message": {"role": "assistant", "content": answer.text, "refusal": None}}
