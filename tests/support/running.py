"""Whole jobs in a world: run one, make two comparable, and read what they left behind."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privtune.device.account.ledger import Ledger, Spent, spent
from privtune.device.account.run_account import TRANSCRIPT, source_of
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.noise.randomness import UNSAFE_SEED_ENV, noise_source
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import RunResult, run_job
from privtune.shared.job_spec import JobSpec
from tests.support.world import Watcher, World


def run(
    world: World,
    spec: JobSpec,
    data: DataSource | None = None,
    *,
    validation: DataSource | bool | None = None,
    settings: RunSettings | None = None,
    watcher: Watcher | None = None,
    stop: threading.Event | None = None,
    job_id: str | None = None,
) -> tuple[str, RunResult]:
    """Train a new job, or `job_id`, to its end; returns its id and the result.

    data: the world's own unless given.
    validation: the world's own with the world's data, none with other data; False for none.
    """
    job_id = job_id or world.cloud.create_job(spec)
    if validation is None and data is None:
        validation = world.validation
    held_out = validation or None
    settings, watcher, stop = settings or world.settings, watcher or Watcher(), stop or threading.Event()
    return job_id, run_job(job_id, spec, data or world.data, held_out, settings, watcher, stop)


def train(world: World, spec: JobSpec, data: DataSource | None = None, **options: Any) -> str:
    """Train a job without validation, for what comes after training; returns its id."""
    return run(world, spec, data, validation=False, **options)[0]


def once(steps: set[int], action: Callable[[], object]) -> Callable[[Any], None]:
    """For `Watcher.at_step`: act after each of these steps, but only the first time that the run gets there."""

    def at_step(info: Any) -> None:
        if info.step in steps:
            steps.remove(info.step)
            action()

    return at_step


class Died(Exception):
    """The device died without warning: nothing but its folder is left."""


def die_after(step: int) -> Callable[[Any], None]:
    """For `Watcher.at_step`: raise `Died` after this step."""

    def at_step(info: Any) -> None:
        if info.step == step:
            raise Died

    return at_step


def same_order(world: World, job_id: str, other_id: str, **changes: Any) -> None:
    """Give a second job the data order of the first, so that both runs are comparable."""
    first = JobFolder(world.settings.home, job_id).load()
    JobFolder(world.settings.home, other_id).save(replace(first, final_step=None, **changes))


def wait_for(world: World, job_id: str, status: str) -> None:
    """Wait until the cloud gives the job this status."""
    wait_until(lambda: world.cloud.status(job_id)[0] == status, lambda: world.cloud.status(job_id), seconds=10)


def wait_until(
    condition: Callable[[], object], found: Callable[[], object] | None = None, *, seconds: float = 30
) -> None:
    """Wait until `condition` holds. If it takes longer the test fails and says what was `found`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, found() if found else "it took too long"
        time.sleep(0.05)


def adapter_file(world: World, job_id: str) -> Path:
    """The adapter's weights where the cloud keeps them."""
    return world.folder / "cloud" / "jobs" / job_id / "adapter" / "adapter_model.safetensors"


def adapter_hash(world: World, job_id: str) -> str:
    """SHA-256 of the adapter that the cloud holds."""
    return hashlib.sha256(adapter_file(world, job_id).read_bytes()).hexdigest()


def transcript_folder(world: World, job_id: str) -> Path:
    """Where the device keeps the job's transcript."""
    return world.settings.home / "jobs" / job_id / TRANSCRIPT


def ledger_entries(world: World) -> list[dict[str, Any]]:
    """All entries of the device's ledger."""
    with contextlib.closing(Ledger(world.settings.home)) as ledger:
        return ledger.entries()


def cost(world: World) -> Spent:
    """What the ledger says was spent on the world's training data."""
    return spent(ledger_entries(world), source_of(world.data.path))


@contextlib.contextmanager
def fixed_noise_seed(seed: int = 7) -> Iterator[None]:
    """Jobs in here draw their noise from a fixed seed, which is marked and claims nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(UNSAFE_SEED_ENV, "1")
        patch.setattr("privtune.device.release.noising.noise_source", lambda: noise_source(seed))
        yield


def stop_at(step: int) -> tuple[Watcher, threading.Event]:
    """A watcher that presses Ctrl-C after this step, and the event that it sets."""
    stop = threading.Event()
    return Watcher(at_step=lambda info: stop.set() if info.step == step else None), stop
