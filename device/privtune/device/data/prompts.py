"""The form in which a language model reads a text: plain, prompt and completion, or a conversation in a chat template.

The form belongs to the tuned model: later prompts must be written as training wrote them. A job keeps its form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from privtune.device.data.chat import ChatTemplate, template_source
from privtune.device.data.messages import ChatMessage
from privtune.device.data.records import Record, Records
from privtune.shared.errors import DataInvalid, InvalidInput
from privtune.shared.plain_text import read_text

_PLAIN: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}


@dataclass(frozen=True, kw_only=True)
class PromptForm:
    """How a job's records became token sequences.

    kind: plain texts, prompts with completions, or conversations.
    joint: what most records have between a prompt that ends without white space and its completion.
    template: chat template (Jinja), its clock stopped on the day that the job began.
    """

    kind: Literal["text", "prompt", "chat"]
    joint: str = ""
    template: str | None = None


def form_of(records: Records, tokenizer: Any, chat_template: str | None = None) -> PromptForm:
    """The form of a data set for a tokenizer.

    Args:
        records: from `DataSource.load("causal-lm")`.
        tokenizer: a Hugging Face tokenizer.
        chat_template: a file with the owner's own template; None: the tokenizer's.

    Raises:
        ModelUnsupported: conversations, but no usable chat template.
        DataInvalid: the file can't be read.
    """
    if records.columns.messages is not None:
        own = None if chat_template is None else read_text(Path(chat_template))
        source = template_source(tokenizer, own, datetime.now(UTC))
        ChatTemplate(tokenizer, source)
        return PromptForm(kind="chat", template=source)
    if records.columns.prompt is None:
        return PromptForm(kind="text")
    joined = sum(bool(joint_of(record)) for record in records)
    return PromptForm(kind="prompt", joint="\n" if 2 * joined > len(records) else "")


def joint_of(record: Record) -> str:
    """The line break that separates a prompt from its completion, unless white space does."""
    return "" if (record.prompt or "")[-1:].isspace() or record.text[:1].isspace() else "\n"


def prompt_ids(form: PromptForm, tokenizer: Any, prompt: str | Sequence[ChatMessage]) -> list[int]:
    """The token ids that the model continues, written exactly as in training.

    Args:
        form: the job's.
        tokenizer: the job's.
        prompt: a text, or messages for a job that was trained on conversations; there, a text is the only message.

    Raises:
        InvalidInput: messages for a job that was not trained on conversations, or an order of roles that the template
            refuses.
    """
    if form.kind == "chat":
        messages = [ChatMessage("user", prompt)] if isinstance(prompt, str) else list(prompt)
        try:
            text, _ = chat_template(form, tokenizer).render(messages, prompt=True)
        except DataInvalid as error:
            raise InvalidInput(f"The chat template can't render these messages: {error.message}") from None
        ids: list[int] = tokenizer(text, add_special_tokens=False, **_PLAIN)["input_ids"]
        return ids
    if not isinstance(prompt, str):
        raise InvalidInput("This model was not trained on conversations: give one text, or train with messages.")
    joint = "" if not prompt or prompt[-1:].isspace() else form.joint
    return opened(tokenizer, [prompt + joint])[0]


def opened(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of prompts with the tokenizer's opening tokens and without its closing one."""
    eos = tokenizer.eos_token_id
    batch: list[list[int]] = tokenizer(list(prompts), **_PLAIN)["input_ids"]
    return [ids[:-1] if ids and ids[-1] == eos else ids for ids in batch]


def chat_template(form: PromptForm, tokenizer: Any) -> ChatTemplate:
    """The template of a chat form, ready to render. Raises InvalidInput for another form."""
    if form.template is None:
        raise InvalidInput("This job has no chat template: it was not trained on conversations.")
    return ChatTemplate(tokenizer, form.template)
