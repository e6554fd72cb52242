"""The door that a job's records leave by: its noise and store, what the ledger says of them, and the transcript."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from privtune.device.data.encode import EncodedDataset
from privtune.device.privacy.bounds import Statement
from privtune.device.release.noising import Noise, build_noise, release_scope
from privtune.device.release.own_records import OwnRecords
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.package import BottomPackage

if TYPE_CHECKING:
    from privtune.device.account.run_account import Account

STORE_BYTES = 64 << 30


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A data set that is about to be released.

    data: its records.
    source: which data set it is (`source_of`): budgets are per source.
    name: what the cloud calls it.
    part: what it is used for.
    """

    data: EncodedDataset
    source: str
    name: str
    part: Literal["train", "validation", "predict"]


@dataclass(frozen=True, kw_only=True)
class Releasing:
    """How a run releases.

    account: where it is entered.
    noise: what is drawn.
    store: what was drawn, once per record.
    perturber: draws into the store.
    statement: what may be claimed for the releases.
    width: D of a vector.
    """

    spec: JobSpec
    account: Account
    noise: Noise
    store: ReleaseStore
    perturber: Perturber
    statement: Statement
    width: int

    @property
    def noise_id(self) -> str:
        """Identifies noise distribution, store and length limit: under one of these a record is drawn at most once."""
        named = (self.store.fingerprint, self.store.identity, str(self.spec.train.max_length))
        return hashlib.sha256("\0".join(named).encode()).hexdigest()

    def admit(self, data_sets: Sequence[Outgoing], say: Callable[[str], None]) -> None:
        """Enter in ledger and transcript what may leave. say: gets warnings for the owner.

        Raises PolicyRefused when a budget does not allow it; then nothing may be sent.
        """
        keys: list[bytes] = []
        for one in data_sets:
            warning = self.account.admit(self, one.data, source=one.source, name=one.name, part=one.part)
            if warning is not None:
                say(warning)
            keys += [key.packed() for key in self.perturber.keys(one.data)]
        self.account.transcript.records(self.store.fingerprint, keys)


@contextlib.contextmanager
def open_releasing(
    account: Account, package: BottomPackage, spec: JobSpec, home: Path, own: OwnRecords
) -> Iterator[Releasing]:
    """A job's noise, seeded by the operating system, and its store; at the end the ledger learns what was drawn.

    own: the job's records, for mechanisms that learn from them, and the job's pin to one noise distribution.
    Raises JobConflict when the noise is not the one that the job began with.
    """
    noise = build_noise(package, spec.mechanism, spec.cut, home, own)
    own.pin(noise.fingerprint)
    store = ReleaseStore(home / "releases.sqlite", release_scope(noise, package, spec), STORE_BYTES)
    with contextlib.closing(store):
        perturber = Perturber(package.bottom, noise.mechanism, noise.source, store, spec.codec, noise.importance)
        try:
            yield Releasing(
                spec=spec,
                account=account,
                noise=noise,
                store=store,
                perturber=perturber,
                statement=noise.mechanism.statement(noise.source),
                width=package.hidden_size,
            )
        finally:
            account.settle()
