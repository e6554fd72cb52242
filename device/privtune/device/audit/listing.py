"""Which attacks there are, and when each applies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from privtune.device.audit.attacks.attack import Attack, Lab
from privtune.device.audit.attacks.attribute import AttributeSettings, PooledAttribute, SequenceAttribute, TextAttribute
from privtune.device.audit.attacks.beam import Beam
from privtune.device.audit.attacks.codebook import Codebook, CodebookSettings
from privtune.device.audit.attacks.continuation import Continuation
from privtune.device.audit.attacks.frequency import Frequency
from privtune.device.audit.attacks.learned import LearnedInversion, SequenceInversion, Tokenwise
from privtune.device.audit.attacks.masked import Masked
from privtune.device.audit.attacks.optimise import Optimise
from privtune.device.audit.attacks.reader import Reader
from privtune.device.audit.attacks.substitution import Substitution, SubstitutionSettings
from privtune.device.audit.case import Case
from privtune.device.audit.sizes import Size
from privtune.device.audit.victim import Knowledge

STATES = "mean of final states"
_PATCH = 8  # tokens


def by_token(
    case: Case, lab: Lab, size: Size, knowledge: Knowledge, inverter: LearnedInversion
) -> Iterator[tuple[str, Attack, int]]:
    """Attacks that need a row per token, by variant, and on how many records each runs. inverter: warms EIA-3."""
    reader = case.reader
    if size.optimise_records:
        yield "warm-started", Optimise(knowledge, inverter, size.optimise), size.optimise_records
    if reader is not None and size.beam_records:
        yield "language model", Beam(knowledge, reader, size.beam), size.beam_records
    if reader is not None and case.top is not None:
        yield "continuation", Continuation(knowledge, case.top, case.head), size.inverted
        if size.optimise_records:
            both_sides = Continuation(knowledge, case.top, case.head)
            in_patches = Optimise(knowledge, both_sides, replace(size.optimise, patch=_PATCH))
            yield "from both sides, in patches", in_patches, -(-size.optimise_records // 3)  # each takes longer
    if knowledge == "oblivious":
        return
    pretrained = case.pretrained
    if size.reader and pretrained is not None:
        yield "whole encoder", Reader(knowledge, pretrained, size.reader), size.inverted
    if size.masked and pretrained is not None:
        yield "masked language model", Masked(knowledge, pretrained, size.masked), size.inverted
    if lab.channel is not None:
        for variant, language in (("transition probabilities", False), ("transitions and bigrams", True)):
            yield variant, Substitution(knowledge, SubstitutionSettings(language=language)), size.inverted
        yield "frequency", Frequency(), size.inverted


def inversions(knowledge: Knowledge, size: Size) -> Iterator[tuple[str, Callable[[], Attack]]]:
    """The inversions that any mechanism allows, by variant."""
    for metric in size.metrics:
        settings = CodebookSettings(metric=metric)
        yield metric, lambda settings=settings: Codebook(knowledge, settings)  # type: ignore[misc]
    yield "token-wise MLP", lambda: Tokenwise(knowledge, size.tokenwise)
    yield "sequence inverter", lambda: SequenceInversion(knowledge, size.sequence)


def attribute_attacks(
    knowledge: Knowledge, pooled: AttributeSettings, sequence: AttributeSettings, inverter: LearnedInversion
) -> Iterator[tuple[str, Callable[[], Attack]]]:
    """AIA-1 to AIA-3, each with what it looks at. inverter: recovers the text for AIA-3."""
    on_states = replace(pooled, view="states")
    yield "mean of rows", lambda: PooledAttribute(knowledge, pooled)
    yield STATES, lambda: PooledAttribute(knowledge, on_states)
    yield "sequence of rows", lambda: SequenceAttribute(knowledge, sequence)
    yield "recovered text", lambda: TextAttribute(knowledge, inverter, pooled)
