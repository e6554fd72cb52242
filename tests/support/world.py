"""A cloud to test against, in this process or as a real one, with the same face; and small data to train on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from privtune.cloud.auth import ApiKeys, Devices
from privtune.cloud.auth.authority import open_authority
from privtune.cloud.catalog import Catalog
from privtune.cloud.corpora import Corpora
from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store
from privtune.cloud.jobs.job_files import JobFiles
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.server.ports import bind_devices
from privtune.cloud.server.tls import ensure_certificates
from privtune.cloud.settings import Settings
from privtune.cloud.storage import open_artifacts
from privtune.device.data.source import DataSource
from privtune.device.link.rest import ControlPlane
from privtune.device.session.run_settings import RunSettings
from privtune.shared.job_spec import JobSpec
from tests.support.forked import Forked
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model


@dataclass
class Watcher:
    """Collects what a run reports; `at_step` is called after each step."""

    starts: list[Any] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)
    evaluations: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    at_step: Any = None

    def started(self, info):
        self.starts.append(info)

    def step(self, info):
        self.steps.append(info)
        if self.at_step is not None:
            self.at_step(info)

    def evaluated(self, info):
        self.evaluations.append(info)

    def message(self, text):
        self.messages.append(text)

    @property
    def losses(self):
        return [info.loss for info in self.steps]


class InProcessCloud:
    """Gateway, job service and keys in a thread of this process; no control plane.

    At `grpc_address` it speaks clear text, at `device_address` TLS to enrolled devices.

    database: shared with another cloud, a file or a URL; None: its own.
    limits: fields of `Settings`.
    """

    def __init__(
        self,
        data_folder: Path,
        models: dict[str, Path],
        grpc_port: int = 0,
        *,
        corpora: Mapping[str, Path] | None = None,
        database: Path | str | None = None,
        **limits: Any,
    ) -> None:
        data_folder.mkdir(parents=True, exist_ok=True)
        settings = Settings(data_folder=data_folder, grpc_port=grpc_port)
        self.settings = settings.model_copy(update=limits)  # not validated: a test may go below an operator's least
        url = database if isinstance(database, str) else sqlite_url(database or data_folder / "cloud.sqlite")
        self._store = Store(url)
        self._store.upgrade()
        self.jobs = Jobs(
            self._store,
            files=JobFiles(open_artifacts(data_folder, self.settings.artifacts_url)),
            lease_s=self.settings.lease_s,
            give_up_days=self.settings.give_up_days,
        )
        self.keys = ApiKeys(self._store)
        self.devices = Devices(self._store, open_authority(data_folder / "tls"))
        catalog = Catalog([f"{name}={path}" for name, path in models.items()])
        self.teachings = Teachings(
            self._store, catalog, Corpora(f"{name}={path}" for name, path in (corpora or {}).items())
        )
        self.api_key = self.keys.create("alice").secret
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloud", daemon=True)
        self._thread.start()
        if not self._ready.wait(30):
            raise TimeoutError("the cloud did not start")

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        from privtune.cloud.gateway import build_server

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server, self.gateway = build_server(self.settings, self.jobs, self.keys, self.devices, self.teachings)
        port = server.add_insecure_port(f"127.0.0.1:{self.settings.grpc_port}")
        self.grpc_address = f"127.0.0.1:{port}"
        made = ensure_certificates(self.settings.tls_folder, [])
        with_tls = self.settings.model_copy(update={"tls_cert": made.cert, "tls_key": made.key, "device_port": 0})
        self.device_address = f"127.0.0.1:{bind_devices(server, with_tls, self.devices.authority.pem)}"
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await self.gateway.shutdown()
        await server.stop(0)

    def create_job(self, spec: JobSpec) -> str:
        return self.jobs.create("alice", spec).id

    def status(self, job_id: str) -> tuple[str, str]:
        job = self.jobs.get(job_id)
        return job.status, job.reason

    def cancel(self, job_id: str) -> None:
        self.jobs.cancel(job_id)

    def pause(self, job_id: str) -> None:
        self.jobs.pause(job_id)

    def resume(self, job_id: str) -> None:
        self.jobs.resume(job_id)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


def ended_clouds() -> Iterator[str]:
    """Of each process that should serve and has ended: how, and the end of its log."""
    for cloud in ProcessCloud.serving:
        if (code := cloud.process.poll()) is not None:
            yield f"{cloud.log} ended with {code}:\n{cloud.log.read_text(errors='replace')[-10_000:]}"


class ProcessCloud:
    """`privtune-cloud serve` as a process of its own, driven over REST.

    under: a command that runs it.
    options: more of the command's.
    tls: both servers speak TLS, with a certificate of the authority in the file `ca`.
    """

    serving: ClassVar[weakref.WeakSet[ProcessCloud]] = weakref.WeakSet()

    def __init__(
        self,
        data_folder: Path,
        models: dict[str, Path],
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        threads: int | None = 1,
        corpora: Mapping[str, Path] | None = None,
        under: Sequence[str] = (),
        options: Sequence[str] = (),
        tls: bool = False,
    ) -> None:
        environment = os.environ | {"PRIVTUNE_CLOUD_BOOTSTRAP_KEY": "pt-" + "k" * 40}
        environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self.api_key = environment["PRIVTUNE_CLOUD_BOOTSTRAP_KEY"]
        ready = data_folder.with_name(data_folder.name + ".ready")
        ready.unlink(missing_ok=True)
        arguments = ["serve", "--data", str(data_folder), "--ready-file", str(ready)]
        arguments += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        arguments += [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
        arguments += [part for name, path in (corpora or {}).items() for part in ("--corpus", f"{name}={path}")]
        arguments += options
        self.ca = data_folder.with_name(data_folder.name + ".ca.pem") if tls else None
        if self.ca is not None:
            arguments += ["--tls-auto", "--device-port", "0", "--tls-ca-out", str(self.ca)]
        self.log = data_folder.with_name(data_folder.name + ".log")
        self.process: Forked | subprocess.Popen[bytes]
        if threads == 1 and not under:
            self.process = Forked("privtune.cloud.cli", arguments, environment=environment, output=self.log)
        else:  # torch reads the number when it is imported
            command = [*under, sys.executable, "-m", "privtune.cloud.cli", *arguments]
            with self.log.open("a") as log:
                self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        addresses = self._wait(ready)
        self.grpc_address = addresses["grpc"]
        self.http_url = addresses["url"]
        self.control = ControlPlane(self.http_url, self.api_key, self.ca)
        self.serving.add(self)

    def _wait(self, ready: Path) -> dict[str, str]:
        deadline = time.monotonic() + 180  # on a busy machine torch alone takes a minute to import
        while time.monotonic() < deadline:
            if ready.exists():
                return json.loads(ready.read_text())
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise TimeoutError(f"the cloud did not start: {self.log.read_text()[-2000:]}")

    def create_job(self, spec: JobSpec) -> str:
        return self.control.create_job(spec)["id"]

    def status(self, job_id: str) -> tuple[str, str]:
        job = self.control.get_job(job_id)
        return job["status"], job["privtune"]["reason"]

    def cancel(self, job_id: str) -> None:
        self.control.cancel(job_id)

    def pause(self, job_id: str) -> None:
        self.control.pause(job_id)

    def resume(self, job_id: str) -> None:
        self.control.resume(job_id)

    def kill(self) -> None:
        self.serving.discard(self)
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        self.serving.discard(self)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@dataclass(kw_only=True)
class World:
    """A running cloud with tiny models `enc` and `dec`, a data set, and settings of a device.

    Its owner allows any number of noise distributions for the one data set.
    """

    cloud: Any
    folder: Path
    settings: RunSettings
    data: DataSource
    validation: DataSource
    models: dict[str, Path]

    def spec(self, **changes: Any) -> JobSpec:
        """A short classification job without noise or surrogates, fp32 on the wire."""
        base: dict[str, Any] = {
            "model": "enc",
            "training_file": "device://sentences",
            "cut": 1,
            "codec": "fp32",
            "mechanism": {"name": "none"},
            "surrogates": {"replace": "nothing"},
            "tuning": {"rank": 4, "dropout": 0.0},
            "optim": {"learning_rate": 1e-2},
            "train": {"batch_size": 8, "accumulation": 2, "max_length": 16, "max_steps": 20, "epochs": 10},
        }
        for key, value in changes.items():
            base[key] = base[key] | value if isinstance(base.get(key), dict) else value
        return JobSpec.model_validate(base)

    def device(self, **changes: Any) -> RunSettings:
        """The device's settings with changes."""
        return replace(self.settings, **changes)

    @property
    def environment(self) -> dict[str, str]:
        """Where a command of this device finds its cloud and its home; for a cloud of processes."""
        return {
            "PRIVTUNE_CLOUD": self.cloud.http_url,
            "PRIVTUNE_API_KEY": self.cloud.api_key,
            "PRIVTUNE_HOME": str(self.settings.home),
        }

    def restart(self, **limits: Any) -> None:
        """Continue with another in-process cloud on the same data, with other limits."""
        self.cloud.stop()
        self.cloud = InProcessCloud(self.folder / "cloud", self.models, **limits)
        self.settings = self.device(grpc_address=self.cloud.grpc_address, api_key=self.cloud.api_key)


def build_world(folder: Path, cloud_type: type = InProcessCloud) -> World:
    """Models, data and a started cloud under `folder`, with the corpus `sentences` to teach with."""
    models = {
        "enc": save_model(folder / "models" / "enc", "bert", "classification", num_labels=2),
        "dec": save_model(folder / "models" / "dec", "llama", "causal-lm"),
    }
    public = write_sentences(folder / "public.tsv", 200, seed=9)
    cloud = cloud_type(folder / "cloud", models, corpora={"sentences": public})
    return World(
        cloud=cloud,
        folder=folder,
        models=models,
        settings=RunSettings(
            grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=folder / "home", another_noise=True
        ),
        data=DataSource(path=str(write_sentences(folder / "train.tsv", 160))),
        validation=DataSource(path=str(write_sentences(folder / "dev.tsv", 40, seed=1))),
    )
