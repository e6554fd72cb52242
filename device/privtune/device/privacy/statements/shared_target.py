"""Statements for tokens replaced by what their public cluster or code stands for, with or without randomised response.

A k-ary randomised response of epsilon followed by a target drawn without looking at the token costs epsilon: the
target is post-processing of the reported cluster.
"""

from __future__ import annotations

import math

from privtune.device.privacy.bounds import dchi_loss, krr_keep_probability
from privtune.device.privacy.statements.no_bound import no_bound_statement
from privtune.device.privacy.statements.statement import ALWAYS, ATTENTION, SPECIALS, Statement


def cluster_statement(
    *,
    name: str,
    injection: str,
    clusters: int,
    least: int,
    guessed: float,
    eta: float | None,
    dim: int,
    diameter: float,
) -> Statement:
    """Row "cluster": one target, or one distribution of targets, for all tokens of a public cluster.

    least: tokens in the smallest cluster.
    guessed: share of running words that an attacker names who sees each cluster and knows word frequencies only.
    eta: rate of d_chi noise on the target, which gives a bound across clusters; None: no noise.
    diameter: a proven upper bound on W_inf between any two targets.
    """
    numbers = {"clusters": float(clusters), "least_cluster_size": float(least), "guessed_by_frequency": guessed}
    text = (
        f"Tokens of one public cluster ({clusters} clusters, at least {least} tokens each) get the same release: "
        "nothing in it tells them apart (loss 0). "
    )
    across = None
    if eta is None:
        text += "WHICH cluster it was is revealed without limit."
    else:
        across = dchi_loss(eta, diameter)
        numbers |= {"eta": eta, "expected_noise_norm": dim / eta, "across_bound": across}
        text += f"Between clusters the odds shift by at most {across:.4g} nats per position."
    text += (
        f" An attacker who sees every cluster and knows word frequencies names {100 * guessed:.0f} in 100 running "
        "words; context can add to that (see the audit)."
    )
    return Statement(
        mechanism=name,
        row="cluster",
        guarantee="none" if across is None else "pure",
        injection=injection,
        text=text,
        numbers=numbers,
        caveats=(*ALWAYS, SPECIALS),
        position_epsilon=across,
    )


def randomised_statement(
    *,
    name: str,
    injection: str,
    epsilon: float,
    clusters: int,
    eta: float | None,
    dim: int,
    summed: int = 1,
) -> Statement:
    """Row "randomised": k-ary randomised response over public clusters, then a target of the reported cluster.

    eta: rate of d_chi noise on the target, which the bound does not need; None: no noise.
    summed: tokens whose targets one released vector adds up; all of them may change, so its bound is that many times
        a token's.
    """
    keep = krr_keep_probability(epsilon, clusters)
    numbers = {
        "epsilon_cluster": epsilon,
        "clusters": float(clusters),
        "keep_probability": keep,
        "token_bound": epsilon,
        "position_bound": summed * epsilon,
    }
    if eta is not None:
        numbers |= {"eta": eta, "expected_noise_norm": dim / eta}
    text = (
        f"Each token's cluster (of {clusters}) is reported by randomised response, true with probability {keep:.3g}: "
        f"replacing any token shifts the odds of its record's release by at most {epsilon:.4g} nats, replacing a "
        "record of n tokens by at most n times that."
    )
    if summed > 1:
        text += f" A released vector holds up to {summed} tokens: at most {summed * epsilon:.4g} nats per vector."
    return Statement(
        mechanism=name,
        row="randomised",
        guarantee="pure",
        injection=injection,
        text=text,
        numbers=numbers,
        caveats=(*ALWAYS, SPECIALS),
        position_epsilon=summed * epsilon,
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
            f"Each position's code (of {codes}) is reported by randomised response, true with probability {keep:.3g}: "
            f"replacing a position shifts the odds of any release by at most {epsilon:.4g} nats, replacing a record of "
            "n positions by at most n times that."
        ),
        numbers={"epsilon_code": epsilon, "codes": float(codes), "keep_probability": keep},
        caveats=(*ALWAYS, SPECIALS, ATTENTION),
        position_epsilon=epsilon,
    )
