"""Statements for noise added to vectors: d_chi (metric, clipped, gain, pooled), Gaussian, Laplace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from privtune.device.privacy.bounds import (
    dchi_loss,
    distinguishing,
    gaussian_mu,
    laplace_bound,
    pooled_bound,
    position_bound,
    typical_mu,
)
from privtune.device.privacy.pair_report import PairReport
from privtune.device.privacy.statements.statement import ALWAYS, ATTENTION, SPECIALS, Statement


def metric_statement(
    *,
    name: str,
    injection: str,
    eta: float,
    dim: int,
    diameter: float | None,
    pairs: PairReport,
    shifted: bool = False,
) -> Statement:
    """Row "metric": equal d_chi noise on a public, context-free map g of the token (mean shift included).

    diameter: a PROVEN upper bound on ||g(t) - g(t')|| over all tokens and positions (2R after clipping to R); None if
    there is no such bound: then the guarantee is eta * distance and no worst case is named.
    """
    numbers = {"eta": eta, "expected_noise_norm": dim / eta}
    text = (
        "Metric privacy for each position: swapping one token for another shifts the odds of any release by at most "
        f"eta times the distance between their public vectors (eta = {eta:.4g})"
    )
    if diameter is None:
        text += "; no limit is stated for the farthest pair, because the vectors are not clipped."
    else:
        numbers |= {"worst_bound": dchi_loss(eta, diameter), "worst_mu": typical_mu(eta, diameter, dim)}
        text += f", never more than {numbers['worst_bound']:.4g} nats."
    numbers |= {f"neighbour_loss_{key}": value for key, value in pairs.quantiles.items()}
    numbers |= {"neighbour_loss_worst": pairs.worst, "neighbour_mu": pairs.mu, "told_apart": pairs.told_apart}
    text += (
        f" For the median pair of neighbouring tokens the bound is {pairs.quantiles['p50']:.4g} nats and the "
        f"typical loss mu = {pairs.mu:.3g}: the best test tells the two apart {100 * pairs.told_apart:.0f} times "
        "in 100 (50 is a coin flip)."
    )
    caveats = [*ALWAYS, "A worst-case bound above about 10 nats protects little by itself: see the audit."]
    if shifted:
        caveats.append("The mean shift comes from public tables; an attacker who has them is not misled by it.")
    return Statement(
        mechanism=name,
        row="metric",
        guarantee="metric" if diameter is None else "pure",
        injection=injection,
        text=text,
        numbers=numbers,
        caveats=tuple(caveats),
        position_epsilon=None if diameter is None else numbers["worst_bound"],
        position_mu=numbers.get("worst_mu"),
    )


def clipped_statement(
    *, name: str, injection: str, eta: float, dim: int, clip: float, extra: Sequence[str] = ()
) -> Statement:
    """Row "clipped": every vector clipped to `clip` before equal d_chi noise; holds at any injection point."""
    bound = position_bound(eta, clip)
    mu = typical_mu(eta, 2 * clip, dim)
    return Statement(
        mechanism=name,
        row="clipped",
        guarantee="pure",
        injection=injection,
        text=(
            f"Every vector is clipped to length {clip:.4g} before noise of expected length {dim / eta:.4g}: "
            f"replacing a position shifts the odds of any release by at most 2*eta*R = {bound:.4g} nats, replacing a "
            f"record of n positions by at most n times that. Typical loss for the two farthest vectors: mu = {mu:.3g}, "
            f"told apart {100 * distinguishing(mu):.0f} times in 100 (50 is a coin flip)."
        ),
        numbers={
            "eta": eta,
            "clip": clip,
            "expected_noise_norm": dim / eta,
            "position_bound": bound,
            "position_mu": mu,
            "told_apart": distinguishing(mu),
        },
        caveats=(*ALWAYS, ATTENTION, *extra),
        position_epsilon=bound,
        position_mu=mu,
    )


def gain_statement(*, name: str, injection: str, eta: float, dim: int, clip: float, least: float) -> Statement:
    """Row "gain": the clipped signal is scaled by a PUBLIC importance in [least, 1] under equal noise."""
    base = clipped_statement(
        name=name,
        injection=injection,
        eta=eta,
        dim=dim,
        clip=clip,
        extra=(
            f"Signals are scaled by {least:.3g} to 1, by an importance fitted on public text: the loss between two "
            "tokens is eta * ||a g - a' g'||, never more than the figure above.",
            "The importance counts a token's repeats in its record, so one changed token may change the vectors of its "
            "repeats too.",
        ),
    )
    return replace(base, row="gain")


def pooled_statement(*, name: str, injection: str, eta: float, dim: int, clip: float, size: int) -> Statement:
    """Row "clipped" for sums of `size` vectors clipped to `clip`, over sqrt(size), under equal d_chi noise."""
    bound = pooled_bound(eta, clip, size)
    mu = typical_mu(eta, 2 * clip * math.sqrt(size), dim)
    one = dchi_loss(eta, 2 * clip / math.sqrt(size))
    return Statement(
        mechanism=name,
        row="clipped",
        guarantee="pure",
        injection=injection,
        text=(
            f"Every vector is clipped to length {clip:.4g}, {size} neighbours are summed over the root of {size}, and "
            f"noise of expected length {dim / eta:.4g} is added: replacing all {size} shifts the odds of the released "
            f"vector by at most {bound:.4g} nats, replacing one of them by at most {one:.4g}; replacing a record of n "
            "released vectors by at most n times the first figure."
        ),
        numbers={
            "eta": eta,
            "clip": clip,
            "summed": float(size),
            "expected_noise_norm": dim / eta,
            "position_bound": bound,
            "one_vector_bound": one,
            "position_mu": mu,
            "told_apart": distinguishing(mu),
        },
        caveats=(*ALWAYS, ATTENTION, SPECIALS),
        position_epsilon=bound,
        position_mu=mu,
    )


def gaussian_statement(
    *,
    name: str,
    injection: str,
    epsilon: float,
    delta: float,
    clip: float,
    sigma: float,
    dim: int,
    support: str = "whole",
    half_width: float = math.inf,
    most_fisher: float = 1.0,
) -> Statement:
    """Row "gaussian": N(0, sigma^2 I) on a vector clipped to `clip` before the noise; sensitivity 2 * clip.

    Noise of bounded support has the same row (`privtune.device.noise.gaussian_noise` proves it), and a remark.

    half_width: of the box that values are released in; infinite without one.
    most_fisher: the largest Fisher information of a value, relative to noise without a box.
    """
    mu = gaussian_mu(2 * clip, sigma)
    remark, box = "", {}
    if math.isfinite(half_width):
        box = {"support_half_width": half_width, "most_fisher": most_fisher}
        remark = (
            f" Values are {support} to [-{half_width:.4g}, {half_width:.4g}], which leaves this worst case as it is. "
            f"SMALL changes of a vector show with at most {100 * most_fisher:.0f}% of the Fisher information of noise "
            "without that box; how much at the records' own vectors depends on them (`privtune ledger records`) and "
            "bounds nothing else."
        )
    if support == "truncated":
        box["position_pure_bound"] = 4 * half_width * clip * math.sqrt(dim) / sigma**2
        remark += f" No pair of vectors is ever more than {box['position_pure_bound']:.4g} nats apart."
    return Statement(
        mechanism=name,
        row="gaussian",
        guarantee="approximate",
        injection=injection,
        text=(
            f"Every vector is clipped to length {clip:.4g} before Gaussian noise of standard deviation {sigma:.4g} on "
            f"each coordinate: replacing one position is ({epsilon:.4g}, {delta:.2g})-private (mu = {mu:.3g}, told "
            f"apart {100 * distinguishing(mu):.0f} times in 100). A record of n positions has mu * sqrt(n).{remark}"
        ),
        numbers={
            "epsilon": epsilon,
            "delta": delta,
            "clip": clip,
            "sigma": sigma,
            "expected_noise_norm": sigma * math.sqrt(dim),
            "position_mu": mu,
            "told_apart": distinguishing(mu),
            **box,
        },
        caveats=(*ALWAYS, ATTENTION),
        position_epsilon=epsilon,
        position_mu=mu,
        delta=delta,
    )


def laplace_statement(*, name: str, injection: str, scale: float, dim: int, clip: float) -> Statement:
    """Row "laplace": independent Laplace noise of this scale on each coordinate of vectors clipped to L2 norm `clip`.

    See `privtune.device.privacy.bounds.laplace_bound`.
    """
    bound = laplace_bound(scale, clip, dim)
    return Statement(
        mechanism=name,
        row="laplace",
        guarantee="pure",
        injection=injection,
        text=(
            f"Every vector is clipped to length {clip:.4g} before Laplace noise of scale {scale:.4g} on each "
            f"coordinate: replacing a position shifts the odds of any release by at most {bound:.4g} nats, replacing a "
            "record of n positions by at most n times that."
        ),
        numbers={
            "scale": scale,
            "clip": clip,
            "expected_noise_norm": scale * math.sqrt(2 * dim),
            "position_bound": bound,
        },
        caveats=(*ALWAYS, ATTENTION),
        position_epsilon=bound,
    )
