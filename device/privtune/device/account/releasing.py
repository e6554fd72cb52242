"""The door that a job's records leave by: its noise and store, and what ledger and transcript say about them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from privtune.device.account.conditions import DRAW, NOISE, RULES, STORE, WEIGHTS, conditions
from privtune.device.account.home_identity import Claim, newest
from privtune.device.account.own_losses import OwnLosses
from privtune.device.data.encode import EncodedDataset
from privtune.device.data.record_lines import RecordLines
from privtune.device.home.job_folder import JobState
from privtune.device.privacy.statements import Statement, padded_statement
from privtune.device.release.beginnings import Beginnings
from privtune.device.release.label_store import LabelStore
from privtune.device.release.noising import Noise, build_noise, release_scope
from privtune.device.release.own_records import OwnRecords
from privtune.device.release.perturber import Perturber
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import ReleaseStore
from privtune.device.release.slope_store import SlopeStore
from privtune.device.surrogates.replacement import Replacement
from privtune.shared.codec import row_bytes
from privtune.shared.job_spec import JobSpec
from privtune.shared.modeling.bottom_package import BottomPackage

if TYPE_CHECKING:
    from privtune.device.account.run_account import Account

STORE_BYTES = 64 << 30


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A data set that a run is about to release.

    data: its records.
    source: which data set it is, from `source_of`.
    name: the data set as the cloud knows it.
    part: what it is used for.
    lines: where the records are in their file; None for texts without one.
    """

    data: EncodedDataset
    source: str
    name: str
    part: Literal["train", "validation", "predict"]
    lines: RecordLines | None = None


@dataclass(frozen=True, kw_only=True)
class Releasing:
    """How a run releases, and what may be claimed of it.

    spec: the job.
    account: of the run.
    noise: what is drawn.
    store: where its releases are, under the scope of its noise.
    perturber: draws releases and stores them there.
    beginnings: the rows of a language model's texts.
    statement: what may be claimed: for the mechanism, and for surrogates where there are any.
    replacement: what surrogates did in the run's texts; None without surrogates.
    draw: names the text that surrogates make of a record; empty without surrogates.
    weights: names the model's.
    """

    spec: JobSpec
    account: Account
    noise: Noise
    store: ReleaseStore
    perturber: Perturber
    beginnings: Beginnings
    statement: Statement
    replacement: Replacement | None = None
    draw: str = ""
    weights: str = ""

    @property
    def law(self) -> str:
        """Names the noise distribution together with the store: under one name a record has at most one draw.

        A record with other surrogates is another text, and the noise of its words in clear is drawn again.
        """
        parts = (self.store.fingerprint, self.store.identity, str(self.spec.train.max_length), self.draw)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def admit(self, data_sets: Sequence[Outgoing], say: Callable[[str], None]) -> None:
        """Enter in ledger and transcript what may leave. say: gets warnings for the owner.

        Raises:
            PolicyRefused: the budget does not allow it; then nothing may be sent.
        """
        keys: list[bytes] = []
        for one in data_sets:
            warning = self.account.admit(self, one)
            if warning is not None:
                say(warning)
            keys += [key.packed() for key in self.perturber.keys(one.data)]
        self.account.transcript.records(self.store.fingerprint, keys)

    def facts(self) -> dict[str, Any]:
        """What an admission says about the job and its noise."""
        return {
            "law": self.law,
            "conditions": conditions(self.spec),
            "unseen": {
                WEIGHTS: self.weights,
                RULES: "" if self.replacement is None else self.replacement.fingerprint,
                NOISE: self.noise.fingerprint,
                DRAW: self.draw,
                STORE: self.store.identity,
            },
            "mechanism": self.spec.mechanism.name,
            "params": dict(self.spec.mechanism.params),
            "model": self.spec.model,
            "cut": self.spec.cut,
            "statement": {"row": self.statement.row, "guarantee": self.statement.guarantee},
            "claim": self.statement.text,
            "surrogates": None if self.replacement is None else asdict(self.replacement),
            "seed": "fixed" if self.statement.unsafe_seed else "os",
            "labels": self.spec.labels,
            "label_epsilon": self.spec.label_epsilon,
            "gradients": "leave" if self.spec.gradients_leave else "none leave",
        }

    def size(self, rows: int) -> dict[str, Any]:
        """`rows` released vectors or ids, and their bytes."""
        width, codec = self.noise.mechanism.sent_as(self.spec.codec)
        return {"rows": rows, "bytes": rows * row_bytes(width, codec)}

    def cost(self, rows: int) -> dict[str, Any]:
        """Worst-case loss of a record of `rows` rows; epsilon is None where no bound is claimed."""
        statement = self.statement
        delta = statement.delta + statement.fitted_delta
        return {"epsilon": statement.record_epsilon(rows) if rows else 0.0, "delta": delta if rows else 0.0}

    def own_losses(self, one: Outgoing) -> OwnLosses | None:
        """What each drawn record of a data set really lost; None without a file, or where none was drawn."""
        keys = self.perturber.keys(one.data)
        stored = self.store.sizes(keys)
        drawn_N = np.array([place for place, key in enumerate(keys) if key in stored], dtype=np.int64)
        if one.lines is None or not len(drawn_N):
            return None
        releases = [stored[keys[place]] for place in drawn_N.tolist()]
        own_N = np.array([found.rows if found.own_rows is None else found.own_rows for found in releases])
        place_N = np.array(one.data.places, dtype=np.int64)[drawn_N]
        shares = self.noise.mechanism.fitted_shares() if one.part == "train" else None
        fitted_N = np.zeros(len(drawn_N)) if shares is None else shares.double().numpy()[place_N]
        if shares is None and one.part == "train":
            fitted_N += 1  # a table from a file does not say what it owes to which record
        return OwnLosses(
            source=one.source,
            law=self.law,
            unit=one.lines.unit,
            number_N=one.lines.number_N[place_N],
            text_N=one.lines.text_N[place_N],
            rows_N=np.array([found.rows for found in releases], dtype=np.int64),
            nats_N=self.statement.own_epsilons(own_N, fitted_N),
            fisher_N=np.array([found.fisher for found in releases], dtype=np.float64),
            slopes_N=np.zeros(len(drawn_N)),
            delta=self.statement.delta + self.statement.fitted_delta,
        )

    def text_facts(self, rows: int, length: int) -> dict[str, Any]:
        """Size and cost of a generated text of `length` rows, of which `rows` are drawn for it."""
        return {
            "records": int(rows > 0),
            **self.size(rows),
            **self.cost(length if rows else 0),
            **store_facts(self.store),
        }

    def noises(self, texts: Iterable[RecordKey]) -> dict[str, Any]:
        """How many noise distributions the costliest of these texts is drawn under, once it is drawn here too."""
        return {"noises": 1 + max((self.store.other_laws(key) for key in texts), default=0)}


@contextlib.contextmanager
def open_releasing(
    account: Account,
    package: BottomPackage,
    state: JobState,
    home: Path,
    own: OwnRecords,
    announce: Callable[[Claim], object],
    replacement: Replacement | None = None,
) -> Iterator[Releasing]:
    """A job's noise, seeded by the operating system, and its store; at the end the ledger learns what was drawn.

    Args:
        own: the job's records, for mechanisms that learn from them; they also pin the job to one noise distribution.
        announce: asks the cloud, before anything is drawn, whether this home is the newest copy.
        replacement: what surrogates did in the texts of this run.

    Raises:
        HomeOutdated: this home is an older copy, or was moved away.
        JobConflict: the noise is not the one that the job began with.
    """
    with newest(home, announce), _releasing(account, package, state, home, own, replacement) as releasing:
        yield releasing


@contextlib.contextmanager
def _releasing(
    account: Account,
    package: BottomPackage,
    state: JobState,
    home: Path,
    own: OwnRecords,
    replacement: Replacement | None,
) -> Iterator[Releasing]:
    spec = state.spec
    noise = build_noise(package, spec.mechanism, spec.cut, home, own, job=spec)
    own.pin(noise.fingerprint)
    store = ReleaseStore(home / "releases.sqlite", release_scope(noise, package, spec), STORE_BYTES)
    mechanism = noise.mechanism
    _, codec = mechanism.sent_as(spec.codec)
    beginnings = Beginnings(store, codec, at_embedding=mechanism.injection == "embedding")
    statement = mechanism.statement(noise.source)
    if noise.padding is not None:
        statement = padded_statement(statement, noise.padding.lengths)
    with contextlib.closing(store), contextlib.closing(beginnings):
        if mechanism.table is not None:
            store.keep_table(mechanism.table.to_message())
        perturber = Perturber(
            package.bottom,
            mechanism,
            noise.source,
            store,
            spec.codec,
            noise.importance,
            beginnings if spec.task == "causal-lm" and mechanism.row_by_row else None,
            noise.padding,
        )
        try:
            yield Releasing(
                spec=spec,
                account=account,
                noise=noise,
                store=store,
                perturber=perturber,
                beginnings=beginnings,
                statement=statement if replacement is None else replacement.claim(statement),
                replacement=replacement,
                weights=package.fingerprint,
                draw="" if replacement is None else replacement.draw(state.surrogate_secret, spec.mechanism),
            )
        finally:
            account.settle()


def store_facts(store: ReleaseStore | LabelStore | SlopeStore) -> dict[str, Any]:
    """Which store an entry is about, and how much it holds."""
    return {"store": store.identity, "scope": store.fingerprint, "store_records": store.size}
