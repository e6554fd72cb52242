"""Answers in OpenAI's shapes, as one document or as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from privtune.device.endpoint.openai_errors import body_of
from privtune.device.inference.generate import Generated
from privtune.shared.errors import PrivTuneError

Json = dict[str, Any]
DONE = "data: [DONE]\n\n"


def event(document: Json) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def failed(error: PrivTuneError) -> str:
    """The event of an answer that failed halfway."""
    return event(body_of(error))


def usage(answers: list[Generated]) -> Json:
    """Number of tokens read and generated."""
    prompt, completion = sum(a.prompt_tokens for a in answers), sum(len(a.tokens) for a in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class AnswerShape:
    """The documents of one answer.

    model: the name that the client gave.
    chat: for the chat route; otherwise for the text route.
    """

    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._about: Json = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, answers: list[Generated]) -> Json:
        """The complete answer."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._about, "object": kind, "choices": choices, "usage": usage(answers)}

    def piece(self, index: int, text: str, finish: str | None = None, *, first: bool = False) -> str:
        """A piece of choice `index`, as an event."""
        about: Json = {"index": index, "finish_reason": finish, "logprobs": None}
        if not self._chat:
            return self._event([{**about, "text": text}])
        delta: Json = {"role": "assistant"} if first else {}
        return self._event([{**about, "delta": delta | ({"content": text} if text or first else {})}])

    def counted(self, answers: list[Generated]) -> str:
        """The last event, for clients that asked for the usage."""
        return self._event([], usage=usage(answers))

    def _event(self, choices: list[Json], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return event({**self._about, "object": kind, "choices": choices, **more})

    def _choice(self, index: int, answer: Generated) -> Json:
        about: Json = {"index": index, "finish_reason": answer.finish, "logprobs": None}
        if not self._chat:
            return {**about, "text": answer.text}
        return {**about, "message": {"role": "assistant", "content": answer.text, "refusal": None}}
