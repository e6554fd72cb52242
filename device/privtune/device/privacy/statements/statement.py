"""What a claim consists of: one row of the table in docs/claims.md, and nothing stronger."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from privtune.device.privacy.bounds import compose_mu, compose_pure, gdp_epsilon
from privtune.shared.errors import InvalidInput

Row = Literal[
    "none",
    "metric",
    "clipped",
    "unclipped",
    "scale",
    "gain",
    "cluster",
    "randomised",
    "fitted",
    "gaussian",
    "laplace",
    "surrogate",
]
Guarantee = Literal["none", "metric", "pure", "approximate"]
FloatArray = NDArray[np.float64]

ALWAYS = (
    "The cloud sees how many vectors each record has.",
    "Gradients that training sends back reveal labels (a language model's labels are its text), unless "
    "label_epsilon bounds this, or a tail or zeroth_order keeps every gradient on the device.",
    "The bound is for one release of a record; it adds up if the record is released again under other settings.",
    "Computed in floating point: the ideal real-valued distributions are approximated.",
)
ATTENTION = (
    "Through attention one token reaches every vector of its record, so changing ONE token is bounded by the record's "
    "figure, not by the position's, when the noise is injected at the cut."
)
SPECIALS = "The positions of special tokens (start, separator, end) are public."


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What may be claimed for a mechanism as it is configured.

    row: the row of the table that applies.
    guarantee: "pure" (a finite worst-case loss), "metric" (pure, but a loss in proportion to a distance whose largest
        value is unknown), "approximate" (holds except with probability delta), "none".
    text: the claim in plain language.
    numbers: the figures behind it; a figure that is infinite or unknown is absent.
    caveats: what the claim does not cover.
    position_epsilon: worst-case loss of a position (nats); None if there is none.
    position_mu: mu of a position: typical loss under d_chi noise, exact under Gaussian noise.
    delta: of an "approximate" guarantee.
    fitted_epsilon: what tables fitted on the private records (with noise of their own) cost each record, once per data
        set, on top of the releases; the text says so.
    fitted_delta: of that cost.
    unsafe_seed: the noise came from a fixed seed, so NOTHING is claimed.
    """

    mechanism: str
    row: Row
    guarantee: Guarantee
    injection: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    position_epsilon: float | None = None
    position_mu: float | None = None
    delta: float = 0.0
    fitted_epsilon: float = 0.0
    fitted_delta: float = 0.0
    unsafe_seed: bool = False

    def __post_init__(self) -> None:
        finite = self.position_epsilon is not None and math.isfinite(self.position_epsilon)
        if self.guarantee in ("pure", "approximate") and not finite:
            raise InvalidInput(f"a guarantee of kind {self.guarantee} needs a finite loss")
        if self.guarantee in ("none", "metric") and self.position_epsilon is not None:
            raise InvalidInput(f"a guarantee of kind {self.guarantee} can't name a worst-case loss")
        if any(not math.isfinite(value) for value in self.numbers.values()):
            raise InvalidInput("a statement's numbers must be finite")

    def record_epsilon(self, positions: float) -> float | None:
        """Worst-case loss of one release of a whole record of n positions; None where nothing is claimed.

        For the approximate guarantee it is at the statement's delta for the whole record, by mu composition. The cost
        of fitted tables is included.
        """
        if self.unsafe_seed or self.position_epsilon is None:
            return None
        if self.guarantee == "pure":
            return self.fitted_epsilon + compose_pure(self.position_epsilon, positions)
        if self.position_mu is None:
            return None
        return self.fitted_epsilon + gdp_epsilon(compose_mu(self.position_mu, positions), self.delta)

    def own_epsilons(self, rows_N: FloatArray, fitted_share_N: FloatArray) -> FloatArray:
        """The loss of each of N records; NaN where nothing is claimed.

        Args:
            rows_N: the worst rows that each record's rows amount to (`Mechanism.own_rows`); 0: it was not released.
            fitted_share_N: each record's share of the cost of fitted tables.
        """
        up_N = rounded_up(rows_N) if self.delta else rows_N
        different, which_N = np.unique(up_N, return_inverse=True)
        bounds = (self.record_epsilon(rows) for rows in different.tolist())
        losses = np.array([math.nan if bound is None else bound - self.fitted_epsilon for bound in bounds])
        return losses[which_N] + self.fitted_epsilon * fitted_share_N

    def marked_unsafe(self) -> Statement:
        """The same mechanism with a fixed seed: every claim is withdrawn."""
        return replace(
            self,
            guarantee="none",
            position_epsilon=None,
            position_mu=None,
            fitted_epsilon=0.0,
            fitted_delta=0.0,
            unsafe_seed=True,
            text=f"FIXED SEED, TESTS ONLY: whoever knows the seed removes the noise. Nothing is claimed. ({self.text})",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "caveats": list(self.caveats)}

    def lines(self) -> list[str]:
        """For a terminal: the claim, then each caveat."""
        return [self.text, *(f"- {caveat}" for caveat in self.caveats)]


def rounded_up(values_N: FloatArray) -> FloatArray:
    """Up to three digits: what is searched for is searched once for the many records of a large file that share it."""
    exponent_N = np.floor(np.log10(np.maximum(values_N, 1e-12))) - 2
    up_N: FloatArray = np.ceil(values_N / 10.0**exponent_N - 1e-9) * 10.0**exponent_N
    return up_N
