"""Runs a job through faults, then the same job in peace: both must end the same, and nothing may have left twice."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from privtune.device.account.ledger import Ledger, spent
from privtune.device.account.run_account import TRANSCRIPT, source_of
from privtune.device.account.verify import check
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.link.rest import ControlPlane
from privtune.device.session.run_settings import RunSettings
from privtune.shared.job_spec import JobSpec
from tests.support.proxy import Proxy
from tests.support.relay import Fault, Relay, State
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model
from tests.torture.children import MIDDLE, Cloud, Device, Ended

LATE_S = 4.0  # beyond every deadline
SLEEPERS = ("device", "laptop", "cloud")
RUNS = 8  # of the device, which an agent starts again
MENDED_BY_THE_NEXT_RUN = (None, "CLOUD_UNREACHABLE", "FRAME_CORRUPT", "SESSION_SUPERSEDED", "ARTIFACT_CORRUPT")

TO_A_MESSAGE = ("lost", "duplicate", "reorder", "late", "corrupt")
AROUND_A_MESSAGE = ("kill device", "kill cloud", "cut", "silence")
_WITH_PAYLOAD = {"FORWARD", "EVALUATE", "OUTPUT", "EVALUATED", "GRADIENT", "TABLE", "Fetch"}

# What trains where, and what is sent: the top trains on noised vectors; the tail trains here; ids of a public table.
JOBS: dict[str, dict[str, Any]] = {
    "top": {"mechanism": {"name": "dchi", "params": {"noise_ratio": 1.0}}},
    "tail": {"mechanism": {"name": "dchi", "params": {"noise_ratio": 1.0}}, "tail": 1},
    "ids": {"mechanism": {"name": "codes", "params": {"codes": 8, "dims": 2}}, "tail": 1},
}


@dataclass(frozen=True, kw_only=True)
class Times:
    """patience_s: of the device with a cloud that says nothing. call_s: deadline of a call; None: its own.

    steps: of a job. hung_s: how long a run may take, beside a sleep.
    """

    patience_s: float = 3.0
    call_s: float | None = 3.0
    lease_s: int = 60
    steps: int = 5
    hung_s: float = 90.0


class Broken(AssertionError):
    """An invariant that did not hold."""


@dataclass(kw_only=True)
class Story:
    """What became of one job. runs: of the device; unmet: faults whose message never came; awake_s: to its end."""

    job: str
    faults: list[Fault]
    unmet: list[Fault] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    seconds: float = 0.0
    awake_s: float = 0.0


class Bench:
    """One cloud, and a way to it on which everything can go wrong. Use as a context manager."""

    def __init__(self, folder: Path, times: Times = Times()) -> None:
        self._folder, self._times = folder, times
        models = {"enc": save_model(folder / "models" / "enc", "bert", "classification", num_labels=2)}
        self._train = DataSource(path=str(write_sentences(folder / "train.tsv", 48)))
        self._held_out = DataSource(path=str(write_sentences(folder / "dev.tsv", 16, seed=1)))
        self._cloud = Cloud(folder / "cloud", models, lease_s=times.lease_s)
        self._relay = Relay(self._cloud.grpc_address, self._harm, late_s=LATE_S)
        self._proxy = Proxy(self._relay.address, record=False)
        self._straight = Proxy(self._cloud.grpc_address, record=False)  # the relay would answer pings of either side
        self._device: Device | None = None
        self._restart: threading.Thread | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._cloud_is_back()
        self._proxy.__exit__()
        self._straight.__exit__()
        self._relay.__exit__()
        self._cloud.stop()

    def states(self, job: str) -> Counter[State]:
        """How often each message of the protocol is sent when nothing goes wrong."""
        home = self._home()
        self._run(job, home, self._create(job), [])
        shutil.rmtree(home)
        return Counter(self._relay.seen)

    def disturbed(self, job: str, faults: list[Fault]) -> Story:
        """Run a job through the faults. Raises Broken, with what did not hold."""
        story, began, home = Story(job=job, faults=faults), time.monotonic(), self._home()
        first = self._create(job)
        ended = self._run(job, home, first, faults, story)
        story.unmet = [fault for fault in faults if fault not in self._relay.done]
        left = set(self._relay.releases)
        self._compare(job, home, first, ended)
        self._hold(left <= self._relay.releases, "a release that left was drawn again: it was not on the disk")
        self._hold(bool(left), "nothing left")
        shutil.rmtree(home)
        story.seconds = time.monotonic() - began
        return story

    def slept(self, job: str, who: str, seconds: float) -> Story:
        """Run a job of which a side sleeps in the middle, beside its connection perhaps. Raises Broken.

        who: `device`, `cloud`, or `laptop`: the device, whose connections are dead when it wakes up.
        """
        story, began, home = Story(job=job, faults=[]), time.monotonic(), self._home()
        first = self._create(job)
        with ThreadPoolExecutor(1) as beside:
            slept = beside.submit(self._sleep, who, seconds, home)
            ended = self._run(job, home, first, [], story, sleeps_s=seconds)
            story.awake_s = time.monotonic() - slept.result()
        self._compare(job, home, first, ended)
        shutil.rmtree(home)
        story.seconds = time.monotonic() - began
        return story

    def _sleep(self, who: str, seconds: float, home: Path) -> float:
        """Put a side to sleep in the middle of the job; when it was woken up. Raises Broken if it had ended."""
        until = time.monotonic() + self._times.hung_s
        while not (home / MIDDLE).exists():
            self._hold(time.monotonic() < until, "the job did not come to its middle")
            time.sleep(0.002)
        sleeper = self._cloud if who == "cloud" else self._device
        assert sleeper is not None
        self._hold(sleeper.signal(signal.SIGSTOP), "the job ended before anybody slept")
        if who == "laptop":
            self._straight.silence()
        time.sleep(seconds)
        self._hold(sleeper.signal(signal.SIGCONT), "who slept has ended")
        return time.monotonic()

    def _compare(self, job: str, home: Path, first: str, ended: Ended) -> None:
        """Run the same job in peace on the same home."""
        cost, second = self._spent(home), self._create(job)
        state = JobFolder(home, first).load()
        JobFolder(home, second).save(replace(state, final_step=None))
        calm = self._run(job, home, second, [])
        self._hold(calm.adapter_sha256 == ended.adapter_sha256, "the adapter is not that of the undisturbed run")
        self._hold(calm.metrics == ended.metrics, f"the held-out figures differ: {calm.metrics}, {ended.metrics}")
        now = self._spent(home)
        self._hold((now.releases, now.nats, now.jobs) == (cost.releases, cost.nats, 1), f"charged twice: {cost}, {now}")
        for job_id in (first, second):
            self._hold(self._control.get_job(job_id)["status"] == "succeeded", "the cloud does not say succeeded")
            with Ledger(home) as ledger:
                found = check(job_id, home / "jobs" / job_id / TRANSCRIPT, ledger.entries(), home / "releases.sqlite")
            self._hold(not found.problems, f"the transcript is not sound: {found.problems}")
        self._hold(self._cloud.alive(), "the cloud ended")

    def _run(
        self,
        job: str,
        home: Path,
        job_id: str,
        faults: list[Fault],
        story: Story | None = None,
        *,
        sleeps_s: float = 0.0,
    ) -> Ended:
        """Run a job to its end, as an agent does: again after each end that another run mends."""
        runs = Story(job=job, faults=faults).runs if story is None else story.runs
        settings = RunSettings(
            grpc_address=self._straight.address if sleeps_s else self._proxy.address,
            api_key=self._cloud.api_key,
            home=home,
            another_noise=True,
            no_progress_timeout=self._times.patience_s,
        )
        self._relay.plan(faults)
        for _ in range(RUNS):
            self._device = Device(
                job_id, self._spec(job), self._train, self._held_out, settings, call_s=self._times.call_s
            )
            ended = self._device.wait(self._times.hung_s + sleeps_s)
            runs.append(ended.reason or "killed")
            if ended.reason == "done":
                return ended
            self._hold(ended.reason in MENDED_BY_THE_NEXT_RUN, f"the run ended with {ended.reason}: {ended.message}")
            self._cloud_is_back()
        raise Broken(f"the job did not end in {RUNS} runs: {runs}, {ended.message}")

    def _harm(self, kind: str) -> None:
        """A fault that is not done to a message; called by the relay."""
        if kind == "cut":
            self._proxy.cut()
        elif kind == "silence":
            self._proxy.silence()
        elif kind == "kill device" and self._device is not None:
            self._device.kill()
        elif kind == "kill cloud":
            self._cloud.kill()
            self._restart = threading.Thread(target=self._cloud.start)
            self._restart.start()

    def _cloud_is_back(self) -> None:
        if self._restart is not None:
            self._restart.join()
            self._restart = None

    @property
    def _control(self) -> ControlPlane:
        return ControlPlane(self._cloud.url, self._cloud.api_key)

    def _create(self, job: str) -> str:
        self._cloud_is_back()
        with self._control as control:
            return str(control.create_job(self._spec(job))["id"])

    def _home(self) -> Path:
        return self._folder / f"home-{time.monotonic_ns()}"

    def _spent(self, home: Path) -> Any:
        with Ledger(home) as ledger:
            return spent(ledger.entries(), source_of(self._train.path))

    def _spec(self, job: str) -> JobSpec:
        base: dict[str, Any] = {
            "model": "enc",
            "training_file": "device://sentences",
            "cut": 1,
            "codec": "fp32",
            "surrogates": {"replace": "nothing"},
            "tuning": {"rank": 4, "dropout": 0.1},
            "optim": {"learning_rate": 1e-2},
            "train": {
                "batch_size": 4,
                "accumulation": 2,
                "max_length": 16,
                "max_steps": self._times.steps,
                "epochs": 99,
                "checkpoint_every": 2,
            },
        }
        return JobSpec.model_validate(base | JOBS[job])

    @staticmethod
    def _hold(holds: bool, otherwise: str) -> None:
        if not holds:
            raise Broken(otherwise)


def matrix(states: Counter[State], chance: random.Random) -> Iterator[Fault]:
    """Every fault at every state, each at a message of it that is drawn."""
    for state in sorted(states):
        number = chance.randint(1, states[state])
        for kind in TO_A_MESSAGE:
            on_a_stream = state.name.isupper()
            if (kind != "reorder" or on_a_stream) and (kind != "corrupt" or state.name in _WITH_PAYLOAD):
                yield Fault(state, kind, number)
        for kind in AROUND_A_MESSAGE:
            for after in (False, True):
                yield Fault(state, kind, number, after=after)


def several(states: Counter[State], chance: random.Random) -> list[Fault]:
    """Two to four faults, drawn."""
    every = list(matrix(states, chance))
    return chance.sample(every, chance.randint(2, 4))
