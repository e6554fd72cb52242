"""EIA-1 from both sides, for language models: what the cloud's own forward pass says the next token is.

The cloud runs its blocks on the released rows, of prompts in training and of every token of an answer as it is
written. With a tail it never sends the result through the last blocks, but it has them, pre-trained: the state after
row t, through the rest of the model and the head, is a distribution over token t + 1, and for an answer nearly the one
that the device itself draws from. This is combined with what the rows themselves reveal: log P(row | id) + log of half
that distribution and half the message of the neighbours under bigrams. No gradient is needed, and no text is decoded
first, as the beam search does.

After PIDI, "From Prompts to Responses: Dual-Sided Data Leakage and Defense in Split Large Language Models" (arXiv
2606.14210), an inversion with dual-sided initialisation. We could read its abstract only. Its second stage, a patched
optimisation over long sequences, is not here (EIA-3 optimises over whole records), nor are its settings.

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
from privtune.device.audit.attacks.codebook import Codebook, after_text, before_text
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.errors import InvalidInput

_RECORDS = 8  # at a time: the head's output is as wide as the vocabulary


@dataclass(frozen=True, kw_only=True)
class ContinuationSettings:
    """candidates: tokens that are considered at each place, by the rows alone."""

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
        self._codebook = Codebook(knowledge)

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        if lab.victim.mechanism.shortens:
            raise InvalidInput("the next token is at the next row only where a row is a token")
        self._codebook.fit(lab, seed=seed, say=say)
        self._know(lab)

    def _know(self, lab: Lab) -> None:
        self._bigrams, self._before, self._after = lab.bigrams, before_text(lab), after_text(lab)

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        ordered, _, order_N = seen.by_length()
        parts, done = [], 0
        for part in ordered.batches(_RECORDS):
            parts.append(self._both_sides(part))
            done += len(part)
            self._say(f"continuation ({self.knowledge})", done / len(seen))
        return torch.cat(parts)[order_N.argsort()]

    def _both_sides(self, seen: Seen) -> Tensor:
        numbers_NK, density_NK = self._codebook.candidates(seen, self.settings.candidates)
        ids_NK = self._codebook.named(numbers_NK)
        args = seen.record_N, self._bigrams, self._before, self._after
        message_NK = (smooth(density_NK, ids_NK, *args) - density_NK).log_softmax(1)
        follows_NK = self._next(seen).gather(1, ids_NK)
        has_N = seen.place_R[seen.row_N] > 0  # the first row of a record follows none
        both_NK = torch.where(has_N.unsqueeze(1), torch.logaddexp(follows_NK, message_NK) - math.log(2), message_NK)
        ranked: Tensor = ids_NK.gather(1, (density_NK + both_NK).topk(min(GUESSES, ids_NK.shape[1])).indices)
        return ranked

    def _next(self, seen: Seen) -> Tensor:
        """log P of each id at the place of each secret token, from the state of the row before; (N, V)."""
        y_BTD, mask_BT = seen.padded()
        place_N = (seen.place_R[seen.row_N] - 1).clamp(min=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            out_ND = self._top(y_BTD, mask_BT, seen.record_N * mask_BT.shape[1] + place_N)
            logits_NV = self._head(out_ND)
        log_NV: Tensor = logits_NV.float().log_softmax(1)
        return log_NV

    def _tensors(self) -> dict[str, Tensor]:
        return self._codebook._tensors()

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._codebook._restore(tensors, lab)
        self._know(lab)
