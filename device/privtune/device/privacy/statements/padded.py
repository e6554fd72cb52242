"""What padding hides of the lengths of records, in the words of a statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from privtune.device.privacy.statements.statement import ALWAYS, Statement


def padded_statement(statement: Statement, lengths: Sequence[int]) -> Statement:
    """The statement of a mechanism whose records are padded, in place of its caveat about lengths.

    With a bound, the bound of a record is that of all its rows, and so covers its length among those that are padded
    alike: filler is a word, released as any other.
    """
    named = ", ".join(map(str, lengths[:-1])) + (" or " if lengths[:-1] else "") + str(lengths[-1])
    seen = f"Records are padded to {named} tokens with random words, so the cloud sees which of these a record has"
    if statement.row == "none":
        rest = "; without noise it reads the words, and so where a text ends: only who watches the line does not"
    elif statement.position_epsilon is not None:
        rest = "; a record's bound covers the rest of its length"
    else:
        rest = "; how well an attacker tells filler from text is not bounded"
    inside = "Special tokens inside a record (pairs, turns) stay visible; what the tuned model writes is not padded."
    kept = tuple(caveat for caveat in statement.caveats if caveat != ALWAYS[0])
    return replace(statement, caveats=(f"{seen}{rest}. {inside}", *kept))
