"""EIA-1 with a masked language model: which word fits both the release and the words around it? For encoders.

The prior is the pre-trained encoder after a short tuning as a masked language model on public text. Packages of
encoders often lack the layer that names words, so a new one is tied to the word embeddings. It knows nothing of the
mechanism, which enters by its likelihood. Every place has a distribution over its best candidates, at first the
posterior under bigrams. Place by place the word is masked, the others are read as their expected embeddings, and the
distribution becomes log P(release | id) + log P(id | the others), half by the masked model and half by the bigrams; a
few rounds of this. A beam would keep whole texts; where most guesses are wrong, expectations keep more.

B records, N secret tokens, V candidates, K of them per place, E width of word embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from privtune.device.audit.attacker_text import batches_of_length
from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.chain import smooth
from privtune.device.audit.attacks.codebook import after_text, before_text
from privtune.device.audit.attacks.evidence import Evidence
from privtune.device.audit.attacks.reader import NamingNet, Pretrained, ReaderSettings, set_rates
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge
from privtune.device.data.encode import IntArray
from privtune.shared.errors import InvalidInput
from privtune.shared.modeling.seeding import seeded

_MASKED = (0.15, 0.7)  # least and largest share of masked words; the search trusts few of the others
_WRONG = 0.3  # share of the words left that are replaced by others, as guesses are wrong


@dataclass(frozen=True, kw_only=True)
class MaskedSettings:
    """How the prior is tuned and the search runs. candidates: of each place. rounds: over all places."""

    tuning: ReaderSettings = field(default_factory=ReaderSettings)
    candidates: int = 50
    rounds: int = 2


class MaskedNet(NamingNet):
    """Names words from the words around them."""

    def __init__(self, lab: Lab, pretrained: Pretrained) -> None:
        super().__init__(lab, pretrained)
        self.mask_E = nn.Parameter(self.words_VE.mean(0))

    def loss(self, seen: Seen, number_N: Tensor, seen_C: Tensor) -> Tensor:
        """Of naming masked words of a public text. number_N: its words, numbers in seen_C; -1: no candidate."""
        share = torch.empty(len(seen)).uniform_(*_MASKED)[seen.record_N]
        hidden_N = (torch.rand(len(number_N)) < share) | (number_N < 0)
        wrong_N = torch.rand(len(number_N)) < _WRONG
        shown_N = torch.where(wrong_N, seen_C[torch.randint(len(seen_C), number_N.shape)], number_N)
        input_NE = torch.where(hidden_N.unsqueeze(1), self.mask_E, self.words_VE[shown_N])
        asked_N = hidden_N & (number_N >= 0)
        target_N = torch.searchsorted(seen_C, number_N[asked_N])
        total: Tensor = nn.functional.cross_entropy(
            self.named(seen, input_NE, seen_C)[asked_N], target_N, reduction="sum"
        )
        return total / max(len(target_N), 1)


class Masked(Attack):
    """The attack. pretrained: the attacker's encoder. Not for mechanisms that shorten."""

    name: ClassVar[str] = "EIA-1"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: MaskedSettings

    def __init__(self, knowledge: Knowledge, pretrained: Pretrained, settings: MaskedSettings | None = None) -> None:
        super().__init__(knowledge, settings or MaskedSettings())
        self._pretrained = pretrained
        self._evidence = Evidence(knowledge)

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        if lab.victim.mechanism.shortens:
            raise InvalidInput("a search over places needs a released row for each token")
        self._know(lab)
        with seeded("audit", "masked", seed):
            self.net = MaskedNet(lab, self._pretrained)
            self._tune(lab, lab.public.records, seed, say)

    def _know(self, lab: Lab) -> None:
        self._evidence.fit(lab)
        self._ids_V = lab.public.ids_V
        self._bigrams, self._before, self._after = lab.bigrams, before_text(lab), after_text(lab)

    def _tune(self, lab: Lab, records: Sequence[IntArray], seed: int, say: Say) -> None:
        tuning, rng = self.settings.tuning, np.random.default_rng(seed)
        optimizer = self.net.optimizer(tuning.learning_rate, tuning.encoder_rate)
        batches = [b for _ in range(tuning.epochs) for b in batches_of_length(lab.public.lengths_B, tuning.batch, rng)]
        seen_C = (lab.public.counts_V > 0).nonzero().flatten()
        self.net.train()
        for step, batch in enumerate(batches):
            set_rates(optimizer, tuning, step, len(batches))
            drawn = lab.victim.clean([records[index] for index in batch.tolist()])  # for its layout
            loss = self.net.loss(drawn.seen, lab.public.index(drawn.ids_N), seen_C)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            say(f"masked language model ({self.knowledge})", (step + 1) / len(batches))
        self.net.eval()

    @torch.no_grad()
    def _attack(self, seen: Seen) -> Tensor:
        ordered, _, order_N = seen.by_length()
        parts = [self._search(part) for part in ordered.batches(64)]
        return torch.cat(parts)[order_N.argsort()]

    def _search(self, seen: Seen) -> Tensor:
        """ids_NK for a few records."""
        number_NK, log_NK = self._evidence.candidates(seen, self.settings.candidates)
        ids_NK: Tensor = self._ids_V[number_NK]
        score_NK = smooth(log_NK, ids_NK, seen.record_N, self._bigrams, self._before, self._after)
        starts_N = torch.searchsorted(seen.record_N, seen.record_N)
        place_N = torch.arange(len(number_NK)) - starts_N
        for _ in range(self.settings.rounds):
            for place in range(int(place_N.max()) + 1 if len(place_N) else 0):
                now_N = place_N == place
                read_NE = torch.einsum("nk,nke->ne", score_NK.softmax(1), self.net.words_VE[number_NK])
                read_NE[now_N] = self.net.mask_E
                named_NV = self.net.named(seen, read_NE, torch.arange(len(self._ids_V)))[now_N]
                model_NK = named_NV.log_softmax(1).gather(1, number_NK[now_N])
                beside_NK = self._beside(seen, ids_NK, score_NK)[now_N]
                score_NK[now_N] = log_NK[now_N] + torch.logaddexp(model_NK, beside_NK) - math.log(2)
        return ids_NK.gather(1, score_NK.topk(min(GUESSES, score_NK.shape[1])).indices)

    def _beside(self, seen: Seen, ids_NK: Tensor, score_NK: Tensor) -> Tensor:
        """log P of each candidate between the present best guesses of its neighbours, under the bigrams; (N, K)."""
        best_N = ids_NK.gather(1, score_NK.argmax(1, keepdim=True))[:, 0]
        follows_N = seen.record_N[1:] == seen.record_N[:-1]
        before_N = torch.full_like(best_N, self._before)
        before_N[1:][follows_N] = best_N[:-1][follows_N]
        log_NK = self._bigrams.log_prob(before_N.unsqueeze(1), ids_NK)
        after_N = torch.full_like(best_N, self._before if self._after is None else self._after)
        after_N[:-1][follows_N] = best_N[1:][follows_N]
        return (log_NK + self._bigrams.log_prob(ids_NK, after_N.unsqueeze(1))).log_softmax(1)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.net.state_dict().items()}

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._know(lab)
        self.net = MaskedNet(lab, self._pretrained)
        self.net.load_state_dict(tensors)
        self.net.eval()
