"""What a mechanism admits, where it releases one of finitely many symbols: log P(symbol | id), public and exact.

The symbols are clusters (`shared`), codes (`codes`) or drawn words (`custext`). A symbol is read off a released row;
settings and tables that anyone knows say which ids may stand behind it, and how probably.

N secret tokens, V candidates, S symbols, M members of a symbol, R rows, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.observed import Seen
from privtune.device.noise.mechanisms.codes import Codes
from privtune.device.noise.mechanisms.custext import CusText
from privtune.device.noise.mechanisms.shared import Shared
from privtune.device.privacy.bounds import krr_keep_probability

if TYPE_CHECKING:
    from privtune.device.audit.attacks.attack import Lab

NEVER = -1e4  # log probability of what can't happen; finite, so that differences of two such are numbers
CHUNK = 160  # rows of scores at a time
_MISREAD = 0.01  # share of symbols that are read wrongly where blocks of the bottom have mixed the record
_DRAWS = 3  # of the public text, for the law of codes
_RECORDS = 5_000  # of it
_TRUST = 2.0  # tokens that a word's code without context, and the codes of all words, count as


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The law of one mechanism.

    read: the symbol of each secret token.
    numbers_SM: candidate numbers that may stand behind each symbol; -1 pads.
    log_SM: log P(symbol | that candidate).
    log_other: the same for candidates that are not listed.
    exact: it depends on the id alone; otherwise it is the mean over contexts of the public text.
    """

    read: Callable[[Seen], Tensor]
    numbers_SM: Tensor
    log_SM: Tensor
    log_other: float
    candidates: int
    exact: bool = True

    @property
    def symbols(self) -> int:
        """S."""
        return len(self.numbers_SM)

    def log_likelihood(self, symbol_N: Tensor, chosen_C: Tensor | None = None) -> Tensor:
        """log P(symbol | each candidate), or the chosen ones; (N, V) or (N, C)."""
        symbols, inverse_N = torch.unique(symbol_N, return_inverse=True)  # a row for each, since few differ
        if self.numbers_SM.shape[1] == self.candidates:
            log_SV = self.log_SM[symbols]
        else:
            log_SV = torch.full((len(symbols), self.candidates + 1), self.log_other)  # one more takes the padding
            number_SM = self.numbers_SM[symbols]
            log_SV.scatter_(1, torch.where(number_SM < 0, self.candidates, number_SM), self.log_SM[symbols])
            log_SV = log_SV[:, :-1]
        return (log_SV if chosen_C is None else log_SV[:, chosen_C])[inverse_N]

    def admitted(self, symbol_N: Tensor) -> Tensor:
        """Which candidates may stand behind any of these symbols at all; bool (V,)."""
        if self.log_other > NEVER or not self.exact:
            return torch.ones(self.candidates, dtype=torch.bool)
        admitted_V = torch.zeros(self.candidates + 1, dtype=torch.bool)
        admitted_V[self.numbers_SM[torch.unique(symbol_N)]] = True  # the padding, -1, is the last
        return admitted_V[:-1]


def channel_of(lab: Lab) -> Channel | None:
    """The law of the lab's mechanism; None if its releases are vectors and no symbols."""
    mechanism = lab.victim.mechanism
    if isinstance(mechanism, Shared) and mechanism.eta is None:
        return _clusters(mechanism, lab)
    if isinstance(mechanism, CusText):
        return _words(mechanism, lab)
    return _codes(mechanism, lab) if isinstance(mechanism, Codes) else None


def _clusters(mechanism: Shared, lab: Lab) -> Channel:
    """The symbol is the cluster: a word drawn from it says no more."""
    targets, epsilon = mechanism.targets, mechanism.params.epsilon_cluster
    exact_row = mechanism.params.target == "centre" and (mechanism.injection == "cut" or mechanism.context.cut == 0)
    keep = krr_keep_probability(epsilon, targets.count) if epsilon and targets.count > 1 else 1.0
    if not exact_row:
        keep *= 1 - _MISREAD
    cluster_V = targets.cluster_V[lab.public.ids_V]

    def nearest(seen: Seen) -> Tensor:
        offset_TD = targets.offsets(int(seen.lengths_B.max()))
        return _nearest(seen.y_RD[seen.row_N] - offset_TD[seen.place_R[seen.row_N]], targets.centre_KD)

    def by_prototype(seen: Seen) -> Tensor:
        return cluster_V[_likeliest(lab, seen, drawn=mechanism.params.target == "mixture")]

    numbers_SM = _members(cluster_V, targets.count)
    log = torch.log(torch.tensor(keep))
    other = NEVER if keep == 1 else float(torch.log(torch.tensor((1 - keep) / max(targets.count - 1, 1))))
    return Channel(
        read=nearest if exact_row else by_prototype,
        numbers_SM=numbers_SM,
        log_SM=torch.where(numbers_SM < 0, NEVER, log),
        log_other=other,
        candidates=len(cluster_V),
    )


def _words(mechanism: CusText, lab: Lab) -> Channel:
    """The symbol is the drawn word, a candidate; those of its output set may have been replaced by it."""
    public, usable_U, sets_GK = lab.public, mechanism.context.usable_ids, mechanism.sets_GK
    number_U = public.index(usable_U)
    numbers_SM = torch.full((len(public.ids_V), sets_GK.shape[1]), -1)
    log_SM = torch.full(numbers_SM.shape, NEVER)
    for slot in range(sets_GK.shape[1]):  # the drawn word is the set's member in this slot
        with_slot_GK = sets_GK[sets_GK[:, slot] >= 0]
        drawn_G = number_U[with_slot_GK[:, slot]]
        members_GK, known_G = with_slot_GK.clamp(min=0), drawn_G >= 0
        real_GK = (with_slot_GK >= 0) & (number_U[members_GK] >= 0)
        log_GK = mechanism.chances_UK[members_GK, slot].clamp(min=1e-30).log()
        numbers_SM[drawn_G[known_G]] = torch.where(real_GK, number_U[members_GK], -1)[known_G]
        log_SM[drawn_G[known_G]] = torch.where(real_GK, log_GK, NEVER)[known_G]
    return Channel(
        read=lambda seen: _likeliest(lab, seen, drawn=True),
        numbers_SM=numbers_SM,
        log_SM=log_SM,
        log_other=NEVER,
        candidates=len(public.ids_V),
    )


def _codes(mechanism: Codes, lab: Lab) -> Channel:
    """The symbol is the code; how often each word has it is counted in simulations of the public text."""
    public, victim, centre_KD = lab.public, lab.victim, mechanism.centre_KD

    def read(seen: Seen) -> Tensor:
        return _nearest(seen.y_RD[seen.row_N], centre_KD)

    counts_SV = torch.zeros(len(centre_KD), len(public.ids_V))
    for _ in range(_DRAWS):
        drawn = victim.observe(public.records[:_RECORDS])
        _count(counts_SV, read(drawn.seen), public.index(drawn.ids_N), 1 / _DRAWS)
    usual_S1 = (counts_SV.sum(1) + 1).unsqueeze(1)
    counts_SV += _TRUST / 2 * usual_S1 / usual_S1.sum()
    alone = victim.observe(victim.alone(public.ids_V)).seen
    _count(counts_SV, read(alone), torch.arange(len(public.ids_V)), _TRUST / 2)
    return Channel(
        read=read,
        numbers_SM=torch.arange(len(public.ids_V)).expand(len(centre_KD), -1),
        log_SM=(counts_SV / counts_SV.sum(0)).log(),
        log_other=NEVER,
        candidates=len(public.ids_V),
        exact=False,
    )


def _count(counts_SV: Tensor, symbol_N: Tensor, number_N: Tensor, weight: float) -> None:
    known_N = number_N >= 0
    counts_SV.index_put_(
        (symbol_N[known_N], number_N[known_N]), torch.full((int(known_N.sum()),), weight), accumulate=True
    )


def _nearest(rows_ND: Tensor, centre_SD: Tensor) -> Tensor:
    bias_S = -0.5 * centre_SD.square().sum(1)
    return torch.addmm(bias_S, rows_ND, centre_SD.T).argmax(1)


def _likeliest(lab: Lab, seen: Seen, *, drawn: bool) -> Tensor:
    """The number of the candidate that the bottom read. drawn: a word of the vocabulary, no centre."""
    model = lab.token_model("oblivious" if drawn else "adaptive")
    y_ND = model.centred(seen)[seen.row_N]
    parts = [model.log_density(part).argmax(1) for part in torch.split(y_ND, CHUNK)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _members(symbol_V: Tensor, symbols: int) -> Tensor:
    """Candidate numbers of each symbol, padded with -1."""
    order_V = symbol_V.argsort(stable=True)
    sizes_S = torch.bincount(symbol_V, minlength=symbols)
    rank_V = torch.arange(len(symbol_V)) - (sizes_S.cumsum(0) - sizes_S)[symbol_V[order_V]]
    numbers_SM = torch.full((symbols, int(sizes_S.max())), -1)
    numbers_SM[symbol_V[order_V], rank_V] = order_V
    return numbers_SM


def prior_mean(channel: Channel, public: PublicText, vectors_VE: Tensor) -> Tensor:
    """For each symbol the mean vector of what may stand behind it, weighted by root of frequency times P(symbol | id).

    (S, E). The root keeps one frequent word from standing for all.
    """
    weight_V = (0.5 * public.log_prior_V).exp()
    parts = []
    for symbols in torch.split(torch.arange(channel.symbols), CHUNK):
        share_SV = channel.log_likelihood(symbols).exp() * weight_V
        parts.append(share_SV @ vectors_VE / share_SV.sum(1, keepdim=True).clamp(min=1e-30))
    return torch.cat(parts)
