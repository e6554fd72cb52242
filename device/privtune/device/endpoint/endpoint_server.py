"""Serves the endpoint until Ctrl-C: on loopback, unless the owner allows more and sets a key."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from privtune.device.endpoint.endpoint_app import create_app
from privtune.device.endpoint.worker import Worker
from privtune.device.session.run_settings import RunSettings
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import InvalidInput, PortInUse

MIN_KEY = 16
MAX_CONNECTIONS = 128


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Where to listen, and who may ask.

    host, port: address to listen on; port 0: any free one.
    key: what clients must present; None: nothing.
    allow_remote: listen to other machines too.

    Raises InvalidInput for an address beyond this machine unless both `allow_remote` and `key` are given.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    allow_remote: bool = False

    def __post_init__(self) -> None:
        if self.key is not None and len(self.key) < MIN_KEY:
            raise InvalidInput(f"The endpoint's key needs at least {MIN_KEY} characters.", param="endpoint_key")
        if is_loopback(self.host):
            return
        if not self.allow_remote or self.key is None:
            raise InvalidInput(
                f"{self.host} can be reached from other machines, and texts would travel unencrypted: that needs "
                "--allow-remote and a key in PRIVTUNE_ENDPOINT_KEY.",
                param="host",
            )


def serve(
    jobs: Sequence[str], settings: RunSettings, exposure: Exposure, say: Callable[[str], None] = lambda _: None
) -> None:
    """Serve the models of these jobs under the jobs' ids. Returns after Ctrl-C or SIGTERM, when all answers have ended.

    Raises PortInUse, and the error that prevents loading a job's model (see `open_writer`).
    """
    listening = _bound(exposure)
    workers = {job: Worker(job, settings, say) for job in jobs}
    try:
        for worker in workers.values():
            worker.start()
        app = create_app(workers, exposure.key, loopback_only=is_loopback(exposure.host))
        host, port = listening.getsockname()[:2]
        say(f"serving {', '.join(workers)} at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=3,
        )
        _Server(config).run(sockets=[listening])
    finally:
        for worker in workers.values():
            worker.stop()
        listening.close()


class _Server(uvicorn.Server):
    """A uvicorn server that does not raise the signal again after stopping: that would end the process too early."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bound(exposure: Exposure) -> socket.socket:
    family = socket.AF_INET6 if ":" in exposure.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((exposure.host, exposure.port))
        found.listen(128)
    except OSError as error:
        found.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortInUse(
                f"Can't listen on {exposure.host}:{exposure.port}: {error.strerror}. Choose another with --port."
            ) from None
        raise InvalidInput(f"Can't listen on {exposure.host}: {error.strerror}.", param="host") from None
    return found
