"""A tokenizer as GGUF metadata: byte-level BPE and sentencepiece-like BPE, as llama.cpp reads them.

llama.cpp splits text by a named rule (`tokenizer.ggml.pre`), not by the expression in tokenizer.json. A tokenizer whose
expression has no such name is refused: a guessed rule would give other tokens than the model was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privtune.shared.errors import ModelUnsupported

_GPT2 = {"type": "ByteLevel", "use_regex": True}
_BYTES = {"type": "ByteLevel", "use_regex": False}
_BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}
# The expressions of tokenizer.json behind llama.cpp's names.
SPLITS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+": "llama-bpe",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+": "qwen2",
}


def copy_tokenizer(writer: Any, source: Path, template: str | None, turn_end: int | None) -> None:
    """Copy the tokenizer of another GGUF file, field by field.

    template, turn_end: replace its chat template and the token that ends a turn; None keeps what it has.
    """
    import gguf

    replaced = set()
    if template is not None:
        writer.add_chat_template(template)
        replaced.add(gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    if turn_end is not None:
        writer.add_eot_token_id(turn_end)
        replaced.add(gguf.Keys.Tokenizer.EOT_ID)
    for key, field in gguf.GGUFReader(source).fields.items():
        value = field.contents()
        if key.startswith("tokenizer.") and key not in replaced and value != []:
            writer.add_key_value(key, value, field.types[0], sub_type=field.types[1] if len(field.types) > 1 else None)


def write_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    """Write the fast tokenizer's vocabulary, merges and special tokens; ids above them are marked unused.

    Raises ModelUnsupported, with the reason, for a tokenizer that GGUF can't hold.
    """
    import gguf

    inner = json.loads(tokenizer.backend_tokenizer.to_str())
    if inner["model"]["type"] != "BPE":
        raise ModelUnsupported(
            f"A tokenizer of type {inner['model']['type']} can't be written as GGUF, only BPE; use --format merged."
        )
    pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
    tokens = [pieces.get(number, f"[PAD{number}]") for number in range(max(vocab_size, max(pieces) + 1))]
    if len(tokens) > vocab_size:
        raise ModelUnsupported(f"The tokenizer has {len(tokens)} tokens and the model {vocab_size}; not a match.")
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in inner["model"]["merges"]]
    sentencepiece = _is_sentencepiece(inner)
    _check_steps(inner, sentencepiece)
    if sentencepiece:
        if not _BYTE_TOKENS.issubset(tokens):  # llama.cpp 2024-08 ends with an exception when it loads such a file
            raise ModelUnsupported(
                "llama.cpp reads no sentencepiece-like tokenizer without tokens for single bytes; use --format merged."
            )
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_prefixes_space(inner))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre(inner["pre_tokenizer"]))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    if sentencepiece:
        writer.add_token_scores(_scores(tokens, merges))
    kinds = gguf.TokenType
    special = {token["id"]: token["special"] for token in inner["added_tokens"]}
    types = [kinds.NORMAL if number in pieces else kinds.UNUSED for number in range(len(tokens))]
    for number, piece in enumerate(tokens):
        if sentencepiece and piece in _BYTE_TOKENS:
            types[number] = kinds.BYTE
        elif number in special:
            types[number] = kinds.CONTROL if special[number] else kinds.USER_DEFINED
    if sentencepiece and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = kinds.UNKNOWN
    writer.add_token_types(types)
    _write_special(writer, tokenizer)


def _write_special(writer: Any, tokenizer: Any) -> None:
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _check_steps(inner: dict[str, Any], sentencepiece: bool) -> None:
    """Refuse changes to the text, and affixes of pieces, that llama.cpp does not apply."""
    rule = inner["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = {step["type"] for step in rule.get("normalizers", [rule])}
    strange = steps - ({"Prepend", "Replace"} if sentencepiece else {"NFC"})
    strange |= {key for key in ("continuing_subword_prefix", "end_of_word_suffix") if inner["model"].get(key)}
    if strange:
        raise ModelUnsupported(
            f"GGUF has no place for {', '.join(sorted(strange))} in a tokenizer; use --format merged."
        )


def _pre(rule: dict[str, Any] | None) -> str:
    """llama.cpp's name for the way a byte-level tokenizer splits text before the merges."""
    steps = rule["pretokenizers"] if rule and rule["type"] == "Sequence" else [rule or {"type": "none"}]
    if any(step.get("add_prefix_space") for step in steps):
        raise ModelUnsupported("GGUF has no name for a tokenizer that puts a space first; use --format merged.")
    shapes = [{key: step[key] for key in ("type", "use_regex") if key in step} for step in steps]
    if shapes == [_GPT2]:
        return "gpt-2"
    if shapes == [{"type": "Digits"}, _GPT2] and steps[0]["individual_digits"]:
        return "smollm"
    if shapes == [{"type": "Split"}, _BYTES] and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
        found = SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if found is not None:
            return found
    raise ModelUnsupported(
        "GGUF has no name for the way this tokenizer splits text; use --format merged, or a GGUF file as the base."
    )


def _is_sentencepiece(inner: dict[str, Any]) -> bool:
    return any("▁" in json.dumps(inner[part], ensure_ascii=False) for part in ("normalizer", "pre_tokenizer"))


def _prefixes_space(inner: dict[str, Any]) -> bool:
    normalizer = json.dumps(inner["normalizer"])
    metaspace = inner["pre_tokenizer"] or {}
    return '"Prepend"' in normalizer or metaspace.get("prepend_scheme") in ("always", "first")


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Sentencepiece merges the pair whose result has the highest score: minus the rank of its merge."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    return [-float(rank.get(token, len(merges))) for token in tokens]
