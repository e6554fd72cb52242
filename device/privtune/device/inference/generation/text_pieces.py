"""Token ids to text, piece by piece: whole characters only, the true words for surrogates, nothing of a stop text.

`tokenizers.decoders.DecodeStream` does the first half, but never returns a character that is still incomplete when the
answer ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privtune.device.surrogates.surrogate_map import SurrogateMap

# Tokens of the prompt that decide how the first new one is written (a leading space).
CONTEXT = 6
_BROKEN = "�"  # a character whose last bytes are still to come


class TextPieces:
    """What new tokens add to a text.

    stop: texts that end it; they are looked for among the true words.
    surrogates: what restores the true words; None where nothing was replaced.
    stopped: whether one of them came.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str], surrogates: SurrogateMap | None = None
    ) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._restorer = None if surrogates is None else surrogates.restorer()
        self._ids = list(prompt[-CONTEXT:])
        self._done, self._read = 0, len(self._ids)
        self._held = ""  # may be the beginning of a stop text
        self.stopped = False

    def push(self, token: int) -> str:
        """The further text that may be shown with `token`; empty while a character or a stop text may be incomplete."""
        self._ids.append(token)
        before = self._decode(self._ids[self._done : self._read])
        after = self._decode(self._ids[self._done :])
        if len(after) <= len(before) or after.endswith(_BROKEN):
            return ""
        self._done, self._read = self._read, len(self._ids)
        new = after[len(before) :]
        return self._released(new if self._restorer is None else self._restorer.push(new))

    def finish(self) -> str:
        """What was held back; nothing follows it."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._done : self._read])
        rest = self._decode(self._ids[self._done :])[len(before) :]
        if self._restorer is not None:
            rest = self._restorer.push(rest) + self._restorer.finish()
        rest = self._released(rest)
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _released(self, new: str) -> str:
        text = self._held + new
        ends = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            self._held, self.stopped = "", True
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
