"""Requests in OpenAI's words. A field that would change an answer and is not supported is refused, not ignored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from privtune.device.data.messages import ChatMessage, parse_messages
from privtune.device.inference.generation.sampling import MAX_ALTERNATIVES, Sampling
from privtune.shared.errors import DataInvalid
from privtune.shared.validation import half_character

# Fields without effect on the answer.
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
}
# Values that ask for nothing but the default.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1, "1"),
    "echo": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "text": ({"format": {"type": "text"}}, {}),
    "truncation": ("disabled", "auto"),
    "reasoning": ({}, {"effort": "none"}),
    "background": (False,),
    "web_search_options": ({},),
}
# Fields of an earlier message that say nothing more to this model, and what others may hold.
_MESSAGE_HARMLESS = {"name", "reasoning_content", "reasoning", "annotations", "refusal", "audio"}
_MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = {"tool_calls": ([],), "function_call": ({},)}
MAX_QUESTIONS, MAX_ANSWERS = 64, 16  # of a request; to a prompt
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class SupportedRequest(BaseModel):
    """A request whose other fields ask for nothing that is not supported."""

    model_config = ConfigDict(extra="allow")

    model: str

    @model_validator(mode="before")
    @classmethod
    def _only_whole_characters(cls, fields: Any) -> Any:
        """Refuse half of a character wherever it is: no tokenizer takes it, and no answer can repeat it."""
        if isinstance(fields, dict) and (problem := half_character(json.dumps(fields, ensure_ascii=False))) is not None:
            raise ValueError(f"the request has {problem.partition(',')[0]}); send the character whole")
        return fields

    @model_validator(mode="after")
    def _only_what_is_supported(self) -> Self:
        """Refuse unsupported fields, unless they ask for nothing."""
        for name, value in (self.model_extra or {}).items():
            if name in _HARMLESS or value is None or value in _NEUTRAL.get(name, ()):
                continue
            raise ValueError(f"{name} is not supported by this endpoint")
        return self


class GenerationRequest(SupportedRequest):
    """A request for generated text."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions = StreamOptions()
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    max_tokens: int | None = Field(None, ge=1)

    @field_validator("stream_options", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return value or {}

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens to generate."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to name beside each that is written; None: no log probabilities are wanted."""
        return None

    def sampling(self) -> Sampling:
        """How the answer is sampled; OpenAI's default temperature is 1, and a top_p of 0 leaves one token."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_new_tokens=self.limit,
            temperature=0.0 if self.top_p == 0 else 1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(self.top_k or 0, 0),
            seed=self.seed,
            stop=tuple(stop for stop in stops if stop),
            alternatives=self.alternatives,
        )


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @model_validator(mode="after")
    def _only_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def alternatives(self) -> int | None:
        """See `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens to generate."""
        return self.max_completion_tokens or self.max_tokens

    def conversation(self) -> tuple[ChatMessage, ...]:
        """The messages as the chat template expects them."""
        return conversation_of(self.messages, "messages")


def conversation_of(messages: Sequence[dict[str, Any]], param: str) -> tuple[ChatMessage, ...]:
    """Messages of a request, whose field is `param`, as the chat template expects them. Raises DataInvalid."""
    plain = [_plain(message) for message in messages]
    said = [message for message in plain if not (message.get("role") == "system" and _nothing(message))]
    try:
        return parse_messages(said, param, empty_answers=True)
    except DataInvalid as error:
        raise type(error)(error.message, param=param) from None


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message in the words of `parse_messages`, without what says nothing more."""
    kept = {
        name: value
        for name, value in message.items()
        if name not in _MESSAGE_HARMLESS and value not in _MESSAGE_NEUTRAL.get(name, ())
    }
    return kept | {"role": "system"} if kept.get("role") == "developer" else kept


def _nothing(message: dict[str, Any]) -> bool:
    """Whether a message has no text: clients send an empty system message where their user set none."""
    content = message.get("content")
    return not content or (isinstance(content, str) and not content.strip())


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str] | Ids | list[Ids]
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @field_validator("logprobs", mode="before")
    @classmethod
    def _none_for_false(cls, value: Any) -> Any:
        return None if value is False else value

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts) * (self.n or 1) > MAX_QUESTIONS:
            raise ValueError(f"prompts times n are at most {MAX_QUESTIONS}")
        return self

    @property
    def alternatives(self) -> int | None:
        """See `GenerationRequest`."""
        return self.logprobs

    @field_validator("prompt")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if not 0 < len(_several(value)) <= MAX_QUESTIONS:
            raise ValueError(f"give one to {MAX_QUESTIONS} prompts")
        return value

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts in order, as texts or as this model's token ids."""
        found: list[str] | list[list[int]] = _several(self.prompt)
        return found


class EmbeddingRequest(SupportedRequest):
    """`POST /v1/embeddings`."""

    input: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = "float"

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """The texts in order, as texts or as this model's token ids."""
        found: list[str] | list[list[int]] = _several(self.input)
        return found


def _several(value: Any) -> Any:
    """One text, or the ids of one, as a list of one."""
    return [value] if isinstance(value, str) or (value and isinstance(value[0], int)) else value
