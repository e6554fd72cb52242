"""The distribution of a released row given a token in it: one Gaussian per id, fitted to simulated releases.

An attacker can't average away the noise of a rare id by simulation, but can run the mechanism on any id with its normal
noise set to zero. So the mean of an id starts as the mechanism's output for that id alone in a record. How context, and
then the noise, change this mean is learned as a linear map (shrunk towards no change by cross-validation) and as a
residual of each id and position (shrunk towards zero, since samples are few: empirical Bayes; Efron & Morris 1973). All
ids share one covariance (linear discriminant analysis). If a row sums several tokens, the mean is the token's
contribution to the sum.

V candidates, N running tokens, R rows, T positions, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privtune.device.audit.attacker_text import PublicText
from privtune.device.audit.observed import Observed, Seen
from privtune.device.audit.victim import Knowledge, Victim

if TYPE_CHECKING:
    from privtune.device.audit.attacks.attack import Say

_RIDGE = 1e-4
_STRENGTHS = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
    10.0,
    100.0,
)  # of a penalty, over the mean eigenvalue
_ROUNDS = 3  # of assigning residuals to positions and to the tokens of a row
_SHARPEST = 1e-2  # least deviation of a row from its mean, relative to the spread of the means
_COUNT_CLASSES = (1, 4, 16, 64, 256)
_LEAST_TOKENS = 30_000  # least number of simulated tokens: several draws of a small public text


@dataclass(frozen=True, kw_only=True)
class TokenModel:
    """Row y at position p with s tokens, given token v in it: y - offset_p - fill_s ~ N(base + means_v, covariance).

    means_VD: contribution of each candidate.
    base_D: what the other tokens of the row add on average.
    offset_TD: by position in the record.
    fill_SD: by the number of tokens in the row.
    whiten_DD: W with W W' = inverse covariance.
    base_all_D, whiten_all_DD: the same given ALL tokens of the row; equal to the former if a row is one token.
    clean_DD, clean_D: the linear denoiser, from a centred row to the expected row without noise.
    """

    means_VD: Tensor
    base_D: Tensor
    offset_TD: Tensor
    fill_SD: Tensor
    whiten_DD: Tensor
    base_all_D: Tensor
    whiten_all_DD: Tensor
    clean_DD: Tensor
    clean_D: Tensor

    def centred(self, seen: Seen) -> Tensor:
        """y_RD without the effects of the position and of the number of tokens in the row."""
        return centred(seen, self.offset_TD, self.fill_SD)

    def log_density(self, y_ND: Tensor) -> Tensor:
        """Of centred rows given each candidate, up to a constant per row; (N, V)."""
        return self._law.scores(y_ND - self.base_D)

    def log_density_given_others(self, y_ND: Tensor, others_ND: Tensor) -> Tensor:
        """The same if the contributions of the row's other tokens are known (or guessed)."""
        return self._law_given_others.scores(y_ND - self.base_all_D - others_ND)

    @cached_property
    def _law(self) -> Gaussians:
        return Gaussians(self.means_VD, self.whiten_DD)

    @cached_property
    def _law_given_others(self) -> Gaussians:
        return Gaussians(self.means_VD, self.whiten_all_DD)


def centred(seen: Seen, offset_TD: Tensor, fill_SD: Tensor) -> Tensor:
    """y_RD without the effects of position and number of tokens. Positions beyond the table use its last row, zero."""
    place_R, fill_R = seen.place_R.clamp(max=len(offset_TD) - 1), seen.fill_R.clamp(max=len(fill_SD) - 1)
    return seen.y_RD - offset_TD[place_R] - fill_SD[fill_R]


class Gaussians:
    """One covariance and V means, whitened once, since rows come in many small parts."""

    def __init__(self, means_VD: Tensor, whiten_DD: Tensor) -> None:
        self._whiten_DD = whiten_DD
        self._white_VD = means_VD @ whiten_DD
        self._bias_V = -0.5 * self._white_VD.square().sum(1)

    def scores(self, x_ND: Tensor) -> Tensor:
        """-|| (x - mean) W ||^2 / 2 for each mean, without the term that all means share; (N, V)."""
        return torch.addmm(self._bias_V, x_ND @ self._whiten_DD, self._white_VD.T)


def fit_token_model(public: PublicText, victim: Victim, knowledge: Knowledge, say: Say) -> TokenModel:
    """Fit to clean vectors (oblivious) or to simulated releases (adaptive).

    The adaptive attacker first runs the mechanism without its noise, which shows the mean of each id (shifts and
    replacements included), then with it, for the covariance and for the effect of the noise on its way to the cut.
    """
    show = victim.quiet if knowledge == "adaptive" else victim.clean
    say("prototypes", 0.0)
    shown = show(public.records)
    alone = show(victim.alone(public.ids_V)).seen
    quiet = _fit(shown, alone.y_RD[alone.row_N], public, evenly=True)
    say("prototypes", 1.0)
    if knowledge == "oblivious":
        return quiet
    draws = max(1, -(-_LEAST_TOKENS // len(shown.ids_N)))
    drawn = victim.observe(public.records * draws)
    say("releases simulated", 1.0)
    return _fit(drawn, quiet.means_VD, public)


def _fit(drawn: Observed, reference_VD: Tensor, public: PublicText, *, evenly: bool = False) -> TokenModel:
    """The model of these rows.

    reference_VD: the means as known so far.
    evenly: rare ids count as much as frequent ones for the map, which is there for them.
    """
    seen, (index_N, known_N) = drawn.seen, _known(drawn, public)
    row_N = seen.row_N[known_N]
    used_R = torch.zeros(len(seen.y_RD), dtype=torch.bool)
    used_R[row_N] = True
    y_RD = seen.y_RD

    def sums(table_VD: Tensor) -> Tensor:
        return torch.zeros_like(y_RD).index_add_(0, row_N, table_VD[index_N])

    # Centred, so that a row of more tokens is not simply longer.
    counts_V = torch.bincount(index_N, minlength=len(reference_VD)).float()
    reference_VD = reference_VD - counts_V @ reference_VD / len(index_N)
    x_RD = sums(reference_VD)
    weight_R = None
    if evenly:
        weight_R = torch.zeros(len(y_RD)).index_add_(0, row_N, 1 / counts_V[index_N])[used_R]
    layout = _Layout(seen, used_R)
    for _ in range(2):  # the map and the effect of positions need each other
        map_DD = _change(x_RD[used_R], (y_RD - x_RD - layout.effect_RD)[used_R], weight_R)
        means_VD = reference_VD + reference_VD @ map_DD
        layout.fit(y_RD - sums(means_VD))
    moved_VD = torch.zeros_like(means_VD)
    for _ in range(_ROUNDS * seen.slots):  # all tokens of a row explain the same residual, so each takes its share
        residual_RD = y_RD - layout.effect_RD - sums(means_VD + moved_VD)
        own_ND = (residual_RD - residual_RD[used_R].mean(0))[row_N] + moved_VD[index_N]
        moved_VD += (_shrunk_residuals(own_ND, index_N, len(means_VD)) - moved_VD) / seen.slots
        layout.fit(y_RD - sums(means_VD + moved_VD))
    means_VD = means_VD + moved_VD
    y_RD = y_RD - layout.effect_RD
    least = _SHARPEST**2 * float(means_VD[index_N].var(0).mean())
    base_all_D, whiten_all_DD = _law((y_RD - sums(means_VD))[used_R], least)
    base_D, whiten_DD = _law(y_RD[row_N] - means_VD[index_N], least)
    clean_DD, clean_D = ridge(y_RD[used_R], x_RD[used_R])
    return TokenModel(
        means_VD=means_VD,
        base_D=base_D,
        offset_TD=layout.offset_TD,
        fill_SD=layout.fill_SD,
        whiten_DD=whiten_DD,
        base_all_D=base_all_D,
        whiten_all_DD=whiten_all_DD,
        clean_DD=clean_DD,
        clean_D=clean_D,
    )


class _Layout:
    """The effects of a row's position and number of tokens, estimated from the used rows."""

    def __init__(self, seen: Seen, used_R: Tensor) -> None:
        self._seen, self._used_R = seen, used_R
        width = seen.y_RD.shape[1]
        self.offset_TD = torch.zeros(int(seen.lengths_B.max()) + 1, width)  # the last row is for later positions
        self.fill_SD = torch.zeros(seen.slots + 1, width)

    @property
    def effect_RD(self) -> Tensor:
        """The effect on every row."""
        return self.offset_TD[self._seen.place_R] + self.fill_SD[self._seen.fill_R]

    def fit(self, rest_RD: Tensor) -> None:
        """Fit to what the tokens don't explain; one factor after the other."""
        place_R, fill_R = self._seen.place_R[self._used_R], self._seen.fill_R[self._used_R]
        rest_RD = rest_RD[self._used_R]
        rest_RD = rest_RD - rest_RD.mean(0)
        self.offset_TD = _shrunk_residuals(rest_RD - self.fill_SD[fill_R], place_R, len(self.offset_TD))
        self.fill_SD = _shrunk_residuals(rest_RD - self.offset_TD[place_R], fill_R, len(self.fill_SD))


def _known(observed: Observed, public: PublicText) -> tuple[Tensor, Tensor]:
    """Candidate number of each token that is one, and which tokens those are."""
    index_N = public.index(observed.ids_N)
    known_N = index_N >= 0
    return index_N[known_N], known_N


def _sum_by(x_ND: Tensor, index_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    sums_VD = torch.zeros(size, x_ND.shape[1]).index_add_(0, index_N, x_ND)
    return sums_VD, torch.bincount(index_N, minlength=size).float()


def ridge(x_ND: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(A, b) with y ~ x A + b: least squares with a small penalty relative to the spread of x."""
    mean_x, mean_y = x_ND.mean(0), y_ND.mean(0)
    centred_ND = x_ND - mean_x
    gram_DD = centred_ND.T @ centred_ND
    gram_DD += _RIDGE * gram_DD.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram_DD))
    map_DD = torch.linalg.solve(gram_DD, centred_ND.T @ (y_ND - mean_y))
    return map_DD, mean_y - mean_x @ map_DD


def _change(x_RD: Tensor, change_RD: Tensor, weight_R: Tensor | None) -> Tensor:
    """A with change ~ (x - mean) A: least squares with the penalty that generalised cross-validation prefers.

    Golub, Heath & Wahba (1979). The choices include no map at all (zero): additive noise needs none.
    """
    size = len(x_RD)
    weight_R = torch.ones(size) if weight_R is None else weight_R
    count = float(weight_R.sum().square() / weight_R.square().sum())  # effective number of rows
    share_R1 = (weight_R / weight_R.sum()).unsqueeze(1)
    x_RD, change_RD = x_RD - (share_R1 * x_RD).sum(0), change_RD - (share_R1 * change_RD).sum(0)
    value_D, axis_DD = torch.linalg.eigh((x_RD.T @ (share_R1 * x_RD)).double())
    value_D = value_D.clamp(min=0.0)
    along_DD = axis_DD.T @ (x_RD.T @ (share_R1 * change_RD)).double()
    total, power_D = float((share_R1 * change_RD.square()).sum()), along_DD.square().sum(1)
    best, best_D = total, torch.zeros_like(value_D)
    for strength in _STRENGTHS:
        inverse_D = 1 / (value_D + strength * value_D.mean().clamp(min=1e-12))
        left = total - float((power_D * inverse_D * (2 - value_D * inverse_D)).sum())
        spent = float((value_D * inverse_D).sum()) / count
        score = left / (1 - spent) ** 2 if spent < 1 else float("inf")
        if score < best:
            best, best_D = score, inverse_D
    change_DD: Tensor = (axis_DD @ (best_D.unsqueeze(1) * along_DD)).float()
    return change_DD


def _shrunk_residuals(residual_ND: Tensor, index_N: Tensor, size: int) -> Tensor:
    """Mean residual of each candidate times between / (between + within / count), variances by moments.

    The variance between ids is estimated separately for rare and frequent ids, or a few frequent ones would dominate.
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


def _law(residual_ND: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """(mean, W) of residuals, W W' = inverse of the covariance, which is shrunk a little towards its diagonal.

    least: variance added to each coordinate, so that rounding does not look like a difference.
    """
    mean_D = residual_ND.mean(0)
    centred_ND = residual_ND - mean_D
    cov_DD = centred_ND.T @ centred_ND / max(len(centred_ND) - 1, 1)
    spread = cov_DD.diagonal().mean().clamp(min=1e-12)
    part = min(1.0, cov_DD.shape[0] / max(len(residual_ND), 1))
    cov_DD = (1 - part) * cov_DD + part * spread * torch.eye(len(cov_DD)) + 1e-6 * spread * torch.eye(len(cov_DD))
    cov_DD += least * torch.eye(len(cov_DD))
    inverse_DD = torch.linalg.inv(cov_DD.double())
    return mean_D, torch.linalg.cholesky(inverse_DD).float()


def whitening(residual_ND: Tensor) -> Tensor:
    """W with W W' = inverse covariance of the residuals."""
    return _law(residual_ND)[1]
