"""What a job with early stopping tells the cloud of its held-out records, in the words of a statement."""

from __future__ import annotations

from dataclasses import replace

from privtune.device.privacy.statements.statement import Statement

STOPPED = (
    "Held-out records decide on the device when training stops and which state is kept. The cloud learns both once, at "
    "the end, and of the evaluations nothing else: of K of them at most log2(K) bits about all these records together. "
    "No bound covers these bits."
)


def stopped_statement(statement: Statement) -> Statement:
    """The statement of a job that may end early."""
    return replace(statement, caveats=(*statement.caveats, STOPPED))
