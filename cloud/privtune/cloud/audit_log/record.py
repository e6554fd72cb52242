"""Appends acts to the audit log.

An act and its entry are one transaction: neither is there without the other. Each entry carries a hash of itself and of
the hash before it, so that a log of which something was changed or removed no longer fits (`check`).
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import socket
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import event
from sqlalchemy.orm import Session

from privtune.cloud.db.tables import AuditEndRow, AuditRow
from privtune.shared.errors import InternalError

log = logging.getLogger(__name__)

Action = Literal[
    "cloud.started",
    "device.enrolled",
    "device.invited",
    "device.revoked",
    "home.added",
    "home.refused",
    "job.deleted",
    "key.created",
    "key.revoked",
    "key.rotated",
    "lease.released",
    "limits.set",
    "log.pruned",
    "packages.dropped",
]
REMOVED, NEWEST = 0, 1  # ids of `AuditEndRow`
_ORIGIN_CHARACTERS = 128


@dataclass
class _Actor:
    who: str
    origin: str
    owner: str = ""


# One object per request: the thread that authenticates names the actor, and others of the same request see it.
_actor: ContextVar[_Actor | None] = ContextVar("actor", default=None)


def acting_from(origin: str, who: str = "nobody") -> None:
    """From here on in this task or thread, acts come from `origin`; `who` until `acting_as` knows better."""
    _actor.set(_Actor(who, origin[:_ORIGIN_CHARACTERS]))


def acting_as(who: str, owner: str) -> None:
    """The actor of this task or thread is known now, for example by the id of its API key."""
    actor = _actor.get()
    if actor is not None:
        actor.who, actor.owner = who, owner


def acting_owner() -> str:
    """For whom this task or thread acts; "" where nobody has said."""
    actor = _actor.get()
    return "" if actor is None else actor.owner


def record(session: Session, action: Action, *, owner: str = "", target: str = "", **detail: Any) -> None:
    """Append an act to the log, as the last change of the transaction that does it (`Store.write`).

    Without `acting_from` the operator does it, at a terminal of this machine.

    owner: whose things it touches; "": the whole cloud's.
    target: what it is done to, an id.
    detail: numbers, ids and settings that JSON can hold; never a secret.

    Raises InternalError where the log has lost its end.
    """
    actor = _actor.get() or _Actor("operator", f"{getpass.getuser()}@{socket.gethostname()}"[:_ORIGIN_CHARACTERS])
    end = end_of(session, NEWEST)
    facts = {
        "number": end.number + 1,
        "at": int(time.time()),
        "who": actor.who,
        "origin": actor.origin,
        "action": action,
        "owner": owner,
        "target": target,
        "detail": detail,
    }
    end.number, end.sha256 = end.number + 1, chained(end.sha256, facts)
    session.add(AuditRow(**facts, sha256=end.sha256))
    said = {f"audit_{name}": value for name, value in facts.items()} | {"audit_sha256": end.sha256}
    event.listen(session, "after_commit", lambda _: log.info("audit", extra=said), once=True)


def end_of(session: Session, which: int) -> AuditEndRow:
    """An end of the log: REMOVED or NEWEST. Raises InternalError."""
    row = session.get(AuditEndRow, which)
    if row is None:
        raise InternalError("The audit log has lost its end; restore the cloud's database from a backup.")
    return row


def chained(before: str, facts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of an entry without its own hash, and of the hash of the entry before it."""
    return hashlib.sha256(json.dumps([before, facts], sort_keys=True).encode()).hexdigest()
