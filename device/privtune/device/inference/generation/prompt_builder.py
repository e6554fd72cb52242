"""Prompts to token ids, with surrogates for what identifies, and where an answer ends.

Chat templates are the cloud's: see `privtune.device.data.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from privtune.device.data.chat import template_source
from privtune.device.data.messages import ChatMessage
from privtune.device.data.prompts import PromptForm, chat_template, prompt_ids
from privtune.device.surrogates.surrogate_map import SurrogateMap
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.errors import InvalidInput, ModelUnsupported
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.validation import half_character
from privtune.shared.wording import counted

Prompt = str | Sequence[ChatMessage] | Sequence[int]  # a text, a conversation, or token ids
PLAIN = PromptForm(kind="text")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt as it leaves.

    ids: its token ids.
    surrogates: what restores the answer to it; None where nothing was replaced.
    """

    ids: list[int]
    surrogates: SurrogateMap | None = None


def leaving(prompt: Prompt, surrogates: Surrogates | None) -> tuple[Prompt, SurrogateMap | None]:
    """A prompt with surrogates for what identifies, one map for all of its turns, and that map.

    Raises InvalidInput for token ids, in which nothing can be found.
    """
    if surrogates is None:
        return prompt, None
    if isinstance(prompt, str):
        known = surrogates.conversation([prompt])
        return known.replace(prompt), known
    messages = [one for one in prompt if isinstance(one, ChatMessage)]
    if len(messages) < len(prompt):
        raise InvalidInput(
            "this job replaces what identifies, and can't find it in token ids; send the text instead", param="prompt"
        )
    asked = next((place for place, message in enumerate(messages) if message.role == "user"), len(messages))
    known = surrogates.conversation([message.content for message in messages], opening=asked + 1)
    return [replace(message, content=known.replace(message.content)) for message in messages], known


class Prompts:
    """Writes prompts as the model saw them in training.

    form: of the job's records.
    surrogates: the job's; None where texts leave as they are.
    """

    def __init__(self, package: BottomPackage, form: PromptForm | None, surrogates: Surrogates | None = None) -> None:
        self._package, self._form, self._surrogates = package, form or PLAIN, surrogates

    def asked(self, prompt: Prompt, *, raw: bool = False) -> Asked:
        """Token ids of a text or of messages, with the job's surrogates; ids stay as they are.

        raw: the text without the job's form or template.

        Raises:
            InvalidInput: the prompt is empty, has half of a character or is over the context length, the job's form
                has no place for messages, or its surrogates none for token ids.
            ModelUnsupported: the tokenizer is not this model's.
        """
        if isinstance(prompt, str) and (problem := half_character(prompt)) is not None:
            raise InvalidInput(f"the prompt has {problem}; write it whole", param="prompt")
        given, surrogates = leaving(prompt, self._surrogates)
        ids = self._written(given, raw)
        if not ids:
            raise InvalidInput("the prompt is empty: the tokenizer finds no token in it", param="prompt")
        self._package.check_ids([ids])
        limit = self._package.max_positions
        if limit is not None and len(ids) >= limit:
            raise InvalidInput(
                f"the prompt has {counted(len(ids), 'token')}, and this model reads and writes at most {limit}; "
                "shorten it",
                param="prompt",
            )
        return Asked(ids=ids, surrogates=surrogates)

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt, as it leaves, leaves room for an answer."""
        limit = self._package.max_positions
        return limit is None or len(self._written(prompt, raw=False)) < limit

    def newest(self, history: Sequence[ChatMessage], new_tokens: int) -> list[ChatMessage]:
        """The newest turns of question and answer that leave room for an answer; at least the last message.

        new_tokens: longest answer; no more than half of the context is kept free for it.
        """
        kept, limit = list(history), self._package.max_positions
        while limit is not None and len(kept) > 2:
            if len(self._written(leaving(kept, self._surrogates)[0], raw=False)) + min(new_tokens, limit // 2) <= limit:
                break
            kept = kept[2:]
        return kept

    def room(self, prompt: Sequence[int]) -> int | None:
        """Tokens that may follow a prompt; None: no bound."""
        limit = self._package.max_positions
        return None if limit is None else limit - len(prompt)

    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the model's own, and what closes the assistant's turn in the job's template."""
        if self._form.kind != "chat":
            return self._package.end_ids
        frame = chat_template(self._form, self._package.tokenizer).frame(("user", "assistant"))
        closing = frame.after[: frame.holes[-1].closing]
        ids = self._package.tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
        return self._package.end_ids | frozenset(ids[-1:])

    def _written(self, prompt: Prompt, raw: bool) -> list[int]:
        tokenizer = self._package.tokenizer
        if isinstance(prompt, str):
            return prompt_ids(PLAIN if raw else self._form, tokenizer, prompt)
        given = [one for one in prompt if isinstance(one, int)]
        if given:
            return self._known(given)
        prompt = [one for one in prompt if not isinstance(one, int)]
        if self._form.kind == "prompt" and [message.role for message in prompt] == ["user"]:
            return prompt_ids(self._form, tokenizer, prompt[0].content)
        if self._form.kind == "text" and tokenizer.chat_template:
            source = template_source(tokenizer, None, datetime.now(UTC))
            return prompt_ids(replace(PLAIN, kind="chat", template=source), tokenizer, prompt)
        return prompt_ids(self._form, tokenizer, prompt)

    def _known(self, ids: list[int]) -> list[int]:
        try:
            self._package.check_ids([ids])
        except ModelUnsupported:
            raise InvalidInput(
                "a token id is not in this model's vocabulary; send text, or the ids of this model's own tokenizer",
                param="prompt",
            ) from None
        return ids
