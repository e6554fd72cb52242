"""Statements without a worst-case bound: clean vectors, and noise for which no bound is proved."""

from __future__ import annotations

from privtune.device.privacy.statements.statement import ALWAYS, Row, Statement


def none_statement() -> Statement:
    """Row "none": vectors leave as they are."""
    return Statement(
        mechanism="none",
        row="none",
        guarantee="none",
        injection="cut",
        text="No noise: the cloud receives the clean representations and can recover nearly every word from them.",
        caveats=ALWAYS[:2],
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
