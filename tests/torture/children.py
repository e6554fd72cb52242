"""The two sides as processes that can be killed. Each is forked from a server that has torch loaded: 50 ms, not 5 s."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from privtune.cloud.cli import app
from privtune.cloud.compute import desk  # noqa: F401  loaded before the fork, as are the others
from privtune.cloud.server import server  # noqa: F401
from privtune.device.data.source import DataSource
from privtune.device.link import rpc
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import run_job
from privtune.shared.errors import PrivTuneError
from privtune.shared.job_spec import JobSpec
from tests.support.world import Watcher

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])
MIDDLE = "middle"  # a file of the home that a run makes after its step 2


@dataclass(kw_only=True)
class Ended:
    """How a device's run ended: done, or the reason of its error; None when it was killed."""

    reason: str | None
    message: str = ""
    adapter_sha256: str = ""
    metrics: dict[str, float] | None = None


class Device:
    """One run of a job on the device. call_s: deadline of a call; None: its own."""

    def __init__(
        self,
        job_id: str,
        spec: JobSpec,
        train: DataSource,
        held_out: DataSource,
        settings: RunSettings,
        *,
        call_s: float | None,
    ):
        self._ended = settings.home / f"ended-{time.monotonic_ns()}.json"
        settings.home.mkdir(parents=True, exist_ok=True)
        values = (job_id, spec.model_dump(mode="json"), train, held_out, settings, call_s, self._ended)
        self._process = _FORKS.Process(target=_train, args=values, daemon=True)
        self._process.start()

    def kill(self) -> None:
        """As `kill -9`."""
        self._process.kill()

    def signal(self, number: int) -> bool:
        """Send it a signal; False if it has ended."""
        return _signal(self._process, number)

    def wait(self, seconds: float) -> Ended:
        """Its end. Raises TimeoutError if it hangs."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"the device hung for {seconds:.0f} s")
        if not self._ended.exists():
            assert self._process.exitcode == -9, f"the device crashed with exit code {self._process.exitcode}"
            return Ended(reason=None)
        return Ended(**json.loads(self._ended.read_text()))


def _train(
    job_id: str,
    spec: dict[str, Any],
    train: DataSource,
    held_out: DataSource,
    settings: RunSettings,
    call_s: float | None,
    ended: Path,
) -> None:
    if call_s is not None:
        rpc.OPEN_TIMEOUT_S = rpc.CALL_TIMEOUT_S = call_s
    watcher = Watcher(at_step=lambda info: (settings.home / MIDDLE).touch() if info.step == 2 else None)
    try:
        done = run_job(job_id, JobSpec.model_validate(spec), train, held_out, settings, watcher, threading.Event())
        result = Ended(reason="done", adapter_sha256=done.adapter_sha256, metrics=done.metrics)
    except PrivTuneError as error:
        result = Ended(reason=error.reason, message=f"{error.message} {error.detail}")
    partial = ended.with_suffix(".partial")
    partial.write_text(json.dumps(vars(result)))
    partial.replace(ended)


class Cloud:
    """`privtune-cloud serve` on one data folder and the same ports, through any number of deaths."""

    def __init__(self, folder: Path, models: dict[str, Path], *, lease_s: int) -> None:
        self._folder, self._models, self._lease_s = folder, models, lease_s
        self._ready, self.log = folder.with_name("cloud.ready"), folder.with_name("cloud.log")
        self.api_key = "pt-" + "k" * 40
        self._ports = (0, 0)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._ready.unlink(missing_ok=True)
        options = ["serve", "--data", str(self._folder), "--ready-file", str(self._ready)]
        options += ["--lease-s", str(self._lease_s)]
        options += ["--http-port", str(self._ports[0]), "--grpc-port", str(self._ports[1])]
        options += [part for name, path in self._models.items() for part in ("--model", f"{name}={path}")]
        self._process = _FORKS.Process(target=_serve, args=(options, self.api_key, self.log), daemon=True)
        self._process.start()
        deadline = time.monotonic() + 180
        while not self._ready.exists():
            assert time.monotonic() < deadline, f"the cloud did not start: {self.log.read_text()[-2000:]}"
            assert self._process.is_alive(), f"the cloud ended: {self.log.read_text()[-2000:]}"
            time.sleep(0.01)
        addresses = json.loads(self._ready.read_text())
        self.url, self.grpc_address = addresses["url"], addresses["grpc"]
        self._ports = (addresses["http_port"], addresses["grpc_port"])

    def kill(self) -> None:
        """As `kill -9`; it stays away until `start`."""
        self._process.kill()
        self._process.join(10)

    def signal(self, number: int) -> bool:
        """Send it a signal; False if it has ended."""
        return _signal(self._process, number)

    def alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.is_alive()

    def stop(self) -> None:
        """As SIGTERM."""
        self._process.terminate()
        self._process.join(30)


def _signal(process: BaseProcess, number: int) -> bool:
    if not process.is_alive() or process.pid is None:
        return False
    os.kill(process.pid, number)
    return True


def _serve(options: list[str], api_key: str, log: Path) -> None:
    os.environ["PRIVTUNE_CLOUD_BOOTSTRAP_KEY"] = api_key
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with contextlib.suppress(SystemExit):
        app(options, standalone_mode=False)
