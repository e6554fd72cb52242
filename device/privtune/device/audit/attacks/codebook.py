"""EIA-1, the codebook attack: which id's prototype is nearest to this row, or most probably its source?

The oblivious attacker has clean prototypes. The adaptive one simulates the mechanism (`density`) and takes the argmax
over ids of log density(y | id) + log prior(id). It works token by token; `language` adds the neighbours.

R rows, N secret tokens, V candidates, K guesses, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.attacks.attack import GUESSES, Attack, Lab, Say
from privtune.device.audit.attacks.chain import smooth
from privtune.device.audit.attacks.density import Gaussians, TokenModel
from privtune.device.audit.metrics import spread
from privtune.device.audit.observed import Seen
from privtune.device.audit.victim import Knowledge

Metric = Literal["euclidean", "cosine", "mahalanobis", "bayes", "channel", "language", "content"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine", "mahalanobis", "bayes", "channel", "language", "content")

# Rows of scores at a time: with 50,000 candidates 32 MB, which the allocator reuses without new pages.
CHUNK = 160
_PURSUITS = 2  # rounds in which each token of a pooled row is guessed again given the others
_CHANNEL_DRAWS = 3
_CHANNEL_TRUST = 2.0  # weight of the prior against a code's own counts


@dataclass(frozen=True, kw_only=True)
class CodebookSettings:
    """How the codebook is used.

    metric: how a row is compared with prototypes. `channel`: the nearest code, decoded by how often each id gave that
        code in simulation (strong if ids are replaced at random). `content`: `bayes` for an attacker who wants content
        words only and never names a frequent id.
    beam: candidates that `language` keeps per position.
    """

    metric: Metric = "bayes"
    beam: int = 50


class Codebook(Attack):
    """Nearest prototype or highest posterior, for each row separately."""

    name: ClassVar[str] = "EIA-1"
    kind: ClassVar[Literal["inversion", "attribute"]] = "inversion"
    settings: CodebookSettings

    def __init__(self, knowledge: Knowledge, settings: CodebookSettings | None = None) -> None:
        super().__init__(knowledge, settings or CodebookSettings())

    def _fit(self, lab: Lab, seed: int, say: Say) -> None:
        self._model = lab.token_model(self.knowledge, say)
        self._ids_V, self._log_prior_V = lab.public.ids_V, lab.public.log_prior_V
        if self.settings.metric == "content":
            self._log_prior_V = _content_prior(lab.public)
        if self.settings.metric == "language":
            self._bigrams, self._before, self._after = lab.bigrams, before_text(lab), after_text(lab)
        if self.settings.metric == "channel":
            self._channel_VK = self._decode_channel(lab, say)

    def _attack(self, seen: Seen) -> Tensor:
        metric = self.settings.metric
        if metric == "language":
            return self._with_language(seen)
        if metric == "channel":
            code_NK = self._guess(seen, self._score_bayes, GUESSES)
            decoded_NK = self._channel_VK[code_NK[:, 0]]
            return self.named(torch.where(decoded_NK >= 0, decoded_NK, code_NK))
        return self.named(self._guess(seen, self._score(), GUESSES))

    def candidates(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        """The most probable candidate numbers of each token, and their log densities without the prior; (N, count)."""
        numbers_NK = self._guess(seen, self._score_bayes, min(count, len(self._ids_V)))
        return numbers_NK, self.log_density(seen, numbers_NK)

    def log_density(self, seen: Seen, numbers_NK: Tensor) -> Tensor:
        """Log density of each token's row given these candidate numbers, up to a constant per token; (N, K)."""
        y_RD, model = self._model.centred(seen), self._model
        density_NK = torch.empty(numbers_NK.shape)
        for units in torch.split(torch.arange(len(numbers_NK)), CHUNK):
            rows, means_NKD = seen.row_N[units], model.means_VD[numbers_NK[units]]
            density_NK[units] = _gaussian(y_RD[rows] - model.base_D, means_NKD, model.whiten_DD)
        return density_NK

    def named(self, numbers_NK: Tensor) -> Tensor:
        """The ids of candidate numbers; -1 stays."""
        return torch.where(numbers_NK >= 0, self._ids_V[numbers_NK.clamp(min=0)], -1)

    def _guess(self, seen: Seen, score: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Candidate numbers (N, count), the best first: one ranking per row, dealt to its slots and then refined."""
        y_RD = self._model.centred(seen)
        rows, inverse_N = torch.unique(seen.row_N, return_inverse=True)
        deep = min(count * seen.slots, len(self._ids_V))
        top_RK = torch.empty(len(rows), deep, dtype=torch.int64)
        for part in torch.split(torch.arange(len(rows)), CHUNK):
            top_RK[part] = score(y_RD[rows[part]]).topk(deep).indices
        guess_NK = spread(top_RK[inverse_N], seen) if seen.slots > 1 else top_RK[inverse_N]
        if seen.slots > 1 and self.knowledge == "adaptive":
            for _ in range(_PURSUITS):
                guess_NK = self._pursue(seen, y_RD, guess_NK)
        return guess_NK

    def _pursue(self, seen: Seen, y_RD: Tensor, guess_NK: Tensor) -> Tensor:
        """Guess each slot again after subtracting the other slots' current guesses from the row, slot by slot."""
        model, guess_NK = self._model, guess_NK.clone()
        total_RD = torch.zeros_like(y_RD).index_add_(0, seen.row_N, model.means_VD[guess_NK[:, 0]])
        for slot in range(seen.slots):
            for units in torch.split((seen.slot_N == slot).nonzero().flatten(), CHUNK):
                rows = seen.row_N[units]
                mine_ND = model.means_VD[guess_NK[units, 0]]
                scores_NV = model.log_density_given_others(y_RD[rows], total_RD[rows] - mine_ND) + self._log_prior_V
                guess_NK[units] = scores_NV.topk(guess_NK.shape[1]).indices
                total_RD.index_add_(0, rows, model.means_VD[guess_NK[units, 0]] - mine_ND)
        return guess_NK

    def _score(self) -> Callable[[Tensor], Tensor]:
        """From centred rows to a score of each candidate, (N, D) -> (N, V); work for all rows is done here once."""
        model, metric = self._model, self.settings.metric
        if metric == "mahalanobis":
            return model.log_density
        if metric == "euclidean":
            plain = Gaussians(model.means_VD, torch.eye(model.means_VD.shape[1]))
            return lambda y_ND: plain.scores(y_ND - model.base_D)
        if metric == "cosine":
            centre_D = model.means_VD.mean(0)
            unit_DV = torch.nn.functional.normalize(model.means_VD - centre_D, dim=1).T
            return lambda y_ND: (y_ND - model.base_D - centre_D) @ unit_DV
        return self._score_bayes

    def _score_bayes(self, y_ND: Tensor) -> Tensor:
        return self._model.log_density(y_ND) + self._log_prior_V

    def _decode_channel(self, lab: Lab, say: Say) -> Tensor:
        """For each code the ids that gave it most often in fresh simulations, (V, GUESSES) candidate numbers or -1.

        An id that never gave the code is not listed; -1 leaves its position to the code's own ranking.
        """
        size = len(self._ids_V)
        keys = []
        for draw in range(_CHANNEL_DRAWS):
            drawn = lab.victim.simulate(lab.public.records, self.knowledge)
            code_N = self._guess(drawn.seen, self._score_bayes, 1)[:, 0]
            truth_N = lab.public.index(drawn.ids_N)
            keys.append((code_N * size + truth_N)[truth_N >= 0])
            say("channel", (draw + 1) / _CHANNEL_DRAWS)
        # One prior count of the code standing for itself keeps rare codes sensible.
        own = torch.arange(size) * (size + 1)
        pairs, counts = torch.unique(torch.cat([*keys, own]), return_counts=True)
        code, truth = pairs // size, pairs % size
        weight = counts.double() + _CHANNEL_TRUST * self._log_prior_V.exp()[truth].double()
        order = torch.argsort(code * (float(weight.max()) + 1) - weight)
        code, truth = code[order], truth[order]
        rank = torch.arange(len(code)) - torch.searchsorted(code, code)
        table_VK = torch.full((size, GUESSES), -1, dtype=torch.int64)
        kept = rank < GUESSES
        table_VK[code[kept], rank[kept]] = truth[kept]
        return table_VK

    def _with_language(self, seen: Seen) -> Tensor:
        """Posterior of each position given all positions of the record, under the bigrams of the public text."""
        numbers_NK, density_NK = self.candidates(seen, self.settings.beam)
        ids_NK = self.named(numbers_NK.clamp(min=0))
        posterior_NK = smooth(density_NK, ids_NK, seen.record_N, self._bigrams, self._before, self._after)
        best_NK: Tensor = ids_NK.gather(1, posterior_NK.topk(min(GUESSES, ids_NK.shape[1])).indices)
        return best_NK

    def _tensors(self) -> dict[str, Tensor]:
        model = {f.name: getattr(self._model, f.name) for f in fields(TokenModel)}
        channel = {"channel_VK": self._channel_VK} if self.settings.metric == "channel" else {}
        return {**model, **channel, "ids_V": self._ids_V, "log_prior_V": self._log_prior_V}

    def _restore(self, tensors: dict[str, Tensor], lab: Lab) -> None:
        self._model = TokenModel(**{f.name: tensors[f.name] for f in fields(TokenModel)})
        self._ids_V, self._log_prior_V = tensors["ids_V"], tensors["log_prior_V"]
        if self.settings.metric == "language":
            self._bigrams, self._before, self._after = lab.bigrams, before_text(lab), after_text(lab)
        if self.settings.metric == "channel":
            self._channel_VK = tensors["channel_VK"]


def _gaussian(x_ND: Tensor, means_NKD: Tensor, whiten_DD: Tensor) -> Tensor:
    """Log density of each row under its own K means, up to a constant per row; (N, K)."""
    projection_DD = whiten_DD @ whiten_DD.T
    cross_NK = torch.einsum("nd,nkd->nk", x_ND @ projection_DD, means_NKD)
    scores_NK: Tensor = cross_NK - 0.5 * (means_NKD @ whiten_DD).square().sum(-1)
    return scores_NK


def _content_prior(public: PublicText) -> Tensor:
    """The prior without the frequent ids; the plain one if no other id is left."""
    frequent_V = torch.isin(public.ids_V, public.frequent_ids)
    return public.log_prior_V if bool(frequent_V.all()) else public.log_prior_V.masked_fill(frequent_V, -torch.inf)


def after_text(lab: Lab) -> int | None:
    """The special id after a text, if the tokenizer adds one."""
    suffix = lab.victim.mechanism.context.suffix
    return suffix[0] if suffix else None


def before_text(lab: Lab) -> int:
    """The special id before a text; the first special id if the tokenizer adds none."""
    context = lab.victim.mechanism.context
    return context.prefix[-1] if context.prefix else min(context.special_ids, default=0)
