"""Many devices on one cloud: real agents, replayed clients, cut connections, and what that does to the cloud."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import yaml

from privtune.cloud.auth import ApiKeys
from privtune.cloud.db.store import Store, sqlite_url
from privtune.device.link.rest import ControlPlane
from privtune.shared.errors import PrivTuneError
from privtune.shared.files import write_text
from privtune.shared.job_spec import JobSpec
from tests.soak.recording import STEPS, job_spec, record
from tests.support.forked import Forked
from tests.support.proxy import Proxy
from tests.support.world import ProcessCloud, World, build_world

CLIENTS_A_PROCESS = 20
OWNERS = 10  # that share the clients; each agent has one of its own
PROBE_S = 0.05
IDLE_S = 15.0
WARM = 1 / 3  # of the time, after which memory must not grow
LATE_S = 300.0  # for jobs that had begun to end once the time is over


@dataclass(kw_only=True)
class Plan:
    """What to run.

    think_s: what a client's own part of a micro-batch takes.
    storm_s: between two storms.
    nice: of the devices' processes, which are other machines in earnest and may not take the cloud's cores there.
    """

    seconds: float
    clients: int
    agents: int
    seed: int
    think_s: float
    storm_s: float
    nice: int = 0


@dataclass(kw_only=True)
class Found:
    """What was measured. rss_mib: by second since the load began; idle_ms, load_ms: of GET."""

    idle_ms: list[float] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    cpu_s: float = 0.0
    seconds: float = 0.0
    storms: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    agent_jobs: int = 0
    step_ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def soak(plan: Plan, folder: Path) -> Found:
    """Run the plan in an empty folder."""
    found, chance = Found(), random.Random(plan.seed)
    world = build_world(folder, ProcessCloud)
    with ExitStack() as stack:
        stack.callback(world.cloud.stop)
        (folder / "recording.pickle").write_bytes(pickle.dumps(record(world)))
        keys = _keys(folder, [f"clients-{number}" for number in range(OWNERS)] + list(_agent_names(plan)))
        proxy = stack.enter_context(Proxy(world.cloud.grpc_address, record=False))
        idle_job = world.cloud.control.create_job(world.spec(training_file="device://nowhere"))["id"]
        stack.enter_context(_probe(world, idle_job, folder / "probe.txt"))
        clients, names = _start_clients(plan, folder, world, proxy, keys, chance), list(_agent_names(plan))
        for process, _ in clients:
            stack.callback(process.kill)
        agents = [stack.enter_context(_agent(plan, folder, world, proxy, name, keys[name])) for name in names]
        _wait(lambda: all(out.with_suffix(".ready").exists() for _, out in clients))
        _wait(lambda: all((folder / f"{name}.log").stat().st_size for name in names))
        began_idle = time.time()
        time.sleep(min(IDLE_S, plan.seconds / 2))
        began = time.time()
        write_text(folder / "start", str(began + plan.seconds))
        cloud, storm_at = Process(world.cloud.process.pid), began + plan.storm_s
        used = cloud.cpu_s()
        while (now := time.time()) < began + plan.seconds:
            found.rss_mib.append((now - began, cloud.rss_mib()))
            if now >= storm_at:
                proxy.cut()
                found.storms, storm_at = found.storms + 1, now + plan.storm_s * chance.uniform(0.7, 1.3)
            for agent in agents:
                agent.look()
            time.sleep(min(1.0, max(0.0, began + plan.seconds - now)))
        ended = time.time()
        found.seconds, found.cpu_s = ended - began, cloud.cpu_s() - used
        for process, out in clients:
            try:
                process.wait(LATE_S)
                tally = json.loads(out.read_text())
            except (subprocess.TimeoutExpired, FileNotFoundError):
                process.kill()
                found.wrong.append(f"clients did not end, see {out.with_suffix('.log')}")
                continue
            found.counts.update(tally["counts"])
            found.wrong += tally["wrong"]
            found.step_ms += tally["step_ms"]
        for agent in agents:
            agent.finish(time.time() + LATE_S)
            found.wrong += agent.wrong
            found.agent_jobs += agent.done
        for line in (folder / "probe.txt").read_text().splitlines():
            at, ms, status = line.split()
            if status != "200":
                found.wrong.append(f"GET of a job: {status}")
            if began_idle + 1 < float(at) < began:
                found.idle_ms.append(float(ms))
            elif began + 3 < float(at) < ended:
                found.load_ms.append(float(ms))
    log = world.cloud.log.read_text()
    found.wrong += [line[:300] for line in log.splitlines() if "Traceback" in line or "unexpected failure" in line]
    return found


class _Agent:
    """A real agent, which always has a job to do."""

    def __init__(self, process: Forked, control: ControlPlane, spec: JobSpec) -> None:
        self._process, self._control, self._spec = process, control, spec
        self._job = ""
        self.done, self.wrong = 0, list[str]()

    def look(self, more: bool = True) -> bool:
        """Whether its job is under way; gives it another one when it has ended, if there are to be more."""
        if self._process.poll() is not None:
            self.wrong.append("an agent ended")
            return False
        with suppress(PrivTuneError):
            if self._job:
                job = self._control.get_job(self._job)
                if job["status"] not in ("succeeded", "failed", "cancelled"):
                    return True
                seen = job["status"], job["privtune"]["progress"]["step"]
                if seen != ("succeeded", STEPS):
                    self.wrong.append(f"an agent's job ended as {seen}: {job['privtune']['reason']}")
                self.done += seen[0] == "succeeded"
                self._job = ""
            if more:
                self._job = self._control.create_job(self._spec)["id"]
        return bool(self._job)

    def finish(self, until: float) -> None:
        """Wait for its last job."""
        while self.look(more=False):
            if time.time() > until:
                self.wrong.append("an agent's job did not end")
                return
            time.sleep(0.5)


@contextmanager
def _agent(plan: Plan, folder: Path, world: World, proxy: Proxy, name: str, key: str) -> Iterator[_Agent]:
    config = folder / f"{name}.yaml"
    data = {"datasets": {name: {"path": world.data.path}}, "policy": {"mechanisms": ["dchi"]}}
    config.write_text(yaml.safe_dump(data))
    environment = os.environ | {
        "PRIVTUNE_CLOUD": world.cloud.http_url,
        "PRIVTUNE_API_KEY": key,
        "PRIVTUNE_HOME": str(folder / name),
        "PRIVTUNE_GRPC_ADDRESS": proxy.address,
    }
    arguments = ["agent", "--config", str(config), "--poll", "0.5", "--threads", "1", "--json"]
    process = Forked("privtune.device.cli", arguments, environment=environment, output=folder / f"{name}.log")
    os.setpriority(os.PRIO_PROCESS, process.pid, plan.nice)
    try:
        with ControlPlane(world.cloud.http_url, key) as control:
            yield _Agent(process, control, job_spec(world, f"device://{name}"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def _probe(world: World, job_id: str, out: Path) -> Iterator[None]:
    out.touch()
    arguments = [world.cloud.http_url, world.cloud.api_key, job_id, str(out), str(PROBE_S)]
    with subprocess.Popen([sys.executable, "-m", "tests.soak.probe", *arguments]) as process:
        try:
            while not out.stat().st_size:
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


def _start_clients(
    plan: Plan, folder: Path, world: World, proxy: Proxy, keys: dict[str, str], chance: random.Random
) -> list[tuple[subprocess.Popen[bytes], Path]]:
    started = []
    of_all = [keys[f"clients-{number % OWNERS}"] for number in range(plan.clients)]
    processes = -(-plan.clients // CLIENTS_A_PROCESS)
    for number in range(processes):
        facts = {
            "recording": str(folder / "recording.pickle"),
            "url": world.cloud.http_url,
            "gateway": proxy.address,
            "keys": of_all[number::processes],
            "think_s": plan.think_s,
            "ready": str(folder / f"clients-{number}.ready"),
            "start": str(folder / "start"),
            "seed": chance.randrange(1 << 32),
            "out": str(folder / f"clients-{number}.json"),
        }
        path = folder / f"clients-{number}.facts"
        path.write_text(json.dumps(facts))
        with (folder / f"clients-{number}.log").open("wb") as log:
            command = ["nice", "-n", str(plan.nice), sys.executable, "-m", "tests.soak.replay", str(path)]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        started.append((process, Path(facts["out"])))
    return started


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LATE_S
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError("the devices did not start")
        time.sleep(0.1)


def _agent_names(plan: Plan) -> Iterator[str]:
    return (f"agent-{number}" for number in range(plan.agents))


def _keys(folder: Path, owners: list[str]) -> dict[str, str]:
    store = Store(sqlite_url(folder / "cloud" / "cloud.sqlite"))
    try:
        return {owner: ApiKeys(store).create(owner).secret for owner in owners}
    finally:
        store.close()


class Process:
    """What the kernel knows of a process."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def rss_mib(self) -> float:
        """Memory that it takes."""
        pages = int((self._folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_s(self) -> float:
        """Processor time of all its threads."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], percent: int) -> float:
    """NaN of fewer than two values."""
    return math.nan if len(values) < 2 else quantiles(values, n=100, method="inclusive")[percent - 1]


def growth(found: Found) -> tuple[float, float]:
    """MiB that the cloud grew after it had warmed up, from the first tenth to the last, and MiB a minute."""
    warm = [one for one in found.rss_mib if one[0] >= WARM * found.seconds]
    tenth = max(1, len(warm) // 10)
    first, last = warm[:tenth], warm[-tenth:]
    grown = median(mib for _, mib in last) - median(mib for _, mib in first)
    minutes = (median(at for at, _ in last) - median(at for at, _ in first)) / 60
    return grown, grown / minutes if minutes else 0.0
