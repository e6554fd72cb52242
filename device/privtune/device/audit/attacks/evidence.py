"""What a release says of each token by itself, for attacks that add what the words around it say.

The law of the mechanism's symbols where there is one and the attacker knows the mechanism (`channel`), else the
Gaussian model of a release given an id (`density`).

N secret tokens, V candidates, K of them per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privtune.device.audit.attacks.attack import Lab, Say, silent
from privtune.device.audit.attacks.channel import CHUNK
from privtune.device.audit.attacks.codebook import Codebook
from privtune.device.audit.attacks.substitution import best_of
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge


class Evidence:
    """log P(release | id) of an attacker of this knowledge, once it is fitted."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge, self._codebook = knowledge, Codebook(knowledge)

    def fit(self, lab: Lab, say: Say = silent) -> None:
        """On the lab's public text."""
        self._channel = lab.channel if self._knowledge == "adaptive" else None
        self._log_prior_V = lab.public.log_prior_V
        if self._channel is None:
            self._codebook.fit(lab, say=say)

    def candidates(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        """The most probable candidate numbers of each token, and their log likelihoods; (N, at most count)."""
        count = min(count, len(self._log_prior_V))
        if self._channel is None:
            return self._codebook.candidates(seen, count)
        return best_of(self._channel, self._channel.read(seen), self._log_prior_V, count)

    def of(self, seen: Seen, numbers_NK: Tensor) -> Tensor:
        """Log likelihoods of these candidate numbers, up to the same constant per token as `candidates`; (N, K)."""
        if self._channel is None:
            return self._codebook.log_density(seen, numbers_NK)
        symbol_N = self._channel.read(seen)
        parts = [
            self._channel.log_likelihood(symbol_N[units]).gather(1, numbers_NK[units])
            for units in torch.split(torch.arange(len(symbol_N)), CHUNK)
        ]
        return torch.cat(parts) if parts else torch.empty(numbers_NK.shape)
