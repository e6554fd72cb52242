"""One process, one event loop: REST, metrics (uvicorn) and gRPC (grpc.aio) side by side, until a signal ends them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from privtune.cloud.api.app import create_app
from privtune.cloud.auth import ApiKeys, Devices
from privtune.cloud.compute.host_load import HostLoad
from privtune.cloud.dashboard.front import add_dashboard
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.server.http_server import GRACE_S, http_config, serving
from privtune.cloud.server.metrics_server import CloudCollector, serving_metrics
from privtune.cloud.server.plane import Plane
from privtune.cloud.server.ports import bind_devices, bind_grpc, host_port, http_listener
from privtune.cloud.server.readiness import Readiness, check_disk
from privtune.cloud.server.sweep import sweep_hourly
from privtune.cloud.server.tls import check_exposure
from privtune.cloud.settings import Settings
from privtune.shared.errors import StorageFull
from privtune.shared.files import write_text

log = logging.getLogger(__name__)

DRAIN_S = 25.0  # from the signal on; what has not ended then is cut off, as by a kill


class Stoppable(Protocol):
    """What the server needs of the gRPC service."""

    async def shutdown(self) -> None:
        """End every stream and leave each job where its device finds it again."""

    def check_ready(self) -> None:
        """Raises an error of the table while it can't take jobs."""

    def load(self) -> HostLoad:
        """How busy its host is. Thread-safe."""

    def waiting(self) -> Mapping[str, int]:
        """Messages that wait for their turn, by owner. Thread-safe."""

    def drop_packages(self, unused_since: float) -> int:
        """See `privtune.cloud.server.sweep.Packages`."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the servers listen. Ports are the real ones, never 0; `device_port` is None without TLS.

    metrics_url: what Prometheus scrapes; None: nothing.
    """

    host: str
    http_port: int
    grpc_port: int
    device_port: int | None
    tls: bool
    metrics_url: str | None = None

    @property
    def url(self) -> str:
        """The address that a device or a REST client needs."""
        return f"{'https' if self.tls else 'http'}://{host_port(self.host, self.http_port)}"

    @property
    def grpc(self) -> str:
        """host:port of gRPC."""
        return host_port(self.host, self.grpc_port)


GatewayBuilder = Callable[[Settings, Jobs, ApiKeys, Devices, Teachings], tuple[Any, Stoppable]]


async def serve(
    settings: Settings,
    plane: Plane,
    *,
    on_ready: Callable[[Addresses], None],
    build_gateway: GatewayBuilder | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then end gracefully within DRAIN_S.

    Raises PortInUse and InvalidInput.

    on_ready: called once both servers listen.
    build_gateway: makes the gRPC server and its service; None: the real ones, which load torch.
    """
    check_exposure(settings)
    _allow_open_files()
    with http_listener(settings.host, settings.http_port) as http_socket:
        build = build_gateway or _real_gateway()
        grpc_server, gateway = build(settings, plane.jobs, plane.keys, plane.devices, plane.teachings)
        addresses = Addresses(
            host=settings.host,
            http_port=http_socket.getsockname()[1],
            grpc_port=bind_grpc(grpc_server, settings),
            device_port=bind_devices(grpc_server, settings, plane.devices.authority.pem),
            tls=settings.tls,
        )
        readiness = Readiness([plane.store.ping, partial(check_disk, settings.data_folder), gateway.check_ready])
        app = create_app(
            plane.jobs,
            plane.keys,
            plane.devices,
            plane.teachings,
            settings,
            grpc_port=addresses.grpc_port,
            device_port=addresses.device_port,
            check_ready=readiness.check,
            loads=lambda: [gateway.load()],
        )
        add_dashboard(app, on=settings.dashboard)
        collector = CloudCollector(
            jobs=plane.jobs.count,
            load=gateway.load,
            waiting=gateway.waiting,
            check_ready=readiness.check,
            folder=settings.data_folder,
        )
        async with (
            _stop_signal() as stop,
            serving_metrics(settings, collector) as metrics_url,
            serving(http_config(app, settings), http_socket) as http_task,
        ):
            await grpc_server.start()
            sweeper = asyncio.create_task(sweep_hourly(settings, plane.store, plane.jobs.deletions, gateway))
            try:
                on_ready(replace(addresses, metrics_url=metrics_url))
                await _first(http_task, asyncio.create_task(stop.wait()))
            finally:
                log.info("stopping")
                _end_at_last()
                sweeper.cancel()
                plane.jobs.close()
                await gateway.shutdown()
                await grpc_server.stop(GRACE_S)
        log.info("stopped")


def _end_at_last() -> None:
    """End this process after DRAIN_S: a pass through a model can't be interrupted, and whoever stops a cloud waits."""

    def end() -> None:
        log.error("the cloud could not end in time; what was under way is cut off, and resumes")
        os._exit(1)

    timer = threading.Timer(DRAIN_S, end)
    timer.daemon = True
    timer.start()


def _allow_open_files() -> None:
    """As many open connections and files as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS refuses "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def write_ready_file(path: Path, addresses: Addresses) -> None:
    """Write the addresses for scripts to find; the file appears whole or not at all. Raises StorageFull."""
    document = {
        "url": addresses.url,
        "grpc": addresses.grpc,
        "http_port": addresses.http_port,
        "grpc_port": addresses.grpc_port,
        "device_port": addresses.device_port,
        "tls": addresses.tls,
        "metrics_url": addresses.metrics_url,
        "pid": os.getpid(),
    }
    try:
        write_text(path, json.dumps(document) + "\n")
    except OSError as error:
        raise StorageFull(f"Can't write --ready-file {path}: {error.strerror}.") from error


def _real_gateway() -> GatewayBuilder:
    from privtune.cloud.gateway import build_server  # loads torch

    return build_server


async def _first(http_task: asyncio.Task[None], stop_task: asyncio.Task[Any]) -> None:
    await asyncio.wait({http_task, stop_task}, return_when=asyncio.FIRST_COMPLETED)
    stop_task.cancel()


@asynccontextmanager
async def _stop_signal() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set. A second signal ends the process at once; the next start recovers."""
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
