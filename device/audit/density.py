"""What a released row looks like given a token in it: one Gaussian for each id, fitted to simulated releases.

An attacker can't average the noise of a rare id away by simulation. So the mean of an id is a linear image of its clean
prototype (fitted over all tokens at once), plus its own residual, shrunk as far as its few samples demand
(empirical Bayes; Efron & Morris 1973). All ids share one covariance (linear discriminant analysis). Where a row sums
several tokens, the mean is the token's contribution to the sum.

V candidates, N running tokens, R rows, T places, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from device.audit.public import PublicText
from device.audit.victim import Knowledge, Observed, Seen, Victim
from device.data.encode import IntArray

if TYPE_CHECKING:
    from device.audit.base import Say

_PLACE_PRIOR = 30.0  # rows at a place before its own offset is trusted by half
_RIDGE = 1e-4
_BACKFITS = 5  # rounds in which the residual of a sum is dealt to its tokens
_ALONE_WEIGHT = 1.0  # how many running tokens the state of an id alone is worth in its prototype
_COUNT_CLASSES = (1, 4, 16, 64, 256)
_LEAST_TOKENS = 30_000  # simulated tokens at least: several draws of a small public text


@dataclass(frozen=True, kw_only=True)
class TokenModel:
    """row y at place p, given token v in it: y - offset_p ~ N(base + means_v, covariance).

    means_VD: contribution of each candidate; base_D: what the other tokens of the row add on average; offset_TD: by
    place in the record; whiten_DD: W with W W' = inverse covariance; base_all_D, whiten_all_DD: the same given ALL
    tokens of the row (equal to the former where a row is one token); clean_DD, clean_D: the linear denoiser
    y - offset -> expected sum of prototypes.
    """

    means_VD: Tensor
    base_D: Tensor
    offset_TD: Tensor
    whiten_DD: Tensor
    base_all_D: Tensor
    whiten_all_DD: Tensor
    clean_DD: Tensor
    clean_D: Tensor

    def centred(self, seen: Seen) -> Tensor:
        """y_RD without the effect of the place."""
        return seen.y_RD - self.offset_TD[seen.place_R.clamp(max=len(self.offset_TD) - 1)]

    def log_density(self, y_ND: Tensor) -> Tensor:
        """Of centred rows given each candidate, up to a constant a row; (N, V)."""
        return gaussian_scores(y_ND - self.base_D, self.means_VD, self.whiten_DD)

    def log_density_given_others(self, y_ND: Tensor, others_ND: Tensor) -> Tensor:
        """The same where the contributions of the row's other tokens are known (or guessed)."""
        return gaussian_scores(y_ND - self.base_all_D - others_ND, self.means_VD, self.whiten_all_DD)


def gaussian_scores(x_ND: Tensor, means_VD: Tensor, whiten_DD: Tensor) -> Tensor:
    """-|| (x - mean) W ||^2 / 2 for each mean, without the term that all means share; (N, V)."""
    white_VD = means_VD @ whiten_DD
    scores_NV: Tensor = torch.addmm(-0.5 * white_VD.square().sum(1), x_ND @ whiten_DD, white_VD.T)
    return scores_NV


def fit_token_model(public: PublicText, victim: Victim, knowledge: Knowledge, say: Say) -> TokenModel:
    """Fit to clean vectors (oblivious) or to simulated releases (adaptive).

    The adaptive attacker first runs the mechanism without its noise, which shows the mean of each id (shifts and
    replacements included), then with it, for the covariance and for what the noise does on its way to the cut.
    """
    mechanism = victim.mechanism
    show = victim.quiet if knowledge == "adaptive" and not mechanism.shortens else victim.clean
    say("prototypes", 0.0)
    shown = show(public.records)
    prototypes_VD = _prototypes(shown, show, public, victim)
    say("prototypes", 1.0)
    if knowledge == "oblivious":
        return _fit(shown, prototypes_VD, public)
    if mechanism.shortens:
        prototypes_VD = _fit(victim.quiet(public.records), prototypes_VD, public, rounds=_BACKFITS).means_VD
    draws = max(1, -(-_LEAST_TOKENS // len(shown.ids_N)))
    drawn = victim.observe(public.records * draws)
    say("releases simulated", 1.0)
    return _fit(drawn, prototypes_VD, public)


def _prototypes(
    shown: Observed, show: Callable[[Sequence[IntArray]], Observed], public: PublicText, victim: Victim
) -> Tensor:
    """Mean state of each candidate over running text; ids without one from their state alone in a record.

    States alone are mapped onto running text linearly, fitted on the ids that have both.
    """
    index_N, known_N = _known(shown, public)
    row_N = shown.seen.row_N[known_N]
    states_ND = shown.seen.y_RD[row_N]
    sums_VD, counts_V = _sum_by(states_ND, index_N, len(public.ids_V))
    means_VD = sums_VD / counts_V.clamp(min=1).unsqueeze(1)
    if (counts_V == 0).any():
        alone_VD = _alone(show, public, victim)
        both = counts_V > 0
        map_DD, shift_D = ridge(alone_VD[both], means_VD[both])
        weight_V1 = (_ALONE_WEIGHT / (_ALONE_WEIGHT + counts_V)).unsqueeze(1)
        means_VD = weight_V1 * (alone_VD @ map_DD + shift_D) + (1 - weight_V1) * means_VD
    # The effect of the place is taken out of the means: it would differ between rare and frequent ids.
    offset_TD = _offsets(shown.seen, row_N, states_ND - means_VD[index_N])
    sums_VD, counts_V = _sum_by(states_ND - offset_TD[shown.seen.place_R[row_N]], index_N, len(public.ids_V))
    weight_V1 = (_ALONE_WEIGHT / (_ALONE_WEIGHT + counts_V)).unsqueeze(1)
    return weight_V1 * means_VD + (1 - weight_V1) * sums_VD / counts_V.clamp(min=1).unsqueeze(1)


def _alone(show: Callable[[Sequence[IntArray]], Observed], public: PublicText, victim: Victim) -> Tensor:
    """State of each candidate as the only word of a record."""
    context = victim.mechanism.context
    before, after = np.array(context.prefix, dtype=np.int32), np.array(context.suffix, dtype=np.int32)
    ids_V = public.ids_V.numpy().astype(np.int32)
    seen = show([np.concatenate([before, [token], after]).astype(np.int32) for token in ids_V]).seen
    return seen.y_RD[seen.row_N]


def _fit(drawn: Observed, prototypes_VD: Tensor, public: PublicText, rounds: int = 1) -> TokenModel:
    seen, (index_N, known_N) = drawn.seen, _known(drawn, public)
    row_N = seen.row_N[known_N]
    used_R = torch.zeros(len(seen.y_RD), dtype=torch.bool)
    used_R[row_N] = True

    def sums(table_VD: Tensor) -> Tensor:
        return torch.zeros_like(seen.y_RD).index_add_(0, row_N, table_VD[index_N])

    x_RD = sums(prototypes_VD)
    map_DD, shift_D = ridge(x_RD[used_R], seen.y_RD[used_R])
    offset_TD = _offsets(seen, used_R.nonzero().flatten(), (seen.y_RD - x_RD @ map_DD - shift_D)[used_R])
    y_RD = seen.y_RD - offset_TD[seen.place_R]
    map_DD, shift_D = ridge(x_RD[used_R], y_RD[used_R])
    means_VD = prototypes_VD @ map_DD
    for _ in range(rounds):
        residual_RD = y_RD - sums(means_VD) - shift_D
        means_VD = means_VD + _shrunk_residuals(residual_RD[row_N], index_N, len(means_VD))

    base_all_D, whiten_all_DD = _law((y_RD - sums(means_VD))[used_R])
    base_D, whiten_DD = _law(y_RD[row_N] - means_VD[index_N])
    clean_DD, clean_D = ridge(y_RD[used_R], x_RD[used_R])
    return TokenModel(
        means_VD=means_VD,
        base_D=base_D,
        offset_TD=offset_TD,
        whiten_DD=whiten_DD,
        base_all_D=base_all_D,
        whiten_all_DD=whiten_all_DD,
        clean_DD=clean_DD,
        clean_D=clean_D,
    )


def _known(observed: Observed, public: PublicText) -> tuple[Tensor, Tensor]:
    """Candidate number of each token that is one, and which tokens those are."""
    index_N = public.index(observed.ids_N)
    known_N = index_N >= 0
    return index_N[known_N], known_N


def _sum_by(x_ND: Tensor, index_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    sums_VD = torch.zeros(size, x_ND.shape[1]).index_add_(0, index_N, x_ND)
    return sums_VD, torch.bincount(index_N, minlength=size).float()


def _offsets(seen: Seen, row_N: Tensor, residual_ND: Tensor) -> Tensor:
    """Mean residual at each place, shrunk where few rows stand there; (T + 1, D), the last row zero for later ones."""
    sums_TD, counts_T = _sum_by(residual_ND, seen.place_R[row_N], int(seen.lengths_B.max()) + 1)
    return sums_TD / (counts_T + _PLACE_PRIOR).unsqueeze(1)


def ridge(x_ND: Tensor, y_ND: Tensor, strength: float = _RIDGE) -> tuple[Tensor, Tensor]:
    """(A, b) with y ~ x A + b: least squares with a small penalty relative to the spread of x."""
    mean_x, mean_y = x_ND.mean(0), y_ND.mean(0)
    centred_ND = x_ND - mean_x
    gram_DD = centred_ND.T @ centred_ND
    gram_DD += strength * gram_DD.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram_DD))
    map_DD = torch.linalg.solve(gram_DD, centred_ND.T @ (y_ND - mean_y))
    return map_DD, mean_y - mean_x @ map_DD


def _shrunk_residuals(residual_ND: Tensor, index_N: Tensor, size: int) -> Tensor:
    """Mean residual of each candidate times between / (between + within / count), variances by moments.

    How far ids stray from the line is estimated apart for rare and frequent ids, or a few frequent ones would rule.
    """
    sums_VD, counts_V = _sum_by(residual_ND, index_N, size)
    there = counts_V > 0
    means_VD = sums_VD / counts_V.clamp(min=1).unsqueeze(1)
    within = (residual_ND - means_VD[index_N]).square().sum() / max(len(index_N) - int(there.sum()), 1)
    excess_V = means_VD.square().sum(1) - within / counts_V.clamp(min=1)
    shrink_V = torch.zeros(size)
    for low, high in zip(_COUNT_CLASSES, (*_COUNT_CLASSES[1:], float("inf")), strict=True):
        alike = (counts_V >= low) & (counts_V < high)
        if alike.any():
            between = excess_V[alike].mean().clamp(min=0.0)
            shrink_V[alike] = between / (between + within / counts_V[alike]).clamp(min=1e-30)
    return means_VD * shrink_V.unsqueeze(1)


def _law(residual_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, W) of residuals, W W' = inverse covariance, which is shrunk a little towards its diagonal."""
    mean_D = residual_ND.mean(0)
    centred_ND = residual_ND - mean_D
    cov_DD = centred_ND.T @ centred_ND / max(len(centred_ND) - 1, 1)
    spread = cov_DD.diagonal().mean().clamp(min=1e-12)
    part = min(1.0, cov_DD.shape[0] / max(len(residual_ND), 1))
    cov_DD = (1 - part) * cov_DD + part * spread * torch.eye(len(cov_DD)) + 1e-6 * spread * torch.eye(len(cov_DD))
    inverse_DD = torch.linalg.inv(cov_DD.double())
    return mean_D, torch.linalg.cholesky(inverse_DD).float()


def whitening(residual_ND: Tensor) -> Tensor:
    """W with W W' = inverse covariance of the residuals."""
    return _law(residual_ND)[1]
