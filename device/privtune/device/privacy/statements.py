"""Section by section, what may be said of a mechanism: one function a row of the table, none stronger than proved.

Each returns a `privacy.bounds.Statement` in plain language. Free of torch. The maths is in `privacy.bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from privtune.device.privacy.bounds import (
    ALWAYS,
    PairReport,
    Row,
    Statement,
    cluster_loss,
    dchi_loss,
    distinguishing,
    gaussian_mu,
    krr_keep_probability,
    laplace_bound,
    pooled_bound,
    position_bound,
    randomised_loss,
    typical_mu,
)

_ATTENTION = (
    "Through attention one token reaches every vector of its record, so changing ONE token is bounded by the record's "
    "figure, not by the position's, when the noise is injected at the cut."
)
SPECIALS = "Where the special tokens (start, separator, end) stand is public."


def none_statement(name: str = "none") -> Statement:
    """Row "none": vectors leave as they are."""
    return Statement(
        mechanism=name,
        row="none",
        guarantee="none",
        injection="cut",
        text="No noise: the cloud receives the clean representations and can recover nearly every word from them.",
        caveats=ALWAYS[:2],
    )


def metric_statement(
    *,
    name: str,
    injection: str,
    eta: float,
    dim: int,
    diameter: float | None,
    pairs: PairReport | None,
    shifted: bool = False,
) -> Statement:
    """Row "metric": equal d_chi noise on a public, context-free map g of the token (mean shift included).

    diameter: a PROVEN upper bound on ||g(t) - g(t')|| over all tokens and positions (2R after clipping to R); None if
    there is no such bound: then the guarantee is eta * distance and no worst case is named.
    """
    numbers = {"eta": eta, "expected_noise_norm": dim / eta}
    text = (
        "Metric privacy for each position: swapping one token for another shifts the odds of any release by at most "
        f"eta times the distance of their public vectors (eta = {eta:.4g})"
    )
    if diameter is None:
        text += "; no limit is stated for the farthest pair, because the vectors are not clipped."
    else:
        numbers |= {"worst_bound": dchi_loss(eta, diameter), "worst_mu": typical_mu(eta, diameter, dim)}
        text += f", never more than {numbers['worst_bound']:.4g} nats."
    if pairs is not None:
        numbers |= {f"neighbour_loss_{key}": value for key, value in pairs.quantiles.items()}
        numbers |= {"neighbour_loss_worst": pairs.worst, "neighbour_mu": pairs.mu, "told_apart": pairs.told_apart}
        text += (
            f" For a middling pair of neighbouring tokens the bound is {pairs.quantiles['p50']:.4g} nats and the "
            f"typical loss mu = {pairs.mu:.3g}: the best test tells the two apart {100 * pairs.told_apart:.0f} times "
            "in 100 (50 would be a coin)."
        )
    caveats = [*ALWAYS, "A worst-case bound above about 10 nats protects little by itself: look at the audit."]
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
            f"replacing a position shifts the odds of any release by at most 2*eta*R = {bound:.4g} nats, a record of n "
            f"positions by n times that. Typical loss at the farthest two vectors: mu = {mu:.3g}, told apart "
            f"{100 * distinguishing(mu):.0f} times in 100 (50 would be a coin)."
        ),
        numbers={
            "eta": eta,
            "clip": clip,
            "expected_noise_norm": dim / eta,
            "position_bound": bound,
            "position_mu": mu,
            "told_apart": distinguishing(mu),
        },
        caveats=(
            *ALWAYS,
            _ATTENTION,
            *extra,
        ),
        position_epsilon=bound,
        position_mu=mu,
    )


def no_bound_statement(*, name: str, row: Row, injection: str, numbers: dict[str, float], why: str) -> Statement:
    """Rows without a worst-case bound ("unclipped", "scale", "fitted", "cluster"): say so and point to the audit."""
    return Statement(
        mechanism=name,
        row=row,
        guarantee="none",
        injection=injection,
        text=f"No worst-case bound is claimed: {why} Only measured attack results (`privtune audit`) describe it.",
        numbers=numbers,
        caveats=ALWAYS[:2],
    )


def gaussian_statement(
    *, name: str, injection: str, epsilon: float, delta: float, clip: float, sigma: float, dim: int
) -> Statement:
    """Row "gaussian": N(0, sigma^2 I) on a vector clipped to `clip` before the noise; sensitivity 2 * clip."""
    mu = gaussian_mu(2 * clip, sigma)
    return Statement(
        mechanism=name,
        row="gaussian",
        guarantee="approximate",
        injection=injection,
        text=(
            f"Every vector is clipped to length {clip:.4g} before Gaussian noise of {sigma:.4g} a coordinate: "
            f"replacing one position is ({epsilon:.4g}, {delta:.2g})-private (mu = {mu:.3g}, told apart "
            f"{100 * distinguishing(mu):.0f} times in 100). A record of n positions has mu * sqrt(n)."
        ),
        numbers={
            "epsilon": epsilon,
            "delta": delta,
            "clip": clip,
            "sigma": sigma,
            "expected_noise_norm": sigma * math.sqrt(dim),
            "position_mu": mu,
            "told_apart": distinguishing(mu),
        },
        caveats=(
            *ALWAYS,
            _ATTENTION,
        ),
        position_epsilon=epsilon,
        position_mu=mu,
        delta=delta,
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
            f"Signals are scaled by {least:.3g} to 1 by an importance fitted on public text: the loss between two "
            "tokens is eta * ||a g - a' g'||, never more than the figure above.",
            "The importance counts a token's repeats in its record, so one changed token may change the vectors of its "
            "repeats too.",
        ),
    )
    return replace(base, row="gain")


def laplace_statement(*, name: str, injection: str, scale: float, dim: int, clip: float) -> Statement:
    """Row "laplace": independent Laplace noise of this scale a coordinate on vectors clipped to L2 norm `clip`.

    See `privtune.device.privacy.bounds.laplace_bound`.
    """
    bound = laplace_bound(scale, clip, dim)
    return Statement(
        mechanism=name,
        row="laplace",
        guarantee="pure",
        injection=injection,
        text=(
            f"Every vector is clipped to length {clip:.4g} before Laplace noise of scale {scale:.4g} a coordinate: "
            f"replacing a position shifts the odds of any release by at most {bound:.4g} nats, a record of n positions "
            "by n times that."
        ),
        numbers={
            "scale": scale,
            "clip": clip,
            "expected_noise_norm": scale * math.sqrt(2 * dim),
            "position_bound": bound,
        },
        caveats=(*ALWAYS, _ATTENTION),
        position_epsilon=bound,
    )


def cluster_statement(
    *,
    name: str,
    injection: str,
    clusters: int,
    least: int,
    guessed: float,
    eta: float | None = None,
    dim: int = 1,
    diameter: float = math.inf,
) -> Statement:
    """Row "cluster": one target (law) for all tokens of a public cluster; with d_chi noise a bound across too.

    guessed: share of running words that an attacker names who sees each cluster and knows word frequencies only.
    diameter: a proven upper bound on W_inf between any two targets.
    """
    across = cluster_loss(False, eta, diameter) if math.isfinite(diameter) else math.inf
    numbers = {"clusters": float(clusters), "least_cluster_size": float(least), "guessed_by_frequency": guessed}
    text = (
        f"Tokens of one public cluster ({clusters} clusters, at least {least} tokens each) get the same release: "
        "nothing of it tells them apart (loss 0). "
    )
    if eta is not None:
        numbers |= {"eta": eta, "expected_noise_norm": dim / eta}
    if math.isfinite(across):
        numbers["across_bound"] = across
        text += f"Between clusters the odds shift by at most {across:.4g} nats a position."
    else:
        text += "WHICH cluster it was is shown without limit."
    text += (
        f" Whoever sees every cluster and knows how frequent words are names {100 * guessed:.0f} in 100 running words; "
        "context can add to that (see the audit)."
    )
    return Statement(
        mechanism=name,
        row="cluster",
        guarantee="pure" if math.isfinite(across) else "none",
        injection=injection,
        text=text,
        numbers=numbers,
        caveats=(*ALWAYS, SPECIALS),
        position_epsilon=across if math.isfinite(across) else None,
    )


def randomised_statement(
    *,
    name: str,
    injection: str,
    epsilon: float,
    clusters: int,
    summed: int = 1,
    eta: float | None = None,
    within: float = 0.0,
    dim: int = 1,
) -> Statement:
    """Row "randomised": k-ary randomised response over public clusters, then a target of the reported cluster.

    summed: tokens whose targets one released vector adds up; all of them may change, so its bound is that many times
    a token's.
    """
    token = randomised_loss(epsilon, eta, within)
    keep = krr_keep_probability(epsilon, clusters)
    numbers = {
        "epsilon_cluster": epsilon,
        "clusters": float(clusters),
        "keep_probability": keep,
        "token_bound": token,
        "position_bound": summed * token,
    }
    if eta is not None:
        numbers |= {"eta": eta, "expected_noise_norm": dim / eta}
    text = (
        f"Each token's cluster (of {clusters}) is reported by randomised response, true with chance {keep:.3g}: "
        f"replacing any token shifts the odds of its record's release by at most {token:.4g} nats, a record of n "
        "tokens by n times that."
    )
    if summed > 1:
        text += f" A released vector holds up to {summed} tokens: at most {summed * token:.4g} nats a vector."
    return Statement(
        mechanism=name,
        row="randomised",
        guarantee="pure",
        injection=injection,
        text=text,
        numbers=numbers,
        caveats=(*ALWAYS, SPECIALS),
        position_epsilon=summed * token,
    )


def codes_statement(*, name: str, codes: int, epsilon: float) -> Statement:
    """Rows "cluster" and "randomised" for contextual codes: which of K public vectors a position is nearest to."""
    if epsilon == 0:
        return no_bound_statement(
            name=name,
            row="cluster",
            injection="cut",
            numbers={"codes": float(codes), "bits_a_position": math.log2(codes)},
            why=f"each position shows which of {codes} public codes it is nearest to, {math.log2(codes):.3g} bits.",
        )
    keep = krr_keep_probability(epsilon, codes)
    return Statement(
        mechanism=name,
        row="randomised",
        guarantee="pure",
        injection="cut",
        text=(
            f"Each position's code (of {codes}) is reported by randomised response, true with chance {keep:.3g}: "
            f"replacing a position shifts the odds of any release by at most {epsilon:.4g} nats, a record of n "
            "positions by n times that."
        ),
        numbers={"epsilon_code": epsilon, "codes": float(codes), "keep_probability": keep},
        caveats=(*ALWAYS, SPECIALS, _ATTENTION),
        position_epsilon=epsilon,
    )


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
            f"vector by at most {bound:.4g} nats, replacing one of them by at most {one:.4g}; a record of n released "
            "vectors by n times the first figure."
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
        caveats=(*ALWAYS, _ATTENTION, SPECIALS),
        position_epsilon=bound,
        position_mu=mu,
    )


def fitted_statement(statement: Statement, epsilon: float) -> Statement:
    """The same claim where a table it rests on was fitted on the private records with noise of `epsilon` a record."""
    cost = (
        "Tables were fitted on the private records with noise of their own: replacing one record shifts the odds of "
        f"these tables by at most {epsilon:.4g} nats, once for this data set."
    )
    numbers = {**statement.numbers, "fitted_epsilon": epsilon}
    return replace(statement, text=f"{statement.text} {cost}", fitted_epsilon=epsilon, numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class LabelStatement:
    """What may be claimed for labels that train as one randomised draw a record (label differential privacy).

    Randomised response (Warner 1965; Kairouz et al. 2014) on the label; whatever the device computes of the draw is
    post-processing, so epochs, retries and later jobs add nothing. Definition: Chaudhuri & Hsu 2011; Ghazi et al. 2021.
    """

    epsilon: float
    classes: int
    unsafe_seed: bool = False

    @property
    def keep(self) -> float:
        """Chance that a record trains with its true label."""
        return krr_keep_probability(self.epsilon, self.classes)

    def lines(self) -> list[str]:
        """The claim, then what it does not cover."""
        if self.unsafe_seed:
            return ["Labels: FIXED SEED, TESTS ONLY: whoever knows the seed undoes the draw. Nothing is claimed."]
        return [
            f"Labels: each record trains with one randomised label (of {self.classes}, true with chance "
            f"{self.keep:.3g}), drawn once and kept: all gradients of all epochs, and of later jobs on these records "
            f"with no larger epsilon, together shift the odds between any two labels of a record by at most "
            f"{self.epsilon:.4g} nats, given its released vectors.",
            *(f"- {caveat}" for caveat in LABEL_CAVEATS),
        ]


LABEL_CAVEATS = (
    "What a text tells of its label, its released vectors tell too: a good classifier in the cloud guesses it.",
    "Not covered: which labels there are, which records are held out (drawn by class), tables or importance fitted on "
    "private labels (accounted with the releases), and any job on the same records without label_epsilon.",
    "Equal records in one data set, and a record whose label was edited, are records of their own.",
)
