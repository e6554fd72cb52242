"""Log probabilities in OpenAI's shapes. They are computed here: the logits never leave this machine.

Tokens are as the model wrote them, so with surrogates they spell the surrogates, where the answer has the true words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privtune.device.inference.generation.sampling import Odds

Json = dict[str, Any]
_BROKEN = "\ufffd"  # a part of a character


class Logprobs:
    """Spells tokens. tokenizer: the model's."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def of_chat(self, odds: Sequence[Odds]) -> list[Json]:
        """One entry a token, as in chat completions and responses."""
        return [
            self._entry(one.token, one.logprob) | {"top_logprobs": [self._entry(*pair) for pair in one.likeliest]}
            for one in odds
        ]

    def of_text(self, odds: Sequence[Odds], offset: int) -> Json:
        """As in completions. offset: characters of the answer before these tokens."""
        tokens = [self._text(one.token) for one in odds]
        starts = [offset + sum(map(len, tokens[:place])) for place in range(len(tokens))]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in odds],
            # Of tokens that are spelled alike (parts of characters), the likeliest.
            "top_logprobs": [{self._text(token): odd for token, odd in reversed(one.likeliest)} for one in odds],
            "text_offset": starts,
        }

    def characters(self, odds: Sequence[Odds]) -> int:
        """That these tokens spell."""
        return sum(len(self._text(one.token)) for one in odds)

    def _entry(self, token: int, logprob: float) -> Json:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": None if _BROKEN in text else list(text.encode())}

    def _text(self, token: int) -> str:
        # Decoded alone, some tokenizers drop the space that a token begins with.
        text: str = self._tokenizer.decode([token, token], clean_up_tokenization_spaces=False)
        alone: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text[len(alone) :] if text.startswith(alone) else alone
