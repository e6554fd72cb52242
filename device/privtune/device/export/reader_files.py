"""What readers of an export need beside weights: the turns that training wrote, and keys that older readers know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privtune.device.data.prompts import PromptForm, chat_template
from privtune.shared.files import write_json


def carry_form(tokenizer: Any, form: PromptForm | None) -> None:
    """Give the tokenizer the chat template that training used, if it used one: other readers then write turns alike."""
    if form is not None and form.template is not None:
        tokenizer.chat_template = form.template


def turn_end(tokenizer: Any, form: PromptForm | None) -> int | None:
    """The token that closes the assistant's turn in the job's template; None where none does."""
    if form is None or form.template is None:
        return None
    frame = chat_template(form, tokenizer).frame(("user", "assistant"))
    closing = frame.after[: frame.holes[-1].closing]
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    return ids[-1] if ids else None


def end_turns(settings: Any, end: int) -> Any:
    """Let `generate` stop where the assistant's turn ends too. settings: a GenerationConfig, which is returned."""
    known = settings.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    settings.eos_token_id = list(dict.fromkeys([*known, end]))
    return settings


def suit_older_readers(folder: Path) -> None:
    """Write the names that transformers 4 and llama.cpp's converter read beside those of transformers 5."""
    _changed(folder / "tokenizer_config.json", _tokenizer_of_4)
    _changed(folder / "config.json", _rope_of_4)


def _tokenizer_of_4(config: dict[str, Any]) -> None:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # a mapping in 4; both read the other key's list
        config["additional_special_tokens"] = config.pop("extra_special_tokens")


def _rope_of_4(config: dict[str, Any]) -> None:
    """`rope_theta` and `rope_scaling` were keys of their own; left out, 4 silently takes 10000 and no scaling."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return
    config["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    if scaling.get("rope_type", "default") != "default":
        config["rope_scaling"] = scaling


def _changed(file: Path, change: Any) -> None:
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        change(config)
        write_json(file, config)
