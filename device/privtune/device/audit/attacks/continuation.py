"""EIA-1 from both sides, for language models: what the cloud's own forward pass says the next token is.

The cloud runs its blocks on the released rows, of prompts in training and of every token of an answer as it is
written. With a tail it never sends the result through the last blocks, but it has them, pre-trained: the state after
row t, through the rest of the model and the head, is a distribution over token t + 1, and for an answer nearly the one
that the device itself draws from (the tuned tail is not far from the pre-trained one). This is combined with what the
rows themselves reveal: log P(row | id) + log of half that distribution and half the message of the neighbours under
bigrams. Either side names candidates. No gradient is needed, and no text is decoded first, as the beam search does.

It is the initialisation from both sides of PIDI, "From Prompts to Responses: Dual-Sided Data Leakage and Defense in
Split Large Language Models" (arXiv 2606.14210); its second stage is `patched`. We read the paper's abstract and two
summaries of its method, not its text. There, prompt and answer are told apart and a small network reads the prompt
(here EIA-2); here every place has both kinds of evidence.

B records, R rows, N secret tokens, K candidates each, V vocabulary, D hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.chain import smooth
from privtune.device.audit.attacks.channel import NEVER
from privtune.device.audit.attacks.codebook import after_text, before_text
from privtune.device.audit.attacks.evidence import Evidence
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.errors import InvalidInput

_RECORDS = 8  # at a time: the head's output is as wide as the vocabulary


@dataclass(frozen=True, kw_only=True)
class ContinuationSettings:
    """candidates: tokens that are considered at each place: so many by the rows alone, a quarter of it by the model."""

    candidates: int = 40


class Continuation(Attack):
    """The attack. top: the pre-trained blocks above the cut. head: as pre-trained. Not for mechanisms that shorten."""

    name: ClassVar[str] = "EIA-1"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: ContinuationSettings

    def __init__(
        self, knowledge: Knowledge, top: nn.Module, head: Any, settings: ContinuationSettings | None = None
    ) -> None:
        super().__init__(knowledge, settings or ContinuationSettings())
        self._top, self._head = top, head
        self._evidence = Evidence(knowledge)

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        if lab.victim.mechanism.shortens:
            raise InvalidInput("the next token is at the next row only where a row is a token")
        self._evidence.fit(lab, say)
        self._public = lab.public
        self._bigrams, self._before, self._after = lab.bigrams, before_text(lab), after_text(lab)

    def _attack(self, seen: Seen) -> Tensor:
        numbers_NK, _ = self.candidates(seen, GUESSES)
        ids_NK: Tensor = self._public.ids_V[numbers_NK]
        return ids_NK

    @torch.no_grad()
    def candidates(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        """The best candidate numbers of each token, the best first, and their log probabilities up to a constant."""
        ordered, _, order_N = seen.by_length()
        parts, done = [], 0
        for part in ordered.batches(_RECORDS):
            parts.append(self._both_sides(part, count))
            done += len(part)
            self._say(f"continuation ({self.knowledge})", done / len(seen))
        numbers_NK, score_NK = (torch.cat(one)[order_N.argsort()] for one in zip(*parts, strict=True))
        return numbers_NK, score_NK

    def _both_sides(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        follows_NV = self._next(seen)
        numbers_NK, log_NK = self._evidence.candidates(seen, self.settings.candidates)
        more_NK = follows_NV.topk(min(max(self.settings.candidates // 4, 1), follows_NV.shape[1])).indices
        again_NK = (more_NK.unsqueeze(2) == numbers_NK.unsqueeze(1)).any(2)
        more_log_NK = self._evidence.of(seen, more_NK).masked_fill(again_NK, NEVER)
        first = numbers_NK.shape[1]
        numbers_NK, log_NK = torch.cat([numbers_NK, more_NK], 1), torch.cat([log_NK, more_log_NK], 1)
        args = seen.record_N, self._bigrams, self._before, self._after
        message_NK = smooth(log_NK, self._public.ids_V[numbers_NK], *args) - log_NK
        message_NK[:, first:].masked_fill_(again_NK, NEVER)
        message_NK = message_NK.log_softmax(1)
        beside_NK = torch.logaddexp(follows_NV.gather(1, numbers_NK), message_NK) - math.log(2)
        has_N = seen.place_R[seen.row_N] > 0  # the first row of a record follows none
        score_NK = log_NK + torch.where(has_N.unsqueeze(1), beside_NK, message_NK)
        best = score_NK.topk(min(count, score_NK.shape[1]))
        return numbers_NK.gather(1, best.indices), best.values

    def _next(self, seen: Seen) -> Tensor:
        """log P of each candidate at the place of each secret token, from the state of the row before; (N, V)."""
        y_BTD, mask_BT = seen.padded()
        place_N = (seen.place_R[seen.row_N] - 1).clamp(min=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            out_ND = self._top(y_BTD, mask_BT, seen.record_N * mask_BT.shape[1] + place_N)
            logits_NV = self._head(out_ND)
        log_NV: Tensor = logits_NV.float().log_softmax(1)[:, self._public.ids_V]
        return log_NV

    def _tensors(self) -> dict[str, Tensor]:
        return {"ids_V": self._public.ids_V}  # everything follows from the lab

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._fit(lab, 0, self._say)
