"""Requests in OpenAI's words. A field that would change an answer and is not supported is refused, not ignored."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from privtune.device.data.messages import ChatMessage, parse_messages
from privtune.device.data.plain_text import half_character
from privtune.device.inference.generation.sampling import Sampling
from privtune.shared.errors import DataInvalid

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
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "dimensions": (),
}


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
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)

    @field_validator("stream_options", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return value or {}

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens to generate."""
        return self.max_tokens

    def sampling(self) -> Sampling:
        """How the answer is sampled; OpenAI's default temperature is 1."""
        return Sampling(
            max_new_tokens=self.limit,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=self.seed,
            stop=tuple([self.stop] if isinstance(self.stop, str) else self.stop or []),
        )


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens to generate."""
        return self.max_completion_tokens or self.max_tokens

    def conversation(self) -> tuple[ChatMessage, ...]:
        """The messages as the chat template expects them."""
        plain = [{k: v for k, v in message.items() if k != "name"} for message in self.messages]
        renamed = [m | {"role": "system"} if m.get("role") == "developer" else m for m in plain]
        try:
            return parse_messages(renamed, "messages")
        except DataInvalid as error:
            raise type(error)(error.message, param="messages") from None


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str]

    @field_validator("prompt")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if not 0 < len([value] if isinstance(value, str) else value) <= 64:
            raise ValueError("give one to 64 prompts")
        return value

    @property
    def prompts(self) -> list[str]:
        """The prompts in order."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(SupportedRequest):
    """`POST /v1/embeddings`."""

    input: str | list[str] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def texts(self) -> list[str]:
        """The texts in order."""
        return [self.input] if isinstance(self.input, str) else self.input
