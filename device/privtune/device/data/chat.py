"""Conversations to text by a chat template that is not trusted.

The template is a program that comes with the model, from the cloud. A hostile one could repeat each text, with a fresh
draw of noise for each copy, or encode it in the number of tokens, which the cloud sees. So a template never gets a
text: it is rendered (in the sandbox of transformers) with placeholders, each of which must appear exactly once, and the
texts are put in their places. All it can depend on is the order of the roles. What the assistant learns is found the
same way: from the end of a prompt for an answer, over the placeholder, to the special token that closes the turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from privtune.device.data.messages import ChatMessage
from privtune.shared.errors import DataInvalid, ModelUnsupported

INSTEAD = "Give a template with --chat-template FILE, or the data as prompt and completion."
# White space that no template writes: if it is missing from the output, the template trims the texts.
_PAD = "\x0b"
_CLOCK = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>[^'\"\\]*)(?P=quote)\s*\)")
Roles = tuple[str, ...]
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Hole:
    """The place of one message's text.

    message: its number.
    before: what the template writes between the previous hole and this one.
    trim_left, trim_right: the template strips white space there.
    opening: characters at the end of `before` that the assistant writes itself, for example an empty thought.
    closing: characters after the hole that end the turn, up to the first special token; 0 where none does.
    """

    message: int
    before: str
    trim_left: bool
    trim_right: bool
    opening: int = 0
    closing: int = 0


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a template writes for a conversation with these roles, without its texts."""

    holes: tuple[Hole, ...]
    after: str


class ChatTemplate:
    """A chat template and the tokenizer whose special tokens it writes.

    Raises:
        ModelUnsupported: it can't be rendered, or does not write each text exactly once.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer, self._source = tokenizer, source
        self._frames: dict[tuple[Roles, bool], Frame] = {}
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(text) for text in longest_first) or "(?!)")
        try:
            self.frame(("user", "assistant"))
        except DataInvalid as error:
            raise ModelUnsupported(f"The chat template can't be used: {error.message} {INSTEAD}") from None

    def render(self, messages: Sequence[ChatMessage], *, prompt: bool = False) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans of the learned answers in it (characters, end excluded).

        prompt: end with what prompts the assistant to answer.

        Raises:
            DataInvalid: the template refuses these roles in this order, or leaves a message out.
        """
        frame = self.frame(tuple(message.role for message in messages), prompt=prompt)
        text, spans = "", []
        for hole in frame.holes:
            message = messages[hole.message]
            text += hole.before
            start = len(text) - hole.opening
            content = message.content.lstrip() if hole.trim_left else message.content
            text += content.rstrip() if hole.trim_right else content
            if message.learned:
                spans.append((start, len(text) + hole.closing))
        return text + frame.after, spans

    def frame(self, roles: Roles, *, prompt: bool = False) -> Frame:
        """The frame for an order of roles, made once. Raises DataInvalid as `render`."""
        if (roles, prompt) not in self._frames:
            self._frames[roles, prompt] = self._build(roles, prompt)
        return self._frames[roles, prompt]

    def _build(self, roles: Roles, prompt: bool) -> Frame:
        text = self._rendered(roles, prompt)
        found = []
        for number in range(len(roles)):
            nonce = _nonce(number)
            if text.count(nonce) != 1:
                how = "leaves out" if nonce not in text else "repeats"
                raise DataInvalid(f"it {how} or changes message {number + 1} of a conversation {_roles_text(roles)}.")
            start = text.index(nonce)
            end = start + len(nonce)
            left, right = text[start - 1 : start] == _PAD, text[end : end + 1] == _PAD
            found.append((start - left, end + right, number, not left, not right))
        holes: list[Hole] = []
        done = 0
        for start, end, number, trim_left, trim_right in sorted(found):
            holes.append(
                Hole(
                    message=number,
                    before=text[done:start],
                    trim_left=trim_left,
                    trim_right=trim_right,
                    opening=self._opening(roles, number, text, start),
                    closing=self._closing(text[end:]),
                )
            )
            done = end
        after = text[done:]
        if any(_PAD in hole.before for hole in holes) or _PAD in after:
            raise DataInvalid(f"it changes a message of a conversation {_roles_text(roles)}.")
        if not prompt and roles[-1] == "assistant" and not holes[-1].closing:
            # Nothing marks the end of the last answer, so the model would never learn to stop.
            after += self._tokenizer.eos_token or ""
            holes[-1] = replace(holes[-1], closing=len(after))
        return Frame(holes=tuple(holes), after=after)

    def _opening(self, roles: Roles, number: int, text: str, start: int) -> int:
        """How much of the text before an answer the model writes itself: what a prompt for this answer lacks."""
        if roles[number] != "assistant" or number == 0:
            return 0
        asked = self._rendered(roles[:number], True)
        return start - len(asked) if text.startswith(asked) and len(asked) <= start else 0

    def _closing(self, rest: str) -> int:
        """Length up to and including the first special token, if it comes before the next text; else 0."""
        found = self._special.search(rest.split(_PAD)[0].split(_NONCE)[0])
        return found.end() if found else 0

    def _rendered(self, roles: Roles, prompt: bool) -> str:
        messages = [{"role": role, "content": f"{_PAD}{_nonce(at)}{_PAD}"} for at, role in enumerate(roles)]
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._source, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a program of the other side may raise anything
            line = "".join(char if char.isprintable() else " " for char in str(error))[:120]
            raise DataInvalid(f"it refuses a conversation {_roles_text(roles)}: {line}.") from None
        return text


_NONCE = "privtune-text-"


def _nonce(number: int) -> str:
    return f"{_NONCE}{number:05}"


def _roles_text(roles: Roles) -> str:
    shown = ", ".join(roles[:6])
    return f"({shown}{', ...' if len(roles) > 6 else ''})"


def template_source(tokenizer: Any, file_text: str | None, today: datetime) -> str:
    """The owner's own template or the tokenizer's, with the clock stopped: a resumed job renders the same texts.

    Raises:
        ModelUnsupported: there is none, or it reads the clock in a way that can't be stopped.
    """
    found = file_text if file_text is not None else tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str) or not found.strip():
        raise ModelUnsupported(f"This model's tokenizer has no chat template, so it can't read messages. {INSTEAD}")
    stopped = _CLOCK.sub(lambda call: repr(today.strftime(call["format"])), found)
    if "strftime_now(" in stopped:
        raise ModelUnsupported(f"The chat template reads the clock in a way that can't be stopped. {INSTEAD}")
    return stopped
