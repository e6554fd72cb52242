"""What a mechanism may know of the model: public facts only, computed on first use.

Nothing here sees private text. B records, T tokens, D hidden width, V vocabulary, U usable ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privtune.device.noise.gaussian_noise import PURE, AggregateLaw
from privtune.shared.errors import InvalidInput, NonFinite

Injection = Literal["embedding", "cut"]
OnProgress = Callable[[str, float], None]  # what is being computed, and the share done

_NOT_A_WORD = re.compile(r"^(\[unused\d+\]|<unused\d+>|<0x[0-9A-Fa-f]{2}>|<\|.*\|>|<[/a-z_]+>|\[[A-Z]+\])?$")
_ROW = 16  # ids in a made-up row
_SAMPLE_ROWS = 64
_POSITIONS = 512
_MEASURED, _NEIGHBOURS = 512, 10  # ids whose distances to their nearest ids are measured
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # the table's first rows are for padding


class BottomLike(Protocol):
    """The part of `privtune.shared.modeling.partition.Bottom` that mechanisms need."""

    @property
    def embedding_VD(self) -> Tensor:
        """The input embedding of each id."""

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """h_BTD at the cut."""

    def embed(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The input of block 0, positions included; h_BTD."""


class NoisedCounts(Protocol):
    """Word counts of private records that may be used freely: their noise is accounted for on its own line."""

    def __call__(
        self, usable_ids: Tensor, epsilon: float, words: int, law: AggregateLaw = PURE
    ) -> tuple[NDArray[np.float64], float]:
        """counts_CU at `epsilon` per record of at most `words` different ids, and the variance of the noise."""

    def shares(self, usable_ids: Tensor, epsilon: float, words: int, law: AggregateLaw = PURE) -> Tensor:
        """share_N: how far each record can have moved the same counts, of the most that any could."""


class NoisedDirections(Protocol):
    """Class directions of private records that may be used freely: their noise is accounted for on its own line."""

    def __call__(self, context: NoiseContext, epsilon: float, law: AggregateLaw = PURE) -> Tensor:
        """directions_DC of unit length, at `epsilon` per record."""

    def shares(self, context: NoiseContext, epsilon: float, law: AggregateLaw = PURE) -> Tensor:
        """share_N: how far each record can have moved the same directions, of the most that any could."""


@dataclass
class NoiseContext:
    """The public side of a model, for mechanisms and their tables.

    bottom: the frozen blocks that run on the device.
    hidden_size: D.
    cut: number of blocks in the bottom.
    tokens: text of each id.
    special_ids: never replaced, never a neighbour; their places are public.
    longest: positions that the model has; None: 512, or fewer if the bottom's configuration says so.
    prefix, suffix: special ids before and after a text.
    public_rows: token ids of PUBLIC texts, if the owner named any.
    labelled_rows, labels: token ids and classes of public labelled texts or words.
    consistency: the pre-trained top on single vectors, (N, D) -> (N, K); set where the device has it.
    private_counts: in how many private records of each class an id occurs, already NOISED, where a job has them
        (`tables.private_counts`).
    private_means: directions between the class means of private records, already NOISED (`tables.class_directions`).
    cache: folder for tables; None: tables are not kept.
    progress: called with what is being computed and the share done.
    """

    bottom: BottomLike
    hidden_size: int
    cut: int
    tokens: Sequence[str]
    special_ids: frozenset[int]
    longest: int | None = None
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    public_rows: Sequence[Sequence[int]] = field(default_factory=tuple)
    labelled_rows: Sequence[Sequence[int]] = field(default_factory=tuple)
    labels: Sequence[int] = ()
    consistency: Callable[[Tensor], Tensor] | None = None
    private_counts: NoisedCounts | None = None
    private_means: NoisedDirections | None = None
    cache: Path | None = None
    progress: OnProgress = field(default=lambda what, share: None)
    _norms: dict[Injection, float] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def for_model(
        cls,
        bottom: BottomLike,
        tokenizer: Any,
        *,
        hidden_size: int,
        cut: int,
        longest: int | None = None,
        public_texts: Sequence[str] = (),
        labelled_texts: Sequence[tuple[str, int]] = (),
        cache: Path | None = None,
        progress: OnProgress = lambda what, share: None,
    ) -> NoiseContext:
        """Describe a bottom and its Hugging Face tokenizer; the other arguments are fields of the class."""
        size = int(bottom.embedding_VD.shape[0])
        tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(size))]
        # An unknown word is content, not structure, unless the tokenizer uses one id for both (GPT-2).
        structural = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        structural |= {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
        special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - structural)
        prefix, suffix = _wrapping(tokenizer)
        return cls(
            bottom=bottom,
            hidden_size=hidden_size,
            cut=cut,
            tokens=tokens,
            special_ids=frozenset(special),
            longest=longest,
            prefix=prefix,
            suffix=suffix,
            cache=cache,
            progress=progress,
            public_rows=[tokenizer(text, truncation=True, max_length=128)["input_ids"] for text in public_texts],
            # With a leading space, a lone word gets the token that it has inside a sentence.
            labelled_rows=[
                tokenizer(" " + text, truncation=True, max_length=128)["input_ids"] for text, _ in labelled_texts
            ],
            labels=[label for _, label in labelled_texts],
        )

    @cached_property
    def positions(self) -> int:
        """Longest row that the bottom takes, at most 512 unless `longest` is set."""
        if self.longest is not None:
            return self.longest
        config = getattr(self.bottom, "config", None)
        limit = getattr(config, "max_position_embeddings", None) or _POSITIONS
        if getattr(config, "model_type", "") in _PADDED_POSITIONS:
            limit -= (config.pad_token_id or 0) + 1  # type: ignore[union-attr]
        return int(min(limit, _POSITIONS))

    @cached_property
    def usable_ids(self) -> Tensor:
        """Ids of ordinary text: no special, unused or byte ids; int64, sorted, shape U. Raises InvalidInput."""
        keep = [
            i for i, token in enumerate(self.tokens) if i not in self.special_ids and not _NOT_A_WORD.fullmatch(token)
        ]
        if not keep:
            raise InvalidInput("the tokenizer has no ordinary tokens, so the noise can't be scaled to the model")
        return torch.tensor(keep, dtype=torch.int64)

    def is_special(self, ids: Tensor) -> Tensor:
        """Which ids are special tokens; bool, of the same shape."""
        return torch.isin(ids, torch.tensor(sorted(self.special_ids), dtype=torch.int64))

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the bottom's weights: two models of the same shape must not share releases or tables."""
        digest = hashlib.sha256()
        state = self.bottom.state_dict() if isinstance(self.bottom, nn.Module) else {"e": self.bottom.embedding_VD}
        for name in sorted(state):
            flat = state[name].detach().flatten()
            digest.update(name.encode())
            digest.update(flat[:: max(1, flat.numel() >> 16)].to("cpu", torch.float32).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def vocabulary(self) -> str:
        """Fingerprint of the tokens: what each id stands for, and which are special."""
        return hashlib.sha256("\0".join([*self.tokens, str(sorted(self.special_ids))]).encode()).hexdigest()

    @cached_property
    def identity(self) -> str:
        """Fingerprint of everything public that tables are made from: weights, cut, vocabulary and public rows."""
        digest = hashlib.sha256(f"{self.weights} {self.cut} {self.vocabulary} {list(self.labels)}".encode())
        for row in [*self.public_rows, *self.labelled_rows]:
            digest.update(np.asarray(row, dtype=np.int64).tobytes() + b";")
        return digest.hexdigest()

    @torch.no_grad()
    def states(self, ids_BT: Tensor, injection: Injection, mask_BT: Tensor | None = None) -> Tensor:
        """Clean vectors h_BTD of rows of ids at the injection point, float32. mask_BT: 1 for real tokens; None: all."""
        mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT.long()
        run = self.bottom.embed if injection == "embedding" else self.bottom
        return run(ids_BT, mask_BT).to(torch.float32)

    def typical_norm(self, injection: Injection) -> float:
        """Median length of a vector at the injection point over public rows (or made-up rows of ordinary ids).

        Noise and clipping are set relative to it, so that a bottom with a manipulated scale can't drown the noise.
        Raises NonFinite for a bottom whose vectors have no length.
        """
        if injection not in self._norms:
            rows = [self.states(ids_BT, injection).flatten(0, 1) for ids_BT in self.sample_rows()]
            norm = float(torch.cat(rows).norm(dim=-1).median())
            if not (np.isfinite(norm) and norm > 0):
                raise NonFinite(
                    "the model's bottom gives NaN, infinity or only zeros on ordinary tokens; check its weights"
                )
            # Three digits, so that the last bits of another machine's arithmetic don't change the settings.
            self._norms[injection] = float(f"{norm:.3g}")
        return self._norms[injection]

    def sample_rows(self) -> list[Tensor]:
        """A few public rows of ids: from the public texts if there are any, else spread over the vocabulary."""
        if self.public_rows:
            return [torch.tensor([list(row)]) for row in self.public_rows[:_SAMPLE_ROWS] if len(row)]
        usable = self.usable_ids
        picks = torch.linspace(0, len(usable) - 1, _ROW * _SAMPLE_ROWS).round().long()
        # A stride that is coprime with the count mixes rare and frequent ids in each row.
        order = (torch.arange(len(picks)) * 389) % len(picks)
        return [usable[picks[order]].view(_SAMPLE_ROWS, _ROW)]

    def isolated_states(self, injection: Injection) -> Tensor:
        """State of every usable id alone between the usual special tokens; float32, (U, D)."""
        ids = self.usable_ids
        place = len(self.prefix)
        before, after = torch.tensor([self.prefix], dtype=torch.int64), torch.tensor([self.suffix], dtype=torch.int64)
        out = torch.empty(len(ids), self.hidden_size)
        for start in range(0, len(ids), 1024):
            part_B1 = ids[start : start + 1024].unsqueeze(1)
            rows = [before.expand(len(part_B1), -1), part_B1, after.expand(len(part_B1), -1)]
            out[start : start + 1024] = self.states(torch.cat(rows, dim=1), injection)[:, place]
            self.progress("prototypes", (start + len(part_B1)) / len(ids))
        return out

    def position_offsets(self, injection: Injection) -> Tensor:
        """Mean state at each position minus the mean over positions, over random rows of public ids; (positions, D)."""
        generator = torch.Generator().manual_seed(0)  # a public table, not noise
        usable, length = self.usable_ids, self.positions
        total_TD = torch.zeros(length, self.hidden_size)
        for _ in range(4):
            picks = torch.randint(len(usable), (8, length), generator=generator)
            picks[:, : len(self.prefix)] = 0
            rows = usable[picks]
            rows[:, : len(self.prefix)] = torch.tensor(self.prefix, dtype=torch.int64)[:length]
            total_TD += self.states(rows, injection).mean(dim=0)
        return total_TD / 4 - (total_TD / 4).mean(dim=0)

    def neighbour_distances(self) -> NDArray[np.float64]:
        """L2 distances of ids spread over the vocabulary to their nearest (centred cosine) ids, at the embedding.

        Every id is measured at the same reference position; shape (512, 10), or less for a small vocabulary.
        """
        table_UD = self.isolated_states("embedding")
        centred_UD = torch.nn.functional.normalize(table_UD - table_UD.mean(dim=0), dim=-1)
        total = len(table_UD)
        if total < 2:
            raise InvalidInput("a vocabulary of one token has no neighbours")
        picks = torch.linspace(0, total - 1, min(_MEASURED, total)).round().long()
        similar = centred_UD[picks] @ centred_UD.T
        similar[torch.arange(len(picks)), picks] = -2.0
        near = similar.topk(min(_NEIGHBOURS, total - 1), dim=-1).indices
        distances: NDArray[np.float64] = (table_UD[picks].unsqueeze(1) - table_UD[near]).norm(dim=-1).double().numpy()
        return distances


def _wrapping(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special ids that the tokenizer puts before and after a text; one start token where it puts none before."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
    # Many decoders give the first position a far longer vector: keep the token away from it.
    first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    return (prefix or ((first,) if first is not None else ()), suffix)
