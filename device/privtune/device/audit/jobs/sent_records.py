"""The records of a job as it encoded them, with the surrogates that it drew."""

from __future__ import annotations

from dataclasses import dataclass

from privtune.device.data.records import Records
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobState
from privtune.device.surrogates.coverage import Coverage
from privtune.device.surrogates.own_words import OwnWords
from privtune.device.surrogates.replacement import HELD_OUT, TRAINED, Replacement
from privtune.shared.errors import JobConflict

Sources = tuple[DataSource, DataSource | None]


@dataclass(frozen=True, kw_only=True)
class SentRecords:
    """The job's records, the training ones first.

    parts: training and held-out records.
    own_words: of each record of both, what became of its words; empty without surrogates.
    replacement: what surrogates did; None without surrogates.
    """

    parts: tuple[Records, ...]
    own_words: list[OwnWords]
    replacement: Replacement | None


def sent_records(sources: Sources, state: JobState) -> SentRecords:
    """Read the records and replace in them what the job replaced.

    Raises JobConflict when other surrogates would come out, and as `DataSource.load`.
    """
    own = [source.load(state.spec.task) for source in sources if source is not None]
    surrogates = state.surrogates()
    if surrogates is None:
        return SentRecords(parts=tuple(own), own_words=[], replacement=None)
    if surrogates.fingerprint != state.surrogate_fingerprint:
        raise JobConflict(
            "the recognisers or tables of surrogates have changed since the job ran, so what was sent is not known; "
            "install the versions of then"
        )
    words: list[OwnWords] = []
    done = [
        surrogates.records(records, part, own_words=words)
        for records, part in zip(own, (TRAINED, HELD_OUT), strict=False)
    ]
    return SentRecords(
        parts=tuple(records for records, _ in done),
        own_words=words,
        replacement=Replacement.of(surrogates, sum((coverage for _, coverage in done), Coverage())),
    )
