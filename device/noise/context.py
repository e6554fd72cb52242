"""What a mechanism may know of the model: public facts only, worked out when first asked for.

Nothing here sees private text. B records, T tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from device.noise.base import Injection
from shared.errors import InvalidInput, NonFinite

_NOT_A_WORD = re.compile(r"^(\[unused\d+\]|<unused\d+>|<0x[0-9A-Fa-f]{2}>|<\|.*\|>|<[/a-z_]+>|\[[A-Z]+\])?$")
_ROW = 16
_SAMPLE_ROWS = 64


class BottomLike(Protocol):
    """The part of `shared.modeling.partition.Bottom` that is needed here."""

    @property
    def embedding_VD(self) -> Tensor:
        """The input embedding of each id."""

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ids, mask -> h_BTD at the cut."""

    def embed(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ids, mask -> input of block 0, positions included."""


@dataclass
class NoiseContext:
    """hidden_size: D; cut, model_fingerprint: name the injection point in fingerprints; tokens: text of each id;
    special_ids: never replaced, never a neighbour; public_rows: token ids of PUBLIC texts, if the owner named any.
    """

    bottom: BottomLike
    hidden_size: int
    cut: int
    model_fingerprint: str
    tokens: Sequence[str]
    special_ids: frozenset[int]
    public_rows: Sequence[Sequence[int]] = field(default_factory=tuple)

    @classmethod
    def for_model(
        cls,
        bottom: BottomLike,
        tokenizer: Any,
        *,
        hidden_size: int,
        cut: int,
        model_fingerprint: str,
        public_texts: Sequence[str] = (),
    ) -> NoiseContext:
        """From a bottom and its Hugging Face tokenizer."""
        size = int(bottom.embedding_VD.shape[0])
        tokens = [""] * size
        for token, index in tokenizer.get_vocab().items():
            if index < size:
                tokens[index] = token
        return cls(
            bottom=bottom,
            hidden_size=hidden_size,
            cut=cut,
            model_fingerprint=model_fingerprint,
            tokens=tokens,
            special_ids=frozenset(tokenizer.all_special_ids),
            public_rows=[tokenizer(text, truncation=True, max_length=128)["input_ids"] for text in public_texts],
        )

    @cached_property
    def usable_ids(self) -> Tensor:
        """Ids that stand for text: no special, unused or byte ids. Int64, sorted."""
        keep = [
            i for i, token in enumerate(self.tokens) if i not in self.special_ids and not _NOT_A_WORD.fullmatch(token)
        ]
        if not keep:
            raise InvalidInput("the tokenizer has no ordinary tokens, so the noise can't be scaled to the model")
        return torch.tensor(keep, dtype=torch.int64)

    @torch.no_grad()
    def states(self, ids_BT: Tensor, injection: Injection) -> Tensor:
        """Clean vectors of full rows of ids at the injection point, float32."""
        mask_BT = torch.ones_like(ids_BT)
        run = self.bottom.embed if injection == "embedding" else self.bottom
        return run(ids_BT, mask_BT).to(torch.float32)

    def typical_norm(self, injection: Injection) -> float:
        """Median length of a vector at the injection point over public rows (or rows of spread-out ids).

        Noise and clipping are set relative to it, so a bottom whose scale was rigged can't drown the noise.
        """
        return self._typical_norms[injection]

    @cached_property
    def _typical_norms(self) -> _Lazy:
        return _Lazy(self)

    def sample_rows(self) -> list[Tensor]:
        """A few public rows: of the public texts if there are any, else of ids spread over the vocabulary."""
        if self.public_rows:
            return [torch.tensor([list(row)]) for row in self.public_rows[:_SAMPLE_ROWS] if len(row)]
        usable = self.usable_ids
        picks = torch.linspace(0, len(usable) - 1, _ROW * _SAMPLE_ROWS).round().long()
        # A stride that is coprime with the count mixes rare and frequent ids in each row.
        order = (torch.arange(len(picks)) * 389) % len(picks)
        return [usable[picks[order]].view(_SAMPLE_ROWS, _ROW)]

    def neighbour_distances(self, count: int = 512, neighbours: int = 10) -> NDArray[np.float64]:
        """L2 distances of `count` spread-out usable ids to their nearest (centred cosine) ids, at the embedding.

        Measured with every id at the same reference position; shape (count, neighbours).
        """
        table_UD = self.embedding_states()
        centred_UD = torch.nn.functional.normalize(table_UD - table_UD.mean(dim=0), dim=-1)
        total = len(table_UD)
        if total < 2:
            raise InvalidInput("a vocabulary of one token has no neighbours")
        picks = torch.linspace(0, total - 1, min(count, total)).round().long()
        similar = centred_UD[picks] @ centred_UD.T
        similar[torch.arange(len(picks)), picks] = -2.0
        near = similar.topk(min(neighbours, total - 1), dim=-1).indices
        distances: NDArray[np.float64] = (table_UD[picks].unsqueeze(1) - table_UD[near]).norm(dim=-1).double().numpy()
        return distances

    def embedding_states(self) -> Tensor:
        """Input of block 0 for every usable id, each at position 1 of a two-token row; float32, (U, D)."""
        ids = self.usable_ids
        parts = [self.states(torch.stack([part, part], dim=1), "embedding")[:, 1] for part in torch.split(ids, 4096)]
        return torch.cat(parts)


class _Lazy(dict[Injection, float]):
    def __init__(self, context: NoiseContext) -> None:
        super().__init__()
        self._context = context

    def __missing__(self, injection: Injection) -> float:
        rows = [self._context.states(ids_BT, injection).flatten(0, 1) for ids_BT in self._context.sample_rows()]
        norm = float(torch.cat(rows).norm(dim=-1).median())
        if not (np.isfinite(norm) and norm > 0):
            raise NonFinite(
                "the model's bottom gives NaN, infinity or only zeros on ordinary tokens; check its weights"
            )
        self[injection] = norm
        return norm
