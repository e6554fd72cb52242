"""EIA-1 with a language model: which text is both likely and close to what was seen? For language models.

The tuned model itself predicts the next token for the attacker: the cloud has all of it. Beam search over
log density(y | id) + log P(id | preceding text), where P is half the pre-trained model, prompted with a little public
text, and half the bigrams of that text, which know a narrow domain better.

B records, T positions, N secret tokens, K candidates each, W beams, R = B * W texts read at once, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.codebook import before_text
from privtune.device.audit.attacks.evidence import Evidence
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.kv_cache import cache_argument

_READ_AT_ONCE = 64  # texts


@dataclass(frozen=True, kw_only=True)
class BeamSettings:
    """How wide the search is.

    beams: texts kept per record.
    candidates: tokens kept per position.
    shown: tokens of public text that the language model reads before each record.
    """

    beams: int = 8
    candidates: int = 24
    shown: int = 256


class Beam(Attack):
    """Beam search. reader: the whole causal language model, from transformers. Not for mechanisms that shorten."""

    name: ClassVar[str] = "EIA-1"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: BeamSettings

    def __init__(self, knowledge: Knowledge, reader: Any, settings: BeamSettings | None = None) -> None:
        super().__init__(knowledge, settings or BeamSettings())
        self._evidence = Evidence(knowledge)
        self._reader = reader

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        if lab.victim.mechanism.shortens:
            raise InvalidInput("a beam search needs a released row for each token")
        self._shown = _shown(lab, self.settings.shown, np.random.default_rng(seed))
        self._know(lab, say)

    def _know(self, lab: Lab, say: Say) -> None:
        self._evidence.fit(lab, say)
        self._ids_V = lab.public.ids_V
        context = lab.victim.mechanism.context
        self._bigrams, self._before = lab.bigrams, before_text(lab)
        self._prefix, self._suffix = context.prefix, context.suffix

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        ordered, _, order_N = seen.by_length()
        parts, done = [], 0
        for part in ordered.batches(max(1, _READ_AT_ONCE // self.settings.beams)):
            parts.append(self._search(part))
            done += len(part)
            self._say(f"{self.name} with a language model ({self.knowledge})", done / len(seen))
        return torch.cat(parts)[order_N.argsort()]

    def _search(self, seen: Seen) -> Tensor:
        """ids_NK for a few records: the best text's token first, then the tokens that would fit best instead."""
        numbers_NK, density_NK = self._evidence.candidates(seen, self.settings.candidates)
        ids_NK = self._ids_V[numbers_NK]
        unit_BT, fixed_BT = self._layout(seen)
        records, beams, width = len(seen), self.settings.beams, ids_NK.shape[1]
        text = _Text(self._reader, self._shown[-self._room(unit_BT.shape[1]) :], records * beams)
        before_R = torch.full((records * beams,), self._before)
        total_BW = torch.full((records, beams), -math.inf)
        total_BW[:, 0] = 0.0  # all beams begin as the same text
        path_BWT = torch.zeros(records, beams, 0, dtype=torch.int64)
        score_BWTK = torch.zeros(records, beams, 0, width)
        for place in range(unit_BT.shape[1]):
            unit_B = unit_BT[:, place]
            secret_B11 = (unit_B >= 0)[:, None, None]
            ids_BK = torch.where(secret_B11[:, 0], ids_NK[unit_B.clamp(min=0)], fixed_BT[:, place, None])
            ids_RK = ids_BK.repeat_interleave(beams, dim=0)
            follows_RK = self._follows(text.log_prob(ids_RK), before_R, ids_RK)
            step_BWK = density_NK[unit_B.clamp(min=0)].unsqueeze(1) + follows_RK.view(records, beams, width)
            # A known position changes no beam.
            only_first_K = torch.where(torch.arange(width) == 0, 0.0, -math.inf)
            step_BWK = torch.where(secret_B11, step_BWK, only_first_K)
            best_BW = (total_BW.unsqueeze(2) + step_BWK).flatten(1).topk(beams)
            total_BW, parent_BW, choice_BW = best_BW.values, best_BW.indices // width, best_BW.indices % width
            path_BWT = torch.cat([_of(path_BWT, parent_BW), choice_BW.unsqueeze(2)], dim=2)
            score_BWTK = torch.cat([_of(score_BWTK, parent_BW), _of(step_BWK, parent_BW).unsqueeze(2)], dim=2)
            parent_R = (parent_BW + torch.arange(records).unsqueeze(1) * beams).flatten()
            before_R = ids_RK.gather(1, choice_BW.flatten().unsqueeze(1)).squeeze(1)
            if place + 1 < unit_BT.shape[1]:
                text.read(parent_R, before_R)
        best_NK = torch.empty(ids_NK.shape)
        chosen_N = torch.empty(len(ids_NK), dtype=torch.int64)
        secret_BT = unit_BT >= 0
        best_NK[unit_BT[secret_BT]] = score_BWTK[:, 0][secret_BT]  # topk puts the best text first
        chosen_N[unit_BT[secret_BT]] = path_BWT[:, 0][secret_BT]
        best_NK.scatter_(1, chosen_N.unsqueeze(1), math.inf)
        ranked: Tensor = ids_NK.gather(1, best_NK.topk(min(GUESSES, width)).indices)
        return ranked

    def _room(self, length: int) -> int:
        """Tokens that fit before a record, whose last token is not read; at least one."""
        positions = getattr(self._reader.config, "max_position_embeddings", None)
        return len(self._shown) if positions is None else max(positions - length + 1, 1)

    def _follows(self, reader_RK: Tensor, before_R: Tensor, ids_RK: Tensor) -> Tensor:
        """Log of the mean of both models' probabilities."""
        bigram_RK = self._bigrams.log_prob(before_R.unsqueeze(1), ids_RK)
        return torch.logaddexp(reader_RK, bigram_RK) - math.log(2)

    def _layout(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """unit_BT: the secret token at each position, -1 if the token is known; fixed_BT: the known token."""
        shape = len(seen), int(seen.lengths_B.max())
        unit_BT, fixed_BT = torch.full(shape, -1), torch.full(shape, self._before)
        unit_BT[seen.record_N, seen.place_R[seen.row_N]] = torch.arange(len(seen.row_N))
        for place, token in enumerate(self._prefix[: shape[1]]):
            fixed_BT[:, place] = token
        for left, token in enumerate(reversed(self._suffix)):
            place_B = (seen.lengths_B - 1 - left).clamp(min=0)
            fixed_BT[torch.arange(len(seen)), place_B] = token
        return unit_BT, fixed_BT

    def _tensors(self) -> dict[str, Tensor]:
        return {"shown": self._shown}  # the rest follows from the lab

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._shown = tensors["shown"]
        self._know(lab, self._say)


class _Text:
    """R texts with a common beginning that grow token by token, and the model's prediction for each."""

    def __init__(self, reader: Any, shown: Tensor, count: int) -> None:
        self._reader, self._cache = reader, DynamicCache(config=reader.config)
        self._argument = cache_argument(reader)
        self._next_RV = self._run(shown.unsqueeze(0)).expand(count, -1)
        self._cache.batch_repeat_interleave(count)

    def log_prob(self, ids_RK: Tensor) -> Tensor:
        """log P of each of these tokens as the next one of each text."""
        return self._next_RV.gather(1, ids_RK)

    def read(self, parent_R: Tensor, ids_R: Tensor) -> None:
        """Each text becomes the one at `parent_R` with one more token."""
        self._cache.batch_select_indices(parent_R)
        self._next_RV = self._run(ids_R.unsqueeze(1))

    def _run(self, ids_RT: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            logits_RTV = self._reader(
                input_ids=ids_RT, use_cache=True, logits_to_keep=1, **{self._argument: self._cache}
            ).logits
        log_prob_RV: Tensor = logits_RTV[:, -1].float().log_softmax(-1)
        return log_prob_RV


def _of(values_BWx: Tensor, parent_BW: Tensor) -> Tensor:
    """The values of each beam's parent."""
    return values_BWx[torch.arange(len(parent_BW)).unsqueeze(1), parent_BW]


def _shown(lab: Lab, length: int, rng: np.random.Generator) -> Tensor:
    """Whole public records in random order, as they would precede another one; never empty."""
    before = before_text(lab)
    between = [] if lab.victim.mechanism.context.prefix else [before]  # else records begin with it themselves
    ids = list(between)
    for record in rng.permutation(len(lab.public.records)).tolist():
        added = [*lab.public.records[record].tolist(), *between]
        if len(ids) + len(added) <= length:
            ids += added
    return torch.tensor(ids or [before])
