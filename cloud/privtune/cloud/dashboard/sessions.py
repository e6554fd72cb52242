"""Who is logged in: in memory, few, and for a working day. A restart of the cloud ends them all."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_SESSIONS = 1024  # a few hundred bytes each; the one used longest ago gives way
MAX_OF_KEY = 16
LIFE_S = 12 * 3600.0
IDLE_S = 2 * 3600.0


@dataclass(kw_only=True)
class Session:
    """A browser that is logged in.

    key: the API key, asked for at every request whether it is still in force.
    facts: what REST says of the key: its id, owner, scopes.
    form_token: every form of its pages carries it.
    """

    key: str = field(repr=False)
    facts: dict[str, Any]
    form_token: str = field(repr=False)
    began: float
    used: float

    @property
    def scopes(self) -> list[str]:
        """What its key may do: which buttons are worth showing. Whether they work is REST's decision."""
        return list(self.facts["scopes"])


class Sessions:
    """Sessions by the hash of a cookie's secret. Thread-safe. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: OrderedDict[bytes, Session] = OrderedDict()  # the one used last is last
        self._lock = threading.Lock()

    def open(self, key: str, facts: dict[str, Any]) -> str:
        """A new session; returns the secret for its cookie."""
        secret, now = secrets.token_urlsafe(32), self._clock()
        session = Session(key=key, facts=facts, form_token=secrets.token_urlsafe(24), began=now, used=now)
        with self._lock:
            for name in [name for name, one in self._held.items() if self._over(one, now)]:
                del self._held[name]
            of_key = [name for name, one in self._held.items() if one.facts["id"] == facts["id"]]
            for name in of_key[: max(0, len(of_key) + 1 - MAX_OF_KEY)]:
                del self._held[name]
            while len(self._held) >= MAX_SESSIONS:
                self._held.popitem(last=False)
            self._held[_name(secret)] = session
        return secret

    def find(self, secret: str) -> Session | None:
        """The session of a cookie; None where there is none, or it has ended."""
        name, now = _name(secret), self._clock()
        with self._lock:
            session = self._held.get(name)
            if session is None or self._over(session, now):
                self._held.pop(name, None)
                return None
            session.used = now
            self._held.move_to_end(name)
            return session

    def close(self, secret: str) -> None:
        """End a session."""
        with self._lock:
            self._held.pop(_name(secret), None)

    def __len__(self) -> int:
        return len(self._held)

    @staticmethod
    def _over(session: Session, now: float) -> bool:
        return now - session.began > LIFE_S or now - session.used > IDLE_S


def _name(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
