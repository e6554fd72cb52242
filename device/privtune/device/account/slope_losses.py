"""What each training record lost by the slopes of a zeroth-order job: its own slopes decide."""

from __future__ import annotations

import hashlib

import numpy as np

from privtune.device.account.ledger import SLOPES
from privtune.device.account.own_losses import OwnLosses
from privtune.device.account.releasing import Outgoing
from privtune.device.data.batches import BatchPlan
from privtune.device.privacy.statements import SlopeStatement
from privtune.device.release.slope_store import SlopeStore


def slope_law(store: SlopeStore) -> str:
    """Names the draws of one job's slopes in ledger and own losses."""
    return hashlib.sha256(repr((SLOPES, store.identity)).encode()).hexdigest()


def slope_losses(statement: SlopeStatement, store: SlopeStore, plan: BatchPlan, one: Outgoing) -> OwnLosses | None:
    """The losses of one job; None without a file, or where nothing was sent or is claimed.

    plan: of the job's records, those of `one`.
    """
    if one.lines is None or not store.size or statement.unsafe_seed:
        return None
    moved_N, seen_N = np.zeros(len(plan.lengths_R)), np.zeros(len(plan.lengths_R), dtype=bool)
    for step in range(store.size):
        record_N = np.concatenate(plan.micro_batches(step))
        moved_N[record_N] += (store.sizes(step).astype(np.float64) + statement.clip) ** 2
        seen_N[record_N] = True
    place_N = np.array(one.data.places, dtype=np.int64)[seen_N]
    nats_N = statement.own_epsilons(np.sqrt(moved_N[seen_N]))
    return OwnLosses(
        source=one.source,
        law=slope_law(store),
        unit=one.lines.unit,
        number_N=one.lines.number_N[place_N],
        text_N=one.lines.text_N[place_N],
        rows_N=np.zeros(len(place_N), dtype=np.int64),
        nats_N=nats_N,
        fisher_N=np.full(len(place_N), np.nan),
        slopes_N=nats_N,
        delta=statement.delta,
    )
