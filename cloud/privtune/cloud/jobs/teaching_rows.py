"""Rows of teachings: how they are made and found, and what a step of one takes. `teachings` changes their states."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from privtune.cloud.catalog import ModelCard
from privtune.cloud.db.tables import TeachingRow
from privtune.cloud.jobs.job_rows import now
from privtune.shared.errors import JobNotFound
from privtune.shared.teaching_spec import TeachingSpec

TeachingStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Sources = tuple[str | None, str | None]  # names of a model's files and a corpus's; None: not on this disk
ENDED = ("succeeded", "failed", "cancelled")
MAX_DISCARDED = 200  # of an owner: failed and cancelled ones


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """A snapshot of a teaching. Times in seconds since 1970.

    reason: why it is in this state, for people.
    progress: stage, step, steps, loss.
    result: names the folder of its package, once that is known.
    card: what was taught with which figures, once it has succeeded.
    current: its blocks are those of the model that this cloud offers today.
    error_code: reason of `privtune.shared.errors`, once it has failed.
    """

    id: str
    owner: str
    spec: TeachingSpec
    status: TeachingStatus
    reason: str
    progress: dict[str, Any]
    result: str | None
    card: dict[str, Any] | None
    current: bool
    error_code: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None


def step_bytes(spec: TeachingSpec, card: ModelCard) -> int:
    """What a step takes beside the model, roughly: its graph, the relations, and the trained blocks' optimiser.

    A block's graph as in `TopSession.graph_bytes`; 12 D^2 weights a block; six T x T maps a head and projection.
    """
    tuned = spec.tuned_blocks if spec.label_column is not None else 0
    blocks, width = min(card.layers, max(spec.cut + spec.tail, tuned)), card.hidden_size
    rows = spec.batch_size * spec.max_length
    related = rows * spec.max_length * 6 * 3 * -(-width // 64) if spec.relations else 0
    return 4 * (rows * width * (1 + 40 * blocks) + related + 4 * 12 * width**2 * blocks)


def discard_oldest(session: Session, owner: str) -> None:
    """Delete an owner's oldest failed and cancelled ones over the limit."""
    without = select(TeachingRow.number).where(TeachingRow.owner == owner, TeachingRow.status.in_(ENDED[1:]))
    oldest = session.scalars(without.order_by(TeachingRow.number.desc()).offset(MAX_DISCARDED).limit(MAX_DISCARDED))
    session.execute(delete(TeachingRow).where(TeachingRow.number.in_(list(oldest))))


def new_row(owner: str, document: str) -> TeachingRow:
    """A queued teaching's row."""
    return TeachingRow(
        id=f"teach-{secrets.token_hex(12)}",
        owner=owner,
        status="queued",
        cancelling=False,
        reason="waiting for its turn",
        spec=document,
        progress={},
        created_at=now(),
    )


def find(session: Session, teaching_id: str, owner: str | None) -> TeachingRow:
    """Its row. Raises JobNotFound, also for another owner's; None: whosever it is."""
    row = session.scalar(select(TeachingRow).where(TeachingRow.id == teaching_id))
    if row is None or (owner is not None and row.owner != owner):
        raise JobNotFound(f"There is no teaching {teaching_id[:64]!r} for this API key.")
    return row


def end(row: TeachingRow, status: TeachingStatus, reason: str) -> None:
    """It ends like this, now."""
    row.status, row.reason, row.finished_at = status, reason, now()


def same(result: str, document: str) -> tuple[ColumnElement[bool], ...]:
    """Succeeded teachings of this description with this result."""
    return TeachingRow.status == "succeeded", TeachingRow.result == result, TeachingRow.spec == document


def succeed(session: Session, row: TeachingRow, result: str, card: dict[str, Any], sources: Sources) -> None:
    """Earlier ones with the same result are as good: of the weights, which name it, only the files are others."""
    files = dict(zip(("model_files", "corpus_files"), sources, strict=True))
    session.execute(update(TeachingRow).where(*same(result, row.spec)).values(**files))
    row.started_at = row.started_at or row.created_at
    row.result, row.card = result, card
    row.model_files, row.corpus_files = sources
    end(row, "succeeded", "the taught blocks are ready")
