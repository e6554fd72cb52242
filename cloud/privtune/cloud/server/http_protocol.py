"""HTTP connections that have to say something: one without a whole request soon, or one too many of them, is closed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # until the headers of a request have come
MAX_SILENT = 128  # connections that wait for a request; the oldest is closed for a newer one

_silent: OrderedDict[PatientProtocol, None] = OrderedDict()


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with a limit on the time and number of connections without a request."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._heard()
        super().connection_lost(exc)

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
