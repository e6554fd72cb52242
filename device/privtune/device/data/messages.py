"""Conversations in OpenAI's fine-tuning format: `messages` with role, content and, for answers, weight 0 or 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privtune.shared.errors import DataInvalid
from privtune.shared.plain_text import whole

ROLES = ("system", "user", "assistant")
_KEYS = ("role", "content", "weight")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn. learned: the loss counts it; only answers of the assistant are learned."""

    role: str
    content: str
    learned: bool = False


def parse_conversation(cell: object, where: str) -> tuple[ChatMessage, ...]:
    """The conversation up to the last learned answer: what follows teaches nothing and need not be sent.

    Args:
        cell: a list of objects, as JSON gives it.
        where: the place of the cell, for error messages.

    Raises:
        DataInvalid: not a list of messages, an unknown role or key, an empty content, or no answer to learn.
    """
    messages = parse_messages(cell, where)
    learned = [number for number, message in enumerate(messages) if message.learned]
    if not learned:
        raise DataInvalid(f"{where}: no assistant message to learn from (weight 0 leaves one out).")
    return messages[: learned[-1] + 1]


def parse_messages(cell: object, where: str, *, empty_answers: bool = False) -> tuple[ChatMessage, ...]:
    """All messages, at least one. Raises DataInvalid as `parse_conversation`.

    empty_answers: an answer of the assistant may be empty, as in the conversation so far.
    """
    if not isinstance(cell, Sequence) or isinstance(cell, str | bytes) or not cell:
        raise DataInvalid(f'{where}: a list of messages like {{"role": "user", "content": "..."}} is expected.')
    return tuple(
        _message(entry, f"{where}, message {number}", empty_answers) for number, entry in enumerate(cell, start=1)
    )


def _message(entry: object, where: str, empty_answers: bool) -> ChatMessage:
    if not isinstance(entry, dict):
        raise DataInvalid(f"{where}: an object with role and content is expected, not a {type(entry).__name__}.")
    given = {key: value for key, value in entry.items() if value is not None}
    unknown = sorted(str(key) for key in given.keys() - set(_KEYS))
    if unknown:
        raise DataInvalid(f'{where}: "{unknown[0]}" can\'t be trained on; a message has {", ".join(_KEYS)}.')
    role = given.get("role")
    if role not in ROLES:
        raise DataInvalid(f"{where}: the role must be one of {', '.join(ROLES)}.")
    weight = given.get("weight", 1)
    if "weight" in given and role != "assistant":
        raise DataInvalid(f"{where}: only a message of the assistant may have a weight.")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataInvalid(f"{where}: the weight must be 0 or 1.")
    content = given.get("content")
    if empty_answers and role == "assistant" and content in (None, "", []):
        return ChatMessage(role=role, content="")
    return ChatMessage(role=role, content=_content(content, where), learned=role == "assistant" and weight == 1)


def _content(content: object, where: str) -> str:
    """A text; a list of text parts is joined."""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) != len(parts):
            raise DataInvalid(f"{where}: only parts of type text can be trained on.")
        content = "".join(texts)
    if not isinstance(content, str):
        raise DataInvalid(f"{where}: the content must be a text.")
    if not content.strip():
        raise DataInvalid(f"{where}: the content is empty. Remove the message or fill it in.")
    return whole(content, where)
