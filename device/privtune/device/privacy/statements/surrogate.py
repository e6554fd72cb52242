"""The statement for texts whose identifying words were replaced by surrogates before the model read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from privtune.device.privacy.statements.statement import Statement

CLAIM = (
    "Surrogates: given types and the pattern of equal words, loss 0 between words of one type for what was replaced; "
    "words that were not replaced are in clear."
)
_CLEAR = "No noise: the cloud can recover nearly every word of the text that surrogates make."


def surrogate_statement(
    statement: Statement, recognisers: Sequence[str], shares: tuple[float, float] | None
) -> Statement:
    """Row "surrogate", before what the mechanism claims for the vectors of the replaced text.

    A mechanism with a claim of its own keeps its row and its figures: they are about the words in clear.

    Args:
        statement: the mechanism's.
        recognisers: those that ran.
        shares: of words replaced, and of content words in clear; None where the texts are still to come.
    """
    clear = statement.row == "none" and not statement.unsafe_seed
    parts, numbers = [CLAIM], dict(statement.numbers)
    if shares is not None:
        replaced, in_clear = shares
        parts.append(f"Replaced: {replaced:.1%} of words; in clear: {in_clear:.1%} of content words.")
        numbers |= {"words_replaced": replaced, "content_words_in_clear": in_clear}
    parts.append(_CLEAR if clear else f"On the text that surrogates make: {statement.text}")
    caveats = (
        f"What no recogniser finds leaves in clear. Recognisers that ran: {', '.join(recognisers)}.",
        "Visible: the type of each surrogate, upper or lower case, the shape of numbers, dates and codes, and which "
        "words of a record or conversation are equal. Words in clear "
        "may tell who or what is meant.",
    )
    return replace(
        statement,
        row="surrogate" if statement.row == "none" else statement.row,
        text=" ".join(parts),
        numbers=numbers,
        caveats=(*caveats, *statement.caveats),
    )
