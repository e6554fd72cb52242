"""One process, one event loop: REST (uvicorn) and gRPC (grpc.aio) side by side, until a signal ends both."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import uvicorn

from privtune.cloud.api.app import create_app
from privtune.cloud.auth import ApiKeys
from privtune.cloud.catalog import Catalog
from privtune.cloud.db.store import Store, sqlite_url
from privtune.cloud.jobs.notify import Notifier
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.server.tls import check_exposure
from privtune.cloud.settings import Settings
from privtune.shared.errors import InternalError, InvalidInput, PortInUse, StorageFull

log = logging.getLogger(__name__)

_GRACE_S = 5


class Gateway(Protocol):
    """What the server needs of the gRPC servicer."""

    async def shutdown(self) -> None:
        """End every stream at a step boundary and leave each job where its device finds it again."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where both servers really listen."""

    host: str
    http_port: int
    grpc_port: int
    tls: bool

    @property
    def url(self) -> str:
        """The address that a device or a REST client is given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """host:port of gRPC."""
        return f"[{self.host}]:{self.grpc_port}" if ":" in self.host else f"{self.host}:{self.grpc_port}"


GatewayBuilder = Callable[[Settings, Jobs, ApiKeys, Catalog], tuple[Any, Gateway]]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The parts that both servers share."""

    store: Store
    jobs: Jobs
    keys: ApiKeys
    catalog: Catalog


def open_store(settings: Settings) -> Store:
    """The database of the settings, at this version's schema."""
    store = Store(settings.database_url or sqlite_url(settings.data_folder / "cloud.sqlite"))
    store.upgrade()
    return store


@contextmanager
def open_plane(settings: Settings, catalog: Catalog) -> Iterator[Plane]:
    """Database, jobs and keys, recovered from whatever ended the last run. Refuses a data folder that is served."""
    with _only_one(settings.data_folder):
        store = open_store(settings)
        try:
            notifier = Notifier(settings.max_event_streams)
            jobs = Jobs(store, max_active_per_owner=settings.max_jobs_per_owner, notifier=notifier)
            recovered = jobs.recover()
            if recovered:
                log.warning(
                    "jobs were left running by the last process; they wait for their devices", extra={"jobs": recovered}
                )
            yield Plane(store=store, jobs=jobs, keys=ApiKeys(store), catalog=catalog)
        finally:
            store.close()


async def serve(
    settings: Settings,
    plane: Plane,
    *,
    on_ready: Callable[[Addresses], None],
    build_gateway: GatewayBuilder | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then end gracefully. Raises PortInUse and InvalidInput before anything listens."""
    check_exposure(settings)
    with _listening(settings.host, settings.http_port) as http_socket:
        build = build_gateway or _real_gateway()
        grpc_server, gateway = build(settings, plane.jobs, plane.keys, plane.catalog)
        addresses = Addresses(
            host=settings.host,
            http_port=http_socket.getsockname()[1],
            grpc_port=_bind_grpc(grpc_server, settings),
            tls=settings.tls,
        )
        app = create_app(
            plane.jobs,
            plane.keys,
            plane.catalog,
            settings,
            grpc_port=addresses.grpc_port,
            check_ready=plane.store.ping,
        )
        http_server = _HttpServer(_uvicorn_config(app, settings))
        async with _stop_signal() as stop:
            await grpc_server.start()
            http_task = asyncio.create_task(http_server.serve(sockets=[http_socket]))
            try:
                await _started(http_server, http_task)
                on_ready(addresses)
                await _first(http_task, asyncio.create_task(stop.wait()))
            finally:
                log.info("stopping")
                plane.jobs.close()
                await gateway.shutdown()
                await grpc_server.stop(_GRACE_S)
                http_server.should_exit = True
                await http_task
                log.info("stopped")


def write_ready_file(path: Path, addresses: Addresses) -> None:
    """Tell scripts where the servers listen; appears whole or not at all."""
    document = {
        "url": addresses.url,
        "grpc": addresses.grpc,
        "http_port": addresses.http_port,
        "grpc_port": addresses.grpc_port,
        "tls": addresses.tls,
        "pid": os.getpid(),
    }
    try:
        scratch = path.with_name(f".{path.name}.part")
        scratch.write_text(json.dumps(document) + "\n", "utf-8")
        scratch.replace(path)
    except OSError as error:
        raise StorageFull(f"Can't write --ready-file {path}: {error.strerror}.") from error


def _real_gateway() -> GatewayBuilder:
    from privtune.cloud.gateway import build_server  # loads torch

    return build_server


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: one handler must stop both servers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Any, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # privtune.cloud.api.middleware logs with the request's id
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


async def _started(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    while not server.started:
        if task.done():
            task.result()
            raise InternalError("The HTTP server ended before it began.")
        await asyncio.sleep(0.01)


async def _first(http_task: asyncio.Task[None], stop_task: asyncio.Task[Any]) -> None:
    await asyncio.wait({http_task, stop_task}, return_when=asyncio.FIRST_COMPLETED)
    stop_task.cancel()


@asynccontextmanager
async def _stop_signal() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set. A second signal means now: the next start recovers what was running."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("signal", extra={"signal": number.name})
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, received, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidInput(f"--host {host} is no address of this machine.", detail=str(error)) from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            raise _port_error(host, port, "--http-port", error) from error
        listener.setblocking(False)
        yield listener


def _bind_grpc(server: Any, settings: Settings) -> int:
    """Bind gRPC's port; with or without TLS as the settings say."""
    host, port = settings.host, settings.grpc_port
    if port:
        # gRPC names no cause when it can't bind; an ordinary socket does.
        with _probe(host, port):
            pass
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if settings.tls_cert is not None and settings.tls_key is not None:
            pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise PortInUse(f"gRPC can't listen on {address}; choose another --grpc-port.", detail=str(error)) from error
    if not bound:
        raise PortInUse(f"gRPC can't listen on {address}; choose another --grpc-port.")
    return int(bound)


@contextmanager
def _probe(host: str, port: int) -> Iterator[None]:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise _port_error(host, port, "--grpc-port", error) from error
        yield


def _port_error(host: str, port: int, flag: str, error: OSError) -> PortInUse | InvalidInput:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"Port {port} of {host} is taken; choose another with {flag}.")
    if error.errno == errno.EACCES:
        return PortInUse(f"Port {port} is not allowed for this user; choose one above 1023 with {flag}.")
    return InvalidInput(f"Can't listen on {host}:{port}: {error.strerror}.")


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two processes on one data folder would take each other's jobs for crashed ones."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "serve.lock").open("a")
    except OSError as error:
        raise StorageFull(f"Can't write to the data folder {folder}: {error.strerror}.") from error
    with contextlib.closing(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInput(f"Another privtune-cloud serves {folder} already; use another --data.") from error
        yield
