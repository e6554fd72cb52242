"""Labels from slopes: which label of a record explains the noised numbers that a zeroth-order job sent?

The slopes of a step are released in aggregate, so this is their membership test, in the sense of the claim: the record
is there with this label or with that one. The attacker is the one that the claim is about. It knows the text and the
label of every other record, both outputs of each step and the head that took the slopes (only public seeds and sent
slopes make it), and so the slope that this record would have had with each label; only the noise is left to hide in.
The score is the likelihood ratio under the noise's own law, added over the steps.

B records, N of one step, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import ndtr

from privtune.device.audit.attacks.channels import Finding, share_of
from privtune.device.privacy.bounds import gaussian_mu
from privtune.device.privacy.statements import SlopeStatement
from privtune.device.release.slopes import noise_of

NAME = "labels from slopes, those of all others known"


@dataclass(frozen=True, kw_only=True)
class SlopeStep:
    """A step as the attacker sees it.

    record_N: which records took part. slope_NC: the slope of each, with each label, clipped; float64.
    total: the noised sum that was sent.
    """

    record_N: Tensor
    slope_NC: Tensor
    total: float


def labels_from_slopes(steps: Sequence[SlopeStep], labels_B: Tensor, claim: SlopeStatement) -> Finding:
    """How many records' labels are named. Floor: the most frequent label, which is the attacker's prior as well."""
    counts_C = torch.bincount(labels_B, minlength=int(labels_B.max()) + 1).double()
    score_BC = (counts_C / len(labels_B)).clamp(min=1e-12).log().expand(len(labels_B), -1).clone()
    seen_B = torch.zeros(len(labels_B), dtype=torch.bool)
    noise = noise_of(claim)
    for step in steps:
        slope_NC = step.slope_NC[:, : len(counts_C)]
        own_N1 = slope_NC.gather(1, labels_B[step.record_N].unsqueeze(1))
        others_N1 = own_N1.sum() - own_N1
        likelihood_NC = noise.log_likelihood(torch.tensor(step.total, dtype=torch.float64), others_N1 + slope_NC)
        score_BC.index_add_(0, step.record_N, likelihood_NC)
        seen_B[step.record_N] = True
    right_B = (score_BC.argmax(1) == labels_B)[seen_B].numpy()
    return Finding(
        name=NAME,
        figure=share_of(right_B, float(counts_C.max() / counts_C.sum())),
        text=f"Who knows every other record asks which label of this one explains the slopes of {len(steps):,} steps "
        f"(epsilon {claim.epsilon:.3g}). Of two labels that are equally probable, the claim lets at most "
        f"{100 * most_named(claim):.1f}% be named.",
    )


def most_named(claim: SlopeStatement) -> float:
    """How often anyone can tell two equally probable records apart: Phi(mu / 2) for mu-GDP (Dong et al. 2022)."""
    mu = gaussian_mu(2 * claim.clip * math.sqrt(claim.times), claim.sigma)
    return float(ndtr(torch.tensor(mu / 2)))
