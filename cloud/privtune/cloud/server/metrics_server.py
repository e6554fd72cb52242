"""What Prometheus reads of this cloud at each scrape, and the listener that it reads it from.

The listener is for the operator's own machines: it asks for no key, and its series name owners. An owner's key opens
nothing there, since an owner with the scope `admin` gives its keys any scope.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from privtune.cloud.api.metrics_app import create_metrics_app
from privtune.cloud.compute.host_load import HostLoad
from privtune.cloud.meters import REGISTRY, owner_label
from privtune.cloud.server.http_server import http_config, serving
from privtune.cloud.server.ports import host_port, http_listener
from privtune.cloud.settings import Settings
from privtune.shared import __version__
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import PrivTuneError


class CloudCollector(Collector):
    """Gauges, read when they are asked for.

    jobs: number of jobs by owner and status, as the database has them: the same from every cloud that shares it.
    load: how busy the host is.
    waiting: messages that wait for their turn, by owner.
    check_ready: raises while the cloud can't take jobs.
    folder: the data folder, whose disk may fill.
    """

    def __init__(
        self,
        *,
        jobs: Callable[[], Mapping[tuple[str, str], int]],
        load: Callable[[], HostLoad],
        waiting: Callable[[], Mapping[str, int]],
        check_ready: Callable[[], None],
        folder: Path,
    ) -> None:
        self._jobs, self._load, self._waiting = jobs, load, waiting
        self._check_ready, self._folder = check_ready, folder

    def collect(self) -> Iterator[Metric]:
        """The gauges; those that can't be read now are missing, and `privtune_ready` is 0."""
        load, ready = self._load(), 1
        with suppress(PrivTuneError):
            yield _labelled("privtune_jobs", "Jobs in the database.", ["owner", "status"], self._jobs().items())
        try:
            self._check_ready()
        except PrivTuneError:
            ready = 0
        yield _gauge("privtune_ready", "1 while the cloud can take jobs, as /readyz says.", ready)
        waiting = {(owner,): count for owner, count in self._waiting().items()}
        yield _labelled("privtune_turns_waiting", "Pieces of work that wait for a turn.", ["owner"], waiting.items())
        yield _gauge("privtune_turn_running_seconds", "Age of the piece of work under way; 0: none.", load.busy_s)
        yield _gauge("privtune_streams", "Open streams of devices.", load.streams)
        yield _gauge("privtune_memory_used_bytes", "Memory budget of all jobs that is taken.", load.jobs_bytes)
        yield _gauge("privtune_memory_limit_bytes", "Memory budget of all jobs.", load.max_jobs_bytes)
        free = shutil.disk_usage(self._folder).free
        yield _gauge("privtune_disk_free_bytes", "Free on the data folder's disk.", free)
        info = GaugeMetricFamily("privtune_build_info", "Always 1; the label is the version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _labelled(name: str, about: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], int]]) -> Metric:
    """A family whose first label is an owner; owners beyond the bound are added up."""
    family, sums = GaugeMetricFamily(name, about, labels=labels), Counter[tuple[str, ...]]()
    for (owner, *rest), value in values:
        sums[owner_label(owner), *rest] += value
    for places, value in sums.items():
        family.add_metric(places, value)
    return family


@asynccontextmanager
async def serving_metrics(settings: Settings, collector: CloudCollector) -> AsyncIterator[str | None]:
    """Answer Prometheus until the end of the block; yields the address, None where the settings name no port.

    Raises PortInUse and InvalidInput.
    """
    if settings.metrics_port is None:
        yield None
        return
    tls = settings.tls and not is_loopback(settings.metrics_host)
    with http_listener(settings.metrics_host, settings.metrics_port, "metrics") as listener:
        REGISTRY.register(collector)
        try:
            async with serving(http_config(create_metrics_app(REGISTRY), settings, tls=tls), listener):
                port = listener.getsockname()[1]
                yield f"{'https' if tls else 'http'}://{host_port(settings.metrics_host, port)}/metrics"
        finally:
            REGISTRY.unregister(collector)
