"""How a run releases, and what a ledger entry says about it: job, noise, cost and store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from privtune.device.privacy.bounds import Statement
from privtune.device.release.label_store import LabelStore
from privtune.device.release.perturber import Perturber
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.codec import BYTES_PER_ELEMENT
from privtune.shared.job_spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class Releasing:
    """How a run releases, and what may be claimed of it.

    spec: the job.
    store: where its releases are, under the scope of its noise.
    perturber: draws releases and stores them there.
    statement: what the mechanism guarantees.
    width: D, the elements of a released vector.
    """

    spec: JobSpec
    store: ReleaseStore
    perturber: Perturber
    statement: Statement
    width: int

    @property
    def law(self) -> str:
        """Names the noise distribution together with the store: under one name a record has at most one draw."""
        parts = (self.store.fingerprint, self.store.identity, str(self.spec.train.max_length))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What an admission says about the job and its noise."""
        return {
            "law": self.law,
            "mechanism": self.spec.mechanism.name,
            "params": dict(self.spec.mechanism.params),
            "model": self.spec.model,
            "cut": self.spec.cut,
            "statement": {"row": self.statement.row, "guarantee": self.statement.guarantee},
            "claim": self.statement.text,
            "seed": "fixed" if self.statement.unsafe_seed else "os",
            "labels": self.spec.labels,
            "label_epsilon": self.spec.label_epsilon,
            "gradients": "none leave" if self.spec.tail else "leave",
        }

    def size(self, rows: int) -> dict[str, Any]:
        """`rows` released vectors, and their bytes."""
        return {"rows": rows, "bytes": rows * self.width * BYTES_PER_ELEMENT[self.spec.codec]}

    def cost(self, rows: int) -> dict[str, Any]:
        """Worst-case loss of a record of `rows` rows; epsilon is None where no bound is claimed."""
        statement = self.statement
        return {"epsilon": statement.record_epsilon(rows) if rows else 0.0, "delta": statement.delta if rows else 0.0}

    def text_facts(self, rows: int, length: int) -> dict[str, Any]:
        """Size and cost of a generated text of `length` rows, of which `rows` are drawn for it."""
        return {
            "records": int(rows > 0),
            **self.size(rows),
            **self.cost(length if rows else 0),
            **store_facts(self.store),
        }


def store_facts(store: ReleaseStore | LabelStore) -> dict[str, Any]:
    """Which store an entry is about, and how much it holds."""
    return {"store": store.identity, "scope": store.fingerprint, "store_records": store.size}
