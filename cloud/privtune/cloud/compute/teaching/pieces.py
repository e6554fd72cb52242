"""Public texts as pieces of at most so many tokens: long ones are cut, at sentence ends where there are any."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privtune.shared.errors import DataInvalid

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")
_AT_ONCE = 1000  # texts
_BUCKET = 20  # batches that are sorted by length together, which keeps padding small


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Token ids of each piece, and its text's class; `labels` None without labels."""

    ids: tuple[npt.NDArray[np.int32], ...]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens of all pieces."""
        return sum(map(len, self.ids))

    def pick(self, indices: npt.NDArray[np.int64]) -> Pieces:
        """The pieces at these places, in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return Pieces(ids=tuple(self.ids[index] for index in indices), labels=labels)

    def padded(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """ids_BT, padded with 0 on the right, and mask_BT (1 = real)."""
        chosen = [torch.from_numpy(self.ids[index].astype(np.int64)) for index in indices]
        lengths_B = torch.tensor([len(ids_T) for ids_T in chosen])
        ids_BT = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        return ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()

    def batches(self, size: int, seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
        """All pieces once, in shuffled batches of similar length: a function of the arguments alone."""
        rng = np.random.default_rng([seed, epoch])
        order, lengths = rng.permutation(len(self.ids)), np.array([len(ids_T) for ids_T in self.ids])
        batches = []
        for start in range(0, len(order), size * _BUCKET):
            bucket = order[start : start + size * _BUCKET]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
        return [batches[index] for index in rng.permutation(len(batches))]


def cut_into_pieces(
    tokenizer: Any,
    texts: Sequence[str],
    labels: npt.NDArray[np.int64] | None,
    *,
    max_length: int,
    most: int,
    seed: int,
) -> Pieces:
    """At most `most` pieces of the texts, which are read in a random order until there are enough.

    Raises DataInvalid where no text has a token.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    before, after = _around(tokenizer)
    room = max_length - len(before) - len(after)
    found: list[npt.NDArray[np.int32]] = []
    classes: list[int] = []
    for start in range(0, len(order), _AT_ONCE):
        chosen = order[start : start + _AT_ONCE]
        parts = [_SENTENCE_END.split(texts[index].strip()) for index in chosen]
        flat = [sentence for sentences in parts for sentence in sentences]
        encoded = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        for index, sentences in zip(chosen, parts, strict=True):
            for piece in _packed([next(encoded) for _ in sentences], room):
                found.append(np.array([*before, *piece, *after], dtype=np.int32))
                classes.append(-1 if labels is None else int(labels[index]))
        if len(found) >= most:
            break
    if not found:
        raise DataInvalid("the corpus has no text with a token that the model knows")
    return Pieces(ids=tuple(found[:most]), labels=None if labels is None else np.array(classes[:most]))


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after every text."""
    whole, inner = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    start = next(place for place in range(len(whole)) if whole[place : place + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


def _packed(sentences: list[list[int]], room: int) -> Iterator[list[int]]:
    """Whole sentences together while they fit; one that is too long by itself is cut."""
    piece: list[int] = []
    for sentence in sentences:
        if piece and len(piece) + len(sentence) > room:
            yield piece
            piece = []
        piece = piece + sentence
        whole = (len(piece) - 1) // room * room  # in one pass: a text may be one sentence of a gigabyte
        for start in range(0, whole, room):
            yield piece[start : start + room]
        piece = piece[whole:]
    if piece:
        yield piece
