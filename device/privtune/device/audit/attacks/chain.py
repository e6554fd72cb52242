"""Which words fit together: forward-backward over the best candidates of each position, under a bigram model.

N secret tokens, K candidates each, B records, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privtune.device.audit.attacker_text import Bigrams

_CHUNK = 64  # records at a time: 64 x 50 x 50 transitions


def smooth(
    scores_NK: Tensor,
    ids_NK: Tensor,
    record_N: Tensor,
    bigrams: Bigrams,
    before_text: int,
    after_text: int | None = None,
) -> Tensor:
    """Log posterior of each candidate given the scores of its whole record, up to a constant per position; (N, K).

    scores_NK: log density of the release given the candidate.
    record_N: sorted.
    before_text, after_text: the ids before the first and after the last position; None if nothing marks the end.
    """
    out_NK = torch.empty_like(scores_NK)
    bounds = torch.searchsorted(record_N, torch.arange(int(record_N.max()) + 2) if len(record_N) else record_N[:0])
    lengths_B = (bounds[1:] - bounds[:-1]) if len(bounds) else bounds
    order = lengths_B.argsort()
    for records in torch.split(order[lengths_B[order] > 0], _CHUNK):
        lengths, starts = lengths_B[records], bounds[:-1][records]
        steps = torch.arange(int(lengths.max()))
        unit_BT = starts.unsqueeze(1) + steps.clamp(max=len(scores_NK) - 1)
        real_BT = steps < lengths.unsqueeze(1)
        unit_BT = torch.where(real_BT, unit_BT, starts.unsqueeze(1))
        posterior_BTK = _forward_backward(
            scores_NK[unit_BT], ids_NK[unit_BT], real_BT, bigrams, before_text, after_text
        )
        out_NK[unit_BT[real_BT]] = posterior_BTK[real_BT]
    return out_NK


def _forward_backward(
    scores_BTK: Tensor,
    ids_BTK: Tensor,
    real_BT: Tensor,
    bigrams: Bigrams,
    before_text: int,
    after_text: int | None,
) -> Tensor:
    """The recursions in logs; a position past a record's end passes its neighbour's message on."""
    steps = scores_BTK.shape[1]
    moves = [
        bigrams.log_prob(ids_BTK[:, t - 1].unsqueeze(2), ids_BTK[:, t].unsqueeze(1)) for t in range(1, steps)
    ]  # each (B, K, K): from, to
    first_BK = bigrams.log_prob(torch.tensor(before_text), ids_BTK[:, 0])
    forward = [first_BK + scores_BTK[:, 0]]
    for t in range(1, steps):
        reached_BK = torch.logsumexp(forward[-1].unsqueeze(2) + moves[t - 1], dim=1)
        forward.append(reached_BK + scores_BTK[:, t])

    def end_BK(t: int) -> Tensor:
        """Log P of the end of a text whose last position is t."""
        if after_text is None:
            return torch.zeros_like(first_BK)
        return bigrams.log_prob(ids_BTK[:, t], torch.tensor(after_text))

    backward_BK = end_BK(steps - 1)
    posterior = [forward[-1] + backward_BK]
    for t in range(steps - 2, -1, -1):
        through_BK = torch.logsumexp(moves[t] + (scores_BTK[:, t + 1] + backward_BK).unsqueeze(1), dim=2)
        backward_BK = torch.where(real_BT[:, t + 1].unsqueeze(1), through_BK, end_BK(t))
        posterior.append(forward[t] + backward_BK)
    return torch.stack(posterior[::-1], dim=1)
