"""What a run says about its surrogates: in its statement, in the ledger, on the screen and in the report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from privtune.device.privacy.statements.statement import Statement
from privtune.device.privacy.statements.surrogate import surrogate_statement
from privtune.device.surrogates.coverage import Coverage
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.job_spec import MechanismSpec
from privtune.shared.wording import counted

# The parts of a job's data: the same record of a part always gets the same surrogates.
TRAINED, HELD_OUT = "train", "held out"


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """How the texts of a run were replaced.

    recognisers: those that ran.
    fingerprint: of settings, tables and recognisers.
    coverage: how much was replaced; None where the texts are still to come.
    """

    recognisers: tuple[str, ...]
    fingerprint: str
    coverage: Coverage | None = None

    @classmethod
    def of(cls, surrogates: Surrogates | None, coverage: Coverage | None = None) -> Replacement | None:
        """What these surrogates did; None without surrogates."""
        if surrogates is None:
            return None
        return cls(recognisers=surrogates.recognisers, fingerprint=surrogates.fingerprint, coverage=coverage)

    def claim(self, statement: Statement) -> Statement:
        """The mechanism's claim, together with that of surrogates."""
        counts = self.coverage
        shares = None if counts is None else (counts.share_replaced, counts.share_content_clear)
        return surrogate_statement(statement, self.recognisers, shares)

    def draw(self, secret: str, mechanism: MechanismSpec) -> str:
        """Names the texts that surrogates make of records; with noise, another secret makes other ones.

        Without noise a second set of surrogates tells no more of the words in clear than the first.
        """
        noised = "" if mechanism.name == "none" else secret
        return hashlib.sha256(f"{self.fingerprint}\0{noised}".encode()).hexdigest()

    def lines(self) -> list[str]:
        """For a terminal: words replaced, content words in clear. The statement names the recognisers."""
        if self.coverage is None:
            return []
        counts = self.coverage
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.kinds.items()))
        return [
            f"Surrogates replace {counts.share_replaced:.1%} of {counted(counts.words, 'word')}"
            + (f" ({kinds})." if kinds else "."),
            f"In clear: {counts.share_content_clear:.1%} of {counted(counts.content, 'content word')}, as they are.",
        ]
