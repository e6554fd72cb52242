"""Retrieval: which of many candidate texts was sent? For an attacker who suspects, or holds, the text itself.

The attacker runs the mechanism's public side on each candidate and takes the one under which the releases are most
probable. Few words may be readable and the text still be known again: a text of twenty clusters has few doubles.

B attacked records, M candidates of one length, R rows, n secret tokens of a record, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from privtune.device.audit.attacker_text import without_overlap
from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.channel import Channel
from privtune.device.audit.attacks.channels import Finding, share_of
from privtune.device.audit.observed import Observed, Seen
from privtune.device.data.encode import IntArray

NAME = "text recognised among candidates"
CANDIDATES = 10_000
_UNKNOWN = -20.0  # log probability of an id that the attacker does not consider
_TIE = 1e-4  # scores that differ by less are equal
_AT_ONCE = 512  # candidates whose rows are in memory


def retrieval(lab: Lab, observed: Observed, attacked: Sequence[IntArray], others: Sequence[IntArray]) -> Finding:
    """How often the attacked text is the best of all candidates: the attacked texts and the first of the others.

    observed: the releases of the attacked records, in their order. Ties count as a draw among equals. Floors: a draw
    among all candidates, and (`language_floor`) among those of the same length.
    """
    distinct = [attacked[index] for index in _distinct(attacked)]
    more = [others[index] for index in without_overlap(others, distinct)]
    more = [more[index] for index in _distinct(more)][: max(0, CANDIDATES - len(distinct))]
    candidates, channel = [*distinct, *more], lab.channel
    place = {np.asarray(ids_T).tobytes(): index for index, ids_T in enumerate(distinct)}
    truth = [place[np.asarray(ids_T).tobytes()] for ids_T in attacked]
    lengths_C = _rows(lab, candidates)
    right_B, alike_B = np.zeros(len(attacked)), np.zeros(len(attacked))
    by_record = list(observed.seen.batches(1))
    for length in torch.unique(observed.seen.lengths_B).tolist():
        records = (observed.seen.lengths_B == length).nonzero().flatten().tolist()
        chosen = (lengths_C == length).nonzero().flatten().tolist()
        texts = [candidates[index] for index in chosen]
        seen = [by_record[record] for record in records]
        known = channel is not None and channel.exact
        scores_BM = _by_law(lab, channel, seen, texts) if known and channel else _by_rows(lab, seen, texts)
        for record, scores_M in zip(records, scores_BM, strict=True):
            best_M = scores_M >= scores_M.max() - _TIE
            right_B[record] = float(best_M[chosen.index(truth[record])]) / int(best_M.sum())
            alike_B[record] = 1 / len(chosen)
    figure = share_of(right_B, 1 / len(candidates))
    return Finding(
        name=NAME,
        figure=replace(figure, language_floor=float(alike_B.mean())),
        text=f"Which of {len(candidates):,} candidate texts was sent? The length alone names "
        f"{100 * alike_B.mean():.1f}% of them.",
    )


def _by_law(lab: Lab, channel: Channel, seen: Sequence[Seen], texts: Sequence[IntArray]) -> Tensor:
    """Sum of log P(symbol | id) of each record under each text, (B, M)."""
    special = torch.tensor(sorted(lab.public.special_ids))
    ids_MT = torch.from_numpy(np.stack(texts)).long()
    number_MT = lab.public.index(ids_MT.flatten()).view_as(ids_MT)
    hidden_MT = ~torch.isin(ids_MT, special)
    scores = []
    for one in seen:
        log_nV = channel.log_likelihood(channel.read(one))
        place_n = one.place_R[one.row_N]
        log_Mn = log_nV[torch.arange(len(place_n)), number_MT[:, place_n].clamp(min=0)]
        log_Mn = torch.where(number_MT[:, place_n] < 0, _UNKNOWN, log_Mn)
        fits_M = (hidden_MT.sum(1) == len(place_n)) & hidden_MT[:, place_n].all(1)  # special ids are public
        scores.append(log_Mn.sum(1).masked_fill(~fits_M, -torch.inf))
    return torch.stack(scores)


def _by_rows(lab: Lab, seen: Sequence[Seen], texts: Sequence[IntArray]) -> Tensor:
    """Minus the distances of each record's rows from those of each text without normal noise, summed; (B, M).

    The log density of d_chi noise; normal noise would square the distances.
    """
    sent_BRD = torch.stack([one.y_RD for one in seen])
    parts = []
    for start in range(0, len(texts), _AT_ONCE):
        shown = lab.victim.quiet(texts[start : start + _AT_ONCE]).seen
        rows_MRD = shown.y_RD.view(len(shown), -1, shown.y_RD.shape[1])
        parts.append(-torch.stack([(rows_MRD - sent_RD).norm(dim=2).sum(1) for sent_RD in sent_BRD]))
    return torch.cat(parts, dim=1)


def _rows(lab: Lab, texts: Sequence[IntArray]) -> Tensor:
    """Released rows of each text."""
    if lab.victim.mechanism.shortens:
        return lab.victim.quiet(texts).seen.lengths_B
    return torch.tensor([len(ids_T) for ids_T in texts])


def _distinct(records: Sequence[IntArray]) -> list[int]:
    """The first place of each text."""
    first: dict[bytes, int] = {}
    for index, ids_T in enumerate(records):
        first.setdefault(np.asarray(ids_T).tobytes(), index)
    return list(first.values())
