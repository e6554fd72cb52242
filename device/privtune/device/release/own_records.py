"""What mechanisms fit on the owner's own records, kept on this device.

home/fitted/importance-*.safetensors   token importance: never sent, not accounted
home/fitted/counts-*.safetensors       word counts by class: noised, accounted
home/fitted/means-*.safetensors        directions between class means: noised, accounted
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from privtune.device.data.encode import EncodedDataset
from privtune.device.noise.context import NoiseContext
from privtune.device.noise.importance import TokenImportance
from privtune.device.noise.randomness import NoiseSource
from privtune.device.noise.tables.class_directions import PrivateMeans
from privtune.device.noise.tables.private_counts import LabelledRows, PrivateCounts
from privtune.device.noise.tables.table_cache import SUFFIX, StoredTable, read_table, write_table
from privtune.shared.at_rest import read_text
from privtune.shared.errors import InvalidInput, JobConflict, StorageFull
from privtune.shared.files import make_folder, write_text


@dataclass(frozen=True, kw_only=True)
class OwnRecords:
    """A job's own records.

    home: the device's folder.
    fingerprint: of the data set.
    job: the job's folder.
    data: the records; None where only what is stored already may be used (predictions).
    """

    home: Path
    fingerprint: str
    job: Path
    data: EncodedDataset | None = None

    def pin(
        self,
        distribution: str,
        *,
        file: str = "law.txt",
        what: str = "the public texts, tables or version that make this job's noise",
    ) -> None:
        """Hold a job to the noise distribution it began with: under another, records would be drawn a second time.

        Args:
            distribution: its name.
            file: in the job's folder, where the name is kept.
            what: what the distribution depends on, for the message.

        Raises:
            JobConflict: the job began with another distribution.
            StorageFull: the file can't be written.
        """
        path = self.job / file
        try:
            if not path.exists():
                make_folder(path.parent, 0o700)
                write_text(path, distribution)
            known = read_text(path)
        except OSError as error:
            raise StorageFull(f"{path} can't be written: {error.strerror}; free room and run again") from error
        if known != distribution:
            raise JobConflict(
                f"{what} have changed since it began, and its records would be released a second time; restore them or "
                "start a new job"
            )

    def counts(self, source: NoiseSource) -> PrivateCounts:
        """Word counts by class, under noise that the statement accounts for separately."""
        return PrivateCounts(
            folder=self._folder, fingerprint=self.fingerprint, source=source, records=self._labelled_rows()
        )

    def means(self, source: NoiseSource) -> PrivateMeans:
        """Directions between class means, under noise that the statement accounts for separately."""
        return PrivateMeans(
            folder=self._folder, fingerprint=self.fingerprint, source=source, records=self._labelled_rows()
        )

    def _labelled_rows(self) -> LabelledRows | None:
        data = self.data
        if data is None or data.labels is None:
            return None
        return LabelledRows(
            rows=data.ids, labels=data.labels, classes=len(data.label_names), places=data.places or None
        )

    def importance(self, context: NoiseContext) -> TokenImportance:
        """Fitted on the records in the first run, then read from disk. Raises JobConflict, StorageFull."""
        named = hashlib.sha256(f"{self.fingerprint} {context.vocabulary}".encode()).hexdigest()[:24]
        path = self._folder / f"importance-{named}{SUFFIX}"
        if not path.exists():
            if self.data is None:
                raise JobConflict("the token importance of this job is not on this device; use the one that trained it")
            fitted = TokenImportance.fit(self.data.ids, len(context.tokens), self.data.labels)
            write_table(
                StoredTable(kind="importance", tensors={"weight_V": fitted.weight_V}, facts={"scale": fitted.scale}),
                path,
            )
        table = read_table(path)
        return TokenImportance(table.tensors["weight_V"], float(table.facts["scale"]))

    @property
    def _folder(self) -> Path:
        return self.home / "fitted"


def importance_for(
    source: Literal["private", "public"], context: NoiseContext, own: OwnRecords | None
) -> TokenImportance:
    """The importance that a mechanism asks for. Raises InvalidInput when there is nothing to fit it on."""
    if source == "private":
        if own is None:
            raise InvalidInput("importance_from=private needs a job's own records", param="importance_from")
        return own.importance(context)
    if len(set(context.labels)) >= 2:
        return TokenImportance.fit(context.labelled_rows, len(context.tokens), context.labels)
    if context.public_rows:
        return TokenImportance.fit(context.public_rows, len(context.tokens))
    raise InvalidInput(
        "importance_from=public needs public texts on this device: privtune tables public --texts FILE",
        param="importance_from",
    )
