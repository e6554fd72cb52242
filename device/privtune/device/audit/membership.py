"""Membership: was this record among those that an aggregate was made of? For class means and word counts under noise.

The attacker has the record and its label, the mechanism, the noised aggregate itself (more than a job reveals of the
class means, of which only directions are used) and other records of the same kind. Its score is the likelihood ratio
for normal sums: what the record adds, against the aggregate minus what others would have added (Homer et al. 2008;
Dwork et al. 2015). A third of the records makes the aggregate, a third does not, a third is what the attacker has.

B records, F numbers of the aggregate, D hidden width, C classes, U usable ids.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtune.device.audit.attacks.channels import Finding
from privtune.device.audit.metrics import AttributeScore, Figure
from privtune.device.data.encode import EncodedDataset
from privtune.device.noise.base import Mechanism
from privtune.device.noise.mechanisms.codes import Codes
from privtune.device.noise.mechanisms.pool import Pool
from privtune.device.noise.mechanisms.shared import Shared
from privtune.device.noise.randomness import noise_source
from privtune.device.noise.tables.class_directions import contributions, noised
from privtune.device.noise.tables.cluster_targets import ClusterTargets
from privtune.device.noise.tables.private_counts import LabelledRows, bounded_counts, counts_variance, noised_counts

NAME = "membership in"
_DRAWS = 20
_MOST = 4_000  # members
_TOGETHER = 1024  # numbers whose covariance is known; of more, only each variance


def membership(mechanism: Mechanism, data: EncodedDataset, seed: int = 0) -> list[Finding]:
    """How well members are told from others by each aggregate that the mechanism makes of private records.

    data: labelled records; a third of them, at random, are members. Figure: the area under the ROC curve, 0.5 by
    chance. The fewer the members, the better the attack: a job's aggregate has three times as many.
    """
    if data.labels is None:
        return []
    classes = max(len(data.label_names), int(data.labels.max()) + 1)
    order = np.random.default_rng(seed).permutation(len(data))[: 3 * _MOST]
    rows = LabelledRows(rows=[data.ids[place] for place in order], labels=data.labels[order], classes=classes)
    if isinstance(mechanism, Codes) and mechanism.params.task == "private":
        return [_in_means(mechanism, rows)]
    targets = mechanism.targets if isinstance(mechanism, Shared | Pool) else None
    if targets is not None and targets.params.groups in ("private", "both") and not targets.params.table:
        return [_in_counts(targets, rows)]
    return []


def _in_means(mechanism: Codes, rows: LabelledRows) -> Finding:
    epsilon, source = mechanism.params.epsilon_task, noise_source()
    weight_BC, away_BD, moved, *_ = contributions(mechanism.context, rows)
    each_BF = (weight_BC.unsqueeze(2) * away_BD.unsqueeze(1)).flatten(1)

    def release(sums_F: Tensor) -> Tensor:
        return noised(sums_F.float().unsqueeze(0), moved, epsilon, mechanism.law, source)[0].flatten()

    variance = noised(torch.zeros(1, each_BF.shape[1]), moved, epsilon, mechanism.law, source)[1]
    return _finding("class means", epsilon, each_BF, release, variance)


def _in_counts(targets: ClusterTargets, rows: LabelledRows) -> Finding:
    params, usable, source = targets.params, targets.context.usable_ids, noise_source()
    one_by_one = [
        LabelledRows(rows=[row], labels=rows.labels[place : place + 1], classes=rows.classes)
        for place, row in enumerate(rows.rows)
    ]
    each_BF = torch.stack([bounded_counts(one, usable, params.count_words, source)[0].flatten() for one in one_by_one])
    used_F = each_BF.any(0)  # the other cells say nothing of any of these records

    def release(counts_F: Tensor) -> Tensor:
        return noised_counts(counts_F, params.epsilon_counts, params.count_words, targets.law, source)

    variance = counts_variance(params.epsilon_counts, params.count_words, targets.law)
    return _finding("word counts by class", params.epsilon_counts, each_BF[:, used_F], release, variance)


def _finding(
    what: str, epsilon: float, each_BF: Tensor, release: Callable[[Tensor], Tensor], variance: float
) -> Finding:
    figure = membership_area(each_BF, release, variance)
    return Finding(
        name=f"{NAME} {what} (AUC)",
        figure=figure,
        text=f"Who has a record and sees the noised {what} of {len(each_BF) // 3:,} records (epsilon {epsilon:g}) asks "
        f"whether it was among them. 50 is chance; the mean of {_DRAWS} draws of the noise.",
    )


def membership_area(each_BF: Tensor, release: Callable[[Tensor], Tensor], variance: float) -> Figure:
    """The area under the ROC curve of the likelihood-ratio score, mean and spread over draws of the noise.

    each_BF: what each record adds; members, then others, then those that the attacker has, as many of each.
    release: draws the noised sum from the exact one. variance: of its noise, per number.
    """
    members_BF, others_BF, known_BF = torch.split(each_BF.double(), len(each_BF) // 3)[:3]
    tried_BF = torch.cat([members_BF, others_BF]) - known_BF.mean(0)
    expected_F, away_BF = len(members_BF) * known_BF.mean(0), known_BF - known_BF.mean(0)
    if each_BF.shape[1] <= _TOGETHER:
        spread_FF = len(members_BF) * away_BF.T @ away_BF / len(known_BF)
        spread_FF += (variance + 1e-3 * float(spread_FF.diagonal().mean())) * torch.eye(len(spread_FF))
        tried_BF = torch.linalg.solve(spread_FF, tried_BF.T).T
    else:
        tried_BF = tried_BF / (len(members_BF) * away_BF.square().mean(0) + variance).clamp(min=1e-12)
    total_F = members_BF.sum(0)
    member_B = (torch.arange(len(tried_BF)) < len(members_BF)).long().numpy()
    return _area([tried_BF @ (release(total_F).double() - expected_F) for _ in range(_DRAWS)], member_B)


def _area(scores: list[Tensor], member_B: NDArray[np.int64]) -> Figure:
    found = []
    for score_B in scores:
        score = AttributeScore(member_B)
        score.add(torch.stack([-score_B, score_B], dim=1))
        found.append(score.figures()["auc"].value)
    low, high = np.quantile(found, [0.025, 0.975])
    return Figure(value=float(np.mean(found)), low=float(low), high=float(high), floor=0.5)
