"""Row-space test: which words' vectors lie in the span of a record's rows, whatever they were mixed with?

Sums of rows and secret mixtures (Y = M H with an M that only the device knows) hide which row is which word and keep
the span: if there are as many rows as words, the vector of each word is a combination of them, and of few others. The
attacker measures how far the vector of each candidate, at any position, is from the span, and names the nearest ones,
as a set. What is released row by row without a mixture is read by EIA-1; this test is for what shuffles, sums or mixes.

R rows of a record, V candidates, T positions, D hidden width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from privtune.device.audit.attacks.attack import Lab
from privtune.device.audit.attacks.channels import Finding, share_of
from privtune.device.audit.attacks.density import TokenModel
from privtune.device.audit.observed import Observed, Seen
from privtune.device.audit.victim import Knowledge
from privtune.shared.wording import counted

NAME = "words in the span of a record's rows"
_RECORDS = 50
_NULL = 1e-4  # singular values below this share of the largest are rounding
_TIE = 1e-6  # equal distances are decided by the prior


def row_space(lab: Lab, observed: Observed) -> Finding:
    """Share of each record's words among the candidates nearest to its span, as many as it has words.

    With clean vectors of words and with simulated ones; the better counts. Floor: the most frequent words instead.
    """
    few = observed.first(_RECORDS)
    usual = lab.public.ids_V[lab.public.counts_V.argsort(descending=True, stable=True)]
    truth = [few.ids_N[few.seen.record_N == record] for record in range(len(few.seen))]
    floor = float(np.mean([_found(ids_n, usual[: len(ids_n)]) for ids_n in truth if len(ids_n)]))
    by_model = []
    for knowledge in ("oblivious", "adaptive"):
        named = _named(lab, few.seen, knowledge, [len(ids_n) for ids_n in truth])
        by_model.append([_found(*both) for both in zip(truth, named, strict=True) if len(both[0])])
    best = np.array(max(by_model, key=lambda shares: float(np.mean(shares))))
    return Finding(
        name=NAME,
        figure=share_of(best, floor),
        text="Mixing the rows of a record, by sums or by a secret matrix, keeps their span. Counted are the record's "
        f"words among those nearest to it, in {counted(len(best), 'record')}; what is read row by row is in here as "
        "well.",
    )


def _named(lab: Lab, seen: Seen, knowledge: Knowledge, counts: list[int]) -> list[Tensor]:
    """The ids nearest to each record's span, as many as it has words."""
    model = lab.token_model(knowledge)
    prior_V = _TIE * lab.public.log_prior_V
    return [
        lab.public.ids_V[(prior_V - distances(model, one.y_RD)).topk(min(count, len(prior_V))).indices]
        for one, count in zip(seen.batches(1), counts, strict=True)
    ]


def distances(model: TokenModel, rows_RD: Tensor) -> Tensor:
    """Squared distance of each candidate's vector from the span of the rows, at its best position; (V,)."""
    _, value_R, axis_RD = torch.linalg.svd(rows_RD, full_matrices=False)
    axis_RD = axis_RD[value_R > _NULL * value_R.max()]
    # Every position has its own offset, and one word of the record may be at any.
    shift_TD = model.base_D + model.offset_TD[: len(rows_RD) + 1]
    left_VD = model.means_VD - model.means_VD @ axis_RD.T @ axis_RD
    left_TD = shift_TD - shift_TD @ axis_RD.T @ axis_RD
    cross_VT = 2 * left_VD @ left_TD.T + left_TD.square().sum(1)
    distance_V: Tensor = left_VD.square().sum(1) + cross_VT.amin(1)
    return distance_V


def _found(ids_n: Tensor, named_n: Tensor) -> float:
    return float(torch.isin(ids_n, named_n).double().mean())
