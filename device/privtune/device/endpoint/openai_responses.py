"""`POST /v1/responses`, OpenAI's newer route: a request, and its answer as a document or as typed events.

Nothing is stored, so there is no earlier response to continue: send the whole conversation as `input`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from privtune.device.data.messages import ChatMessage
from privtune.device.endpoint.openai_errors import body_of
from privtune.device.endpoint.openai_logprobs import Logprobs
from privtune.device.endpoint.openai_requests import GenerationRequest, conversation_of
from privtune.device.endpoint.worker import Update
from privtune.device.inference.generate import Generated
from privtune.device.inference.generation.sampling import MAX_ALTERNATIVES, Odds
from privtune.shared.errors import InvalidInput, PrivTuneError

Json = dict[str, Any]
_TEXT_PARTS = ("input_text", "output_text", "text")
_LOGPROBS = "message.output_text.logprobs"


class ResponsesRequest(GenerationRequest):
    """What a client asks for."""

    input: str | list[dict[str, Any]] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    include: list[str] | None = None
    metadata: dict[str, str] | None = None

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens to generate."""
        return self.max_output_tokens

    @property
    def alternatives(self) -> int | None:
        """See `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.top_logprobs or _LOGPROBS in (self.include or ()) else None

    def conversation(self) -> tuple[ChatMessage, ...]:
        """The messages as the chat template expects them, the instructions first. Raises InvalidInput."""
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return conversation_of([*first, *map(_message, items)], "input")


def _message(item: Json) -> Json:
    """An item of the input as a message."""
    if item.get("type", "message") != "message":
        raise InvalidInput(f"items of type {item.get('type')!r} are not supported by this endpoint", param="input")
    content = item.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        kinds = {part.get("type") if isinstance(part, dict) else None for part in content}
        if not kinds <= set(_TEXT_PARTS) or not all(isinstance(text, str) for text in texts):
            raise InvalidInput("this model reads text alone; send input_text", param="input")
        content = "".join(map(str, texts))
    return {"role": item.get("role"), "content": content}


class ResponseShape:
    """The documents of one answer. logprobs: spells the tokens of log probabilities."""

    def __init__(self, asked: ResponsesRequest, logprobs: Logprobs) -> None:
        self._asked, self._logprobs = asked, logprobs
        self._id, self._item = f"resp_{secrets.token_hex(24)}", f"msg_{secrets.token_hex(24)}"
        self._created, self._events = int(time.time()), 0

    def whole(self, answers: list[Generated]) -> Json:
        """The complete response."""
        (answer,) = answers
        cut = answer.finish == "length"
        details = {"cached_tokens": 0}, {"reasoning_tokens": 0}
        read, written = answer.prompt_tokens, len(answer.tokens)
        return self._response("incomplete" if cut else "completed") | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message("incomplete" if cut else "completed", [self._part(answer.text, answer.odds)])],
            "usage": {
                "input_tokens": read,
                "input_tokens_details": details[0],
                "output_tokens": written,
                "output_tokens_details": details[1],
                "total_tokens": read + written,
            },
        }

    def begun(self) -> Iterator[str]:
        """The events before the first piece."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
        yield self._event("response.content_part.added", **self._place, part=self._part("", ()))

    def updated(self, index: int, update: Update) -> Iterator[str]:
        """The events of news about the answer."""
        if update.text or update.odds:
            yield self._event(
                "response.output_text.delta",
                **self._place,
                delta=update.text,
                logprobs=self._logprobs.of_chat(update.odds),
            )

    def failed(self, error: PrivTuneError) -> str:
        """The event of an answer that failed halfway."""
        said = body_of(error)["error"]
        failure = {"code": "server_error", "message": said["message"]}
        return self._event("response.failed", response=self._response("failed") | {"error": failure})

    def ended(self, answers: list[Generated]) -> Iterator[str]:
        """The last events."""
        response = self.whole(answers)
        (item,), (part,) = response["output"], response["output"][0]["content"]
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", **self._place, **text)
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    @property
    def _place(self) -> Json:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _part(self, text: str, odds: Sequence[Odds]) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs.of_chat(odds)}

    def _message(self, status: str, content: list[Json]) -> Json:
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str) -> Json:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "model": asked.model,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "metadata": asked.metadata or {},
            "output": [],
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "temperature": asked.sampling().temperature,
            "top_p": asked.sampling().top_p,
            "max_output_tokens": asked.max_output_tokens,
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "usage": None,
        }

    def _event(self, kind: str, **facts: Any) -> str:
        document = {"type": kind, "sequence_number": self._events, **facts}
        self._events += 1
        return f"event: {kind}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n"
