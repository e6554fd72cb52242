"""From the logits of one position to the next token. Vocabulary V."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from privtune.shared.errors import InvalidInput

MAX_STOPS = 16
MAX_ALTERNATIVES = 20
# Below this, dividing logits by the temperature leaves the range of fp32, and only the likeliest token is left anyway.
LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is written. Raises InvalidInput for a value out of range.

    max_new_tokens: longest answer; None: 256, or what the context length leaves.
    temperature: 0, or below 1e-5, takes the likeliest token (greedy).
    top_p: draw from the likeliest tokens with this total probability; 1 turns it off.
    top_k: draw from this many likeliest tokens; 0 turns it off.
    seed: of the sampling, never of the noise; None: a fresh one.
    stop: texts at which the answer ends; they are left out of it.
    ignore_end: continue past the tokens that end a text.
    alternatives: note each token's log probability, and so many of the likeliest tokens; None: note nothing.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    alternatives: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InvalidInput("max_new_tokens must be at least 1", param="max_new_tokens")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 5):
            raise InvalidInput("temperature must be from 0 to 5", param="temperature")
        if not 0 < self.top_p <= 1:
            raise InvalidInput("top_p must be above 0 and at most 1", param="top_p")
        if self.top_k < 0:
            raise InvalidInput("top_k must be 0 (off) or more", param="top_k")
        if self.alternatives is not None and not 0 <= self.alternatives <= MAX_ALTERNATIVES:
            raise InvalidInput(f"alternatives takes 0 to {MAX_ALTERNATIVES} tokens", param="alternatives")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise InvalidInput(f"stop takes at most {MAX_STOPS} texts, none of them empty", param="stop")

    def again(self, time: int) -> Sampling:
        """For a further answer to the same prompt, which a seed must not make equal to the first."""
        return self if self.seed is None else replace(self, seed=(self.seed + time) % 2**63)


@dataclass(frozen=True, kw_only=True)
class Odds:
    """What the model said of a token that was written, before temperature and cuts, as OpenAI and vLLM have it.

    logprob: natural logarithm of its probability.
    likeliest: tokens and theirs, the likeliest first.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, token: int, logits_V: Tensor, count: int) -> Odds:
        """count: of the likeliest."""
        logprobs_V = logits_V.float().log_softmax(-1)
        best = logprobs_V.topk(min(count, len(logprobs_V)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return cls(token=token, logprob=float(logprobs_V[token]), likeliest=tuple(pairs))


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._greedy = sampling.temperature < LEAST_TEMPERATURE
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)
        self._warpers = LogitsProcessorList()
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def choose(self, logits_V: Tensor) -> int:
        """The next token id."""
        if self._greedy:
            return int(logits_V.argmax())
        chances_1V = self._warpers(None, logits_V[None]).softmax(-1)
        return int(torch.multinomial(chances_1V[0], 1, generator=self._random))
