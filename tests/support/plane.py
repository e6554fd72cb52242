"""A control plane to talk to over real HTTP, in this process, and a reader of its event streams."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import openai
import uvicorn

from privtune.cloud.api.app import create_app
from privtune.cloud.auth import ApiKeys, Devices
from privtune.cloud.auth.authority import open_authority
from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host_load import HostLoad
from privtune.cloud.corpora import Corpora
from privtune.cloud.dashboard.front import add_dashboard
from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store
from privtune.cloud.jobs.job_files import JobFiles
from privtune.cloud.jobs.notify import Notifier
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.limits import OwnerLimits
from privtune.cloud.server.http_server import http_config
from privtune.cloud.settings import Limits, Settings
from privtune.cloud.storage import ArtifactStore
from tests.support.builders import least_spec

IDLE = HostLoad(
    device="cpu",
    jobs_bytes=0,
    max_jobs_bytes=1,
    gpu_bytes=None,
    max_gpu_bytes=None,
    models=(),
    sessions=0,
    streams=0,
    queue=0,
    busy_s=0.0,
)


class Plane:
    """A control plane on loopback, in a thread of this process."""

    def __init__(
        self, folder, *, max_event_streams=8, check_ready=None, names=("tiny",), shape=None, max_jobs=50, **limits
    ):
        model = folder / "tiny"
        model.mkdir(exist_ok=True)
        config = {"model_type": "gpt2", "n_layer": 3, "n_embd": 32, "vocab_size": 99, "n_positions": 256}
        (model / "config.json").write_text(json.dumps(config | (shape or {})))
        (model / "model.safetensors").write_bytes(b"")
        self.store = Store(sqlite_url(folder / "cloud.sqlite"))
        self.store.upgrade()
        limits_of_all = OwnerLimits(self.store, Limits(unfinished_jobs=max_jobs, requests_per_minute=1_000_000))
        notifier, files = Notifier(max_event_streams), JobFiles(ArtifactStore(folder))
        self.jobs = Jobs(self.store, notifier=notifier, limits=limits_of_all, files=files)
        self.keys = ApiKeys(self.store)
        self.devices = Devices(self.store, open_authority(folder / "tls"))
        self.key = self.keys.create("alice").secret
        settings = Settings(data_folder=folder, grpc_port=4321, **limits)
        catalog = Catalog([f"{name}={model}" for name in names])
        corpus = folder / "reviews.txt"
        corpus.write_text("a fine film\na dull one\n")
        self.teachings = Teachings(self.store, catalog, Corpora([str(corpus)]), max_active=max_jobs)
        app = create_app(
            self.jobs,
            self.keys,
            self.devices,
            self.teachings,
            settings,
            check_ready=check_ready or self.store.ping,
        )
        add_dashboard(app, on=settings.dashboard)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(http_config(app, settings))
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.socket]), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def http(self, key=None, **headers):
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key or self.key}"} | headers, timeout=20
        )

    def openai(self, key=None):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def make(self, **fields):
        return self.jobs.create("alice", least_spec(), **fields).id

    def stop(self):
        self.jobs.close()
        self.server.should_exit = True
        self.thread.join(15)
        assert not self.thread.is_alive(), "an open stream must not keep the server from stopping"
        self.store.close()


def read_stream(response):
    """(id, event) pairs of a server-sent stream."""
    found = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name in ("id", "data", "event"):
            found[name] = value
        elif not line and "data" in found:
            yield found["id"], json.loads(found["data"])
            found = {}
