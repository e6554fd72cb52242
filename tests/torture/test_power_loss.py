"""Power is lost on either side at any moment of a job: what had left is on the disk, and the job ends as it would have.

Every file operation of both sides is recorded (strace), and each disk is rebuilt as it may be after any of them: all
disks are read, and from some of them the job is run to its end. PRIVTUNE_TORTURE_S decides how many those are. One of
the jobs runs on a home that was encrypted just before.
"""

from __future__ import annotations

import bisect
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from privtune.device.account.ledger import Ledger, spent
from privtune.device.account.run_account import TRANSCRIPT, source_of
from privtune.device.account.verify import check
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import RunResult, run_job
from privtune.shared.at_rest import use_vault
from tests.support.losing_disk import Loss
from tests.support.strace import missing
from tests.support.world import InProcessCloud, Watcher
from tests.torture.recorded import CHECKPOINT_EVERY, HELD_OUT, JOBS, RECORDS, Recorded, record, stored_releases
from tests.torture.sealing import PASSPHRASE, encrypt
from tests.torture.survivors import Moment, Survivors

SECONDS = float(os.environ.get("PRIVTUNE_TORTURE_S", "60"))
SEED = int(os.environ.get("PRIVTUNE_TORTURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
MISSING = missing()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800 + SECONDS),
    pytest.mark.skipif(bool(MISSING), reason=f"nothing records file operations here: {MISSING}"),
]


@pytest.fixture(scope="module", params=sorted(JOBS))
def made(request, tmp_path_factory) -> Iterator[Recorded]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PASSPHRASE.items():
            patch.setenv(name, value)
        yield record(tmp_path_factory.mktemp(request.param) / "recorded", request.param)


@pytest.fixture(scope="module")
def moments(made, tmp_path_factory) -> dict[str, list[Moment]]:
    survivors = Survivors(made, tmp_path_factory.mktemp("survivors"))
    return {side: list(survivors.moments(side)) for side in made.operations}


def test_the_record_has_no_gap(made):
    for side, done in made.operations.items():
        folder = made.folder / side
        found = made.disk(side, len(done)).after(Loss.NOTHING_LOST)
        real = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix != ".log"}
        assert found.keys() == real.keys()
        for name, data in found.items():
            assert real[name].is_dir() if data is None else real[name].read_bytes() == data, name


def test_every_disk_can_be_read_and_holds_what_had_left(moments):
    every = [moment for found in moments.values() for moment in found]
    wrong = [f"{moment}: {one}" for moment in every for one in moment.wrong]
    assert not wrong, f"{len(wrong)} of {len(every)} disks: " + "\n".join(wrong[:20])
    assert {moment.loss for moment in every} == set(Loss)


def test_an_answer_of_the_cloud_outlives_its_power(made, moments):
    """What the device has acted on was on the cloud's disk: a finished job's adapter, and the steps of checkpoints."""
    device = [moment for moment in moments["device"] if moment.loss is Loss.NOTHING_LOST]
    whole = [moment for moment in moments["cloud"] if moment.loss is Loss.NOTHING_LOST]
    for cloud in moments["cloud"]:
        here, kept = _latest(device, cloud.time), _latest(whole, cloud.time)
        if here is None or kept is None:
            continue
        assert cloud.facts["status"] == "succeeded" or not here.facts["done"], str(cloud)
        assert _common(here, cloud) >= _common(here, kept) - CHECKPOINT_EVERY, str(cloud)
    for mine in moments["device"]:
        here, cloud = _latest(device, mine.time), _latest(whole, mine.time)
        assert _common(mine, cloud) >= _common(here, cloud) - CHECKPOINT_EVERY, str(mine)


def test_the_job_ends_as_if_the_power_had_stayed(made, moments, tmp_path):
    chance, until, number = random.Random(SEED), time.monotonic() + SECONDS / len(JOBS), 0
    print(f"seed {SEED}")
    usable = [moment for found in moments.values() for moment in found if moment.time > made.created]
    while time.monotonic() < until or number < 2:
        moment, number = chance.choice(usable), number + 1
        other = Loss.NOTHING_LOST if chance.random() < 0.5 else chance.choice(list(Loss))
        try:
            _resumed(made, moment, other, tmp_path / str(number))
        except BaseException as error:
            error.add_note(f"{moment}; the other side {other.name}; seed {SEED}")
            raise
    print(f"{number} jobs resumed")


def _resumed(made: Recorded, moment: Moment, other: Loss, folder: Path) -> None:
    """Both sides as they may be at a moment, and the job to its end; then the same job in peace."""
    for side in made.operations:
        if side == moment.side:
            made.after(side, moment.count, moment.loss, folder / side, moment.seed)
        else:
            made.after(side, made.at(side, moment.time), other, folder / side, moment.seed)
    home, data = folder / "device" / "home", folder / "cloud" / "data"
    if made.key is not None:
        encrypt(home)  # as its owner does first; all but the earliest are encrypted already
    before = stored_releases(home)
    with closing(sqlite3.connect(data / "cloud.sqlite")) as database:
        owner = database.execute("SELECT owner FROM jobs").fetchone()[0]
    cloud = InProcessCloud(data, made.models)
    try:
        key = cloud.keys.create(owner).secret
        settings = RunSettings(grpc_address=cloud.grpc_address, api_key=key, home=home, another_noise=True)
        ended = _run(made, made.job_id, settings)
        releases = stored_releases(home)
        assert before.items() <= releases.items(), "what was on the disk was drawn again"
        drawn = {record: data for record, (data, at) in made.sent.items() if record in before}
        assert drawn.items() <= releases.items(), "what had left was drawn again"
        assert cloud.status(made.job_id)[0] == "succeeded"
        if before.items() >= {record: data for record, (data, _) in made.sent.items()}.items():
            assert ended.adapter_sha256 == made.adapter_sha256
        else:  # some records were drawn after the loss: the job in peace has their draws too
            calm_id = cloud.jobs.create(owner, made.spec).id
            state = JobFolder(home, made.job_id).load()
            JobFolder(home, calm_id).save(replace(state, final_step=None))
            assert _run(made, calm_id, settings).adapter_sha256 == ended.adapter_sha256
        with Ledger(home) as ledger:
            entries = ledger.entries()
        found = check(made.job_id, home / "jobs" / made.job_id / TRANSCRIPT, entries, home / "releases.sqlite")
        assert not found.problems
        for path, records in ((made.data, RECORDS), (made.held_out, HELD_OUT)):
            cost = spent(entries, source_of(str(path)))
            assert (cost.releases, cost.jobs) == (records, 1)
    finally:
        cloud.stop()
        use_vault(home, None)


def _run(made: Recorded, job_id: str, settings: RunSettings) -> RunResult:
    data, held_out = DataSource(path=str(made.data)), DataSource(path=str(made.held_out))
    return run_job(job_id, made.spec, data, held_out, settings, Watcher(), threading.Event())


def _latest(moments: list[Moment], moment: float) -> Moment | None:
    place = bisect.bisect_right(moments, moment, key=lambda one: one.time)
    return moments[place - 1] if place else None


def _common(device: Moment, cloud: Moment) -> int:
    return max({0} | (set(device.steps) & set(cloud.steps)))
