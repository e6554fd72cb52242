"""Records to token ids, without torch.

Legend: B records, T tokens, V vocabulary. Arrays here are per record: ids_T of int32, special tokens included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from privtune.device.data.prompts import PromptForm, chat_template, form_of, joint_of, opened
from privtune.device.data.records import Records
from privtune.device.data.source import class_numbers, training_labels
from privtune.shared.errors import DataInvalid

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
Tokens = tuple[IntArray, BoolArray]  # one record's ids_T, and which of them are predicted

_CHUNK = 1000  # records in one call of the tokenizer, to bound memory


@dataclass(frozen=True, kw_only=True)
class EncodedDataset:
    """Token ids of every record, with what the loss needs.

    ids: per record ids_T, int32, at least one token.
    labels: class number of each record, int64 (classification); None for causal LM.
    loss_masks: per record a boolean over its T tokens, True where that token is predicted (causal LM); never at 0.
    label_names: names in the order of the class numbers; empty for causal LM.
    truncated: number of records that were longer than the limit and lost their end.
    dropped: number of causal-LM records left out because truncation left nothing to predict.
    places: which of the encoded records each is, by its position among them; empty where there were no records.
    """

    ids: tuple[IntArray, ...]
    labels: npt.NDArray[np.int64] | None = None
    loss_masks: tuple[BoolArray, ...] | None = None
    label_names: tuple[str, ...] = ()
    truncated: int = 0
    dropped: int = 0
    places: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, order: npt.NDArray[np.int64]) -> EncodedDataset:
        """The records at these indices, in that order."""
        masks = self.loss_masks
        return replace(
            self,
            ids=tuple(self.ids[index] for index in order),
            labels=None if self.labels is None else self.labels[order],
            loss_masks=None if masks is None else tuple(masks[index] for index in order),
            places=tuple(self.places[index] for index in order) if self.places else (),
        )

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each record."""
        return np.array([len(ids_T) for ids_T in self.ids], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and labels (or loss masks). It identifies private text, so it stays on the device."""
        digest = hashlib.sha256(self.lengths.tobytes())
        for ids_T in self.ids:
            digest.update(ids_T.tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        for mask_T in self.loss_masks or ():
            digest.update(mask_T.tobytes())
        return digest.hexdigest()


def encode_classification(
    records: Records, tokenizer: Any, max_length: int, label_names: Sequence[str] | None = None
) -> EncodedDataset:
    """Texts (or pairs) and their class numbers.

    Args:
        records: from `DataSource.load("classification")`.
        tokenizer: a Hugging Face tokenizer; it adds its special tokens.
        max_length: tokens per record at most; longer records are cut (pairs: the longer half first) and counted.
        label_names: of the training set, for validation; None: taken from these records.

    Raises:
        DataInvalid: one label only, an unseen label, or a text without tokens.
    """
    names = tuple(label_names) if label_names is not None else training_labels(records)
    classes = class_numbers(records, names)
    ids, truncated = encode_texts(records, tokenizer, max_length)
    labels = np.array(classes, dtype=np.int64)
    places = tuple(range(len(ids)))
    return EncodedDataset(ids=ids, labels=labels, label_names=names, truncated=truncated, places=places)


def encode_texts(records: Records, tokenizer: Any, max_length: int) -> tuple[tuple[IntArray, ...], int]:
    """Token ids of texts or pairs, and how many were cut; for training and prediction. Raises DataInvalid."""
    all_ids: list[IntArray] = []
    truncated = 0
    for chunk in _chunks(records):
        texts = [record.text for record in chunk]
        pairs = [record.text2 or "" for record in chunk] if records.columns.text2 else None
        ids, cut = _tokenize(tokenizer, texts, pairs, max_length)
        all_ids += [np.array(one, dtype=np.int32) for one in ids]
        truncated += cut
    for record, ids_T in zip(records, all_ids, strict=True):
        if not len(ids_T):
            raise DataInvalid(f"{records.where(record, 'text')}: the tokenizer makes no token of this text.")
    return tuple(all_ids), truncated


def _tokenize(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[list[list[int]], int]:
    options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    batch = tokenizer(texts, pairs, truncation=True, max_length=max_length, **options)
    ids: list[list[int]] = batch["input_ids"]
    if batch.encodings is not None:  # fast tokenizers keep what they cut off
        return ids, sum(bool(encoding.overflowing) for encoding in batch.encodings)
    full = [index for index, one in enumerate(ids) if len(one) >= max_length]
    if not full:
        return ids, 0
    whole = tokenizer([texts[i] for i in full], [pairs[i] for i in full] if pairs else None, **options)["input_ids"]
    return ids, sum(len(one) > max_length for one in whole)


def encode_causal_lm(
    records: Records, tokenizer: Any, max_length: int, form: PromptForm | None = None
) -> EncodedDataset:
    """Token ids and loss masks for next-token prediction.

    Text: every token but the first is predicted, including the end-of-text token, which is appended. Prompt and
    completion: joined by a line break if neither has white space there; only the completion and the end-of-text token
    are predicted. Conversations: the chat template's text; the learned answers and what ends them are predicted. Texts
    longer than `max_length` lose their end; records without a predicted token left are dropped and counted.

    Args:
        records: from `DataSource.load("causal-lm")`.
        tokenizer: a fast Hugging Face tokenizer.
        max_length: tokens per record at most.
        form: the job's; None: that of these records.

    Raises:
        DataInvalid: every record was dropped, the chat template refuses a conversation, or exactly one of form and
            records is for conversations.
        ModelUnsupported: conversations, but no usable chat template.
    """
    form = form or form_of(records, tokenizer)
    if (form.kind == "chat") != (records.columns.messages is not None):
        wanted = "conversations" if form.kind == "chat" else "texts, or prompts and completions"
        raise DataInvalid(f"{records.source}: this model is tuned on {wanted}; give the same kind of data here.")
    all_ids: list[IntArray] = []
    masks: list[BoolArray] = []
    places: list[int] = []
    truncated = dropped = 0
    encode = _chats(form, tokenizer) if form.kind == "chat" else partial(_passages, tokenizer)
    for chunk in _chunks(records):
        for ids_T, mask_T in encode(chunk):
            truncated += len(ids_T) > max_length
            if not mask_T[:max_length].any():
                dropped += 1
                continue
            places.append(len(places) + dropped)
            all_ids.append(ids_T[:max_length])
            masks.append(mask_T[:max_length])
    if not all_ids:
        raise DataInvalid(
            f"{records.source}: no record has anything left to predict within {max_length} tokens. Raise --max-length."
        )
    return EncodedDataset(
        ids=tuple(all_ids), loss_masks=tuple(masks), truncated=truncated, dropped=dropped, places=tuple(places)
    )


def _passages(tokenizer: Any, chunk: Records) -> Iterator[Tokens]:
    """Texts, or prompts (with the tokenizer's opening tokens) and completions (with its closing one)."""
    eos = tokenizer.eos_token_id
    options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    if chunk.columns.prompt is None:
        prompts: list[list[int]] = [[] for _ in chunk]
        texts = tokenizer([record.text for record in chunk], **options)["input_ids"]
    else:
        prompts = opened(tokenizer, [(record.prompt or "") + joint_of(record) for record in chunk])
        texts = tokenizer([record.text for record in chunk], add_special_tokens=False, **options)["input_ids"]
    for prompt, text in zip(prompts, texts, strict=True):
        ended = text if eos is None or (text and text[-1] == eos) else [*text, eos]
        ids_T = np.array([*prompt, *ended], dtype=np.int32)
        yield ids_T, np.arange(len(ids_T)) >= max(len(prompt), 1)


def _chats(form: PromptForm, tokenizer: Any) -> Callable[[Records], Iterator[Tokens]]:
    template = chat_template(form, tokenizer)

    def encode(chunk: Records) -> Iterator[Tokens]:
        rendered = []
        for record in chunk:
            try:
                rendered.append(template.render(record.messages))
            except DataInvalid as error:
                raise DataInvalid(f"{chunk.where(record, 'messages')}: the chat template: {error.message}") from None
        batch = tokenizer(
            [text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for (_, spans), ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
            starts_T, ends_T = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            mask_T = np.zeros(len(ids), dtype=np.bool_)
            for start, end in spans:
                mask_T |= (ends_T > start) & (starts_T < end) & (ends_T > starts_T)
            mask_T[:1] = False
            yield np.array(ids, dtype=np.int32), mask_T

    return encode


def _chunks(records: Records) -> list[Records]:
    return [records.pick(range(start, min(start + _CHUNK, len(records)))) for start in range(0, len(records), _CHUNK)]
