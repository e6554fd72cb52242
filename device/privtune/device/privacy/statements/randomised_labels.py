"""The statement for labels that train as one randomised draw per record (label differential privacy)."""

from __future__ import annotations

from dataclasses import dataclass

from privtune.device.privacy.bounds import krr_keep_probability

LABEL_CAVEATS = (
    "What a text reveals about its label, its released vectors reveal too: a good classifier in the cloud guesses it.",
    "Not covered: which labels there are, which records are held out (drawn by class), tables or importance fitted on "
    "private labels (accounted with the releases), and any job on the same records without label_epsilon.",
    "Identical records in one data set, and a record whose label was edited, count as separate records.",
)


@dataclass(frozen=True, kw_only=True)
class LabelStatement:
    """What may be claimed for the labels of a job with `label_epsilon`.

    Randomised response (Warner 1965; Kairouz et al. 2014) on the label; whatever the device computes from the draw is
    post-processing, so epochs, retries and later jobs add nothing. Definition: Chaudhuri & Hsu 2011; Ghazi et al. 2021.

    epsilon: of the randomised response.
    classes: number of labels.
    unsafe_seed: the draw came from a fixed seed, so NOTHING is claimed.
    """

    epsilon: float
    classes: int
    unsafe_seed: bool = False

    @property
    def keep(self) -> float:
        """Probability that a record trains with its true label."""
        return krr_keep_probability(self.epsilon, self.classes)

    def lines(self) -> list[str]:
        """The claim, then what it does not cover."""
        if self.unsafe_seed:
            return ["Labels: FIXED SEED, TESTS ONLY: whoever knows the seed undoes the draw. Nothing is claimed."]
        return [
            f"Labels: each record trains with one randomised label (of {self.classes}, true with probability "
            f"{self.keep:.3g}), drawn once and kept: all gradients of all epochs, and of later jobs on these records "
            f"with no larger epsilon, together shift the odds between any two labels of a record by at most "
            f"{self.epsilon:.4g} nats, given its released vectors.",
            *(f"- {caveat}" for caveat in LABEL_CAVEATS),
        ]
