"""uvicorn beside other servers on one event loop: without its signal handlers, with our bounds on connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

from privtune.cloud.server.http_protocol import PatientProtocol
from privtune.cloud.settings import Settings
from privtune.shared.errors import InternalError

GRACE_S = 5


class _Server(uvicorn.Server):
    """One handler must stop all servers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_config(app: Any, settings: Settings, *, tls: bool = True) -> uvicorn.Config:
    """How uvicorn serves an application. tls: with the settings' certificate, if they have one."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        log_config=None,
        access_log=False,  # privtune.cloud.api.middleware logs with the request's id
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=settings.tls_cert if tls else None,
        ssl_keyfile=settings.tls_key if tls else None,
    )


@asynccontextmanager
async def serving(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """A server that answers, until the end of the block; yields its task, which ends early only by a failure."""
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if task.done():
                task.result()
                raise InternalError("An HTTP server ended before it had started.")
            await asyncio.sleep(0.01)
        yield task
    finally:
        server.should_exit = True
        await task
