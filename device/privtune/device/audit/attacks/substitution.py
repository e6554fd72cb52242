"""EIA-1 by transition probabilities: the Bayes-optimal guess where symbols stand for words, from the public law alone.

After "On the Vulnerability of Text Sanitization" (arXiv 2410.17052), whose optimal attack takes the word of highest
P(symbol | word) P(word), and with context the most probable word given the whole record. Here P(symbol | word) is exact
(`channel`; nothing is estimated, so it needs no simulation and no vectors), and the context is a bigram model. With
the true law and prior no attack on single words can do better.

N secret tokens, V candidates, K guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.chain import smooth
from privtune.device.audit.attacks.channel import CHUNK, Channel
from privtune.device.audit.attacks.codebook import after_text, before_text
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class SubstitutionSettings:
    """Which prior. language: bigrams of the public text instead of single words. beam: candidates of each position."""

    language: bool = False
    beam: int = 50


class Substitution(Attack):
    """The attack, for mechanisms that have a `Channel`."""

    name: ClassVar[str] = "EIA-1"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: SubstitutionSettings

    def __init__(self, knowledge: Knowledge = "adaptive", settings: SubstitutionSettings | None = None) -> None:
        super().__init__(knowledge, settings or SubstitutionSettings())

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        self._channel = _channel(lab)
        self._ids_V, self._log_prior_V = lab.public.ids_V, lab.public.log_prior_V
        self._bigrams, self._before, self._after = lab.bigrams, before_text(lab), after_text(lab)

    def _attack(self, seen: Seen) -> Tensor:
        symbol_N = self._channel.read(seen)
        wide = min(self.settings.beam if self.settings.language else GUESSES, len(self._ids_V))
        number_NK, log_NK = best_of(self._channel, symbol_N, self._log_prior_V, wide)
        ids_NK: Tensor = self._ids_V[number_NK]
        if not self.settings.language:
            return ids_NK
        posterior_NK = smooth(log_NK, ids_NK, seen.record_N, self._bigrams, self._before, self._after)
        return ids_NK.gather(1, posterior_NK.topk(min(GUESSES, wide)).indices)

    def _tensors(self) -> dict[str, Tensor]:
        return {"ids_V": self._ids_V}  # everything follows from the lab

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._fit(lab, 0, self._say)


def best_of(channel: Channel, symbol_N: Tensor, log_prior_V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most probable candidate numbers behind each symbol, and log P(symbol | each); (N, count)."""
    number_NK = torch.empty(len(symbol_N), count, dtype=torch.int64)
    log_NK = torch.empty(len(symbol_N), count)
    for part in torch.split(torch.arange(len(symbol_N)), CHUNK):
        log_NV = channel.log_likelihood(symbol_N[part])
        number_NK[part] = (log_NV + log_prior_V).topk(count).indices
        log_NK[part] = log_NV.gather(1, number_NK[part])
    return number_NK, log_NK


def _channel(lab: Lab) -> Channel:
    if lab.channel is None:
        raise InvalidInput("the releases of this mechanism are vectors, so there is no law of symbols")
    return lab.channel
