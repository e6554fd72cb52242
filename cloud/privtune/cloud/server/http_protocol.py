"""HTTP connections within bounds: closed are those without a whole request, those that do not read, and too many."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # until the headers of a request have come
MAX_SILENT = 128  # connections that wait for a request; the oldest is closed for a newer one

UNREAD_S = 60.0  # for a client to read of an answer what its connection holds
MAX_OF_PEER = 512  # connections of one address

_of_peer = Counter[str]()
_silent: OrderedDict[PatientProtocol, None] = OrderedDict()


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with limits on the time and number of connections."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _peer = ""

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._peer = (self.client or ("",))[0]
        _of_peer[self._peer] += 1
        self._wait()
        if _of_peer[self._peer] > MAX_OF_PEER:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._heard()
        self.resume_writing()
        _of_peer[self._peer] -= 1
        if not _of_peer[self._peer]:
            del _of_peer[self._peer]
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Close a connection whose client reads nothing from here on."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self._close)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def handle_events(self) -> None:
        """Stop waiting once a request's headers are whole."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._heard()

    def on_response_complete(self) -> None:
        """Wait for the next request on this connection."""
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._wait()

    def _wait(self) -> None:
        self._heard()
        _silent[self] = None
        self._timer = self.loop.call_later(REQUEST_S, self._close)
        if len(_silent) > MAX_SILENT:
            next(iter(_silent))._close()

    def _heard(self) -> None:
        _silent.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._heard()
        self.transport.abort()
