"""Clouds on PostgreSQL and S3: two of them share everything, and what is backed up comes back."""

from functools import partial

import pytest

from privtune.cloud.auth import ApiKeys
from privtune.cloud.compute.artifacts import Artifacts
from privtune.cloud.db.store import Store
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.storage import open_artifacts
from privtune.shared.errors import HomeOutdated
from tests.support.running import Died, run, same_order
from tests.support.world import InProcessCloud, Watcher, build_world


@pytest.fixture
def shared(postgres, s3):
    """The database and the bucket, as settings of a cloud."""
    place = {"database": postgres.new(), "artifacts_url": s3.bucket()}
    yield place
    postgres.drop(place["database"])


@pytest.fixture
def world(tmp_path, shared):
    built = build_world(tmp_path, partial(InProcessCloud, **shared))
    yield built
    built.cloud.stop()


@pytest.fixture
def spec(world):
    return world.spec(tuning={"dropout": 0.1}, train={"checkpoint_every": 4, "max_steps": 12})


class Outage(Watcher):
    """The bucket is away from step 6 on until the device has noticed; the device dies after step 9."""

    def __init__(self, s3):
        super().__init__()
        self._s3, self.ended = s3, False

    def step(self, info):
        super().step(info)
        if info.step == 6 and not self.ended:
            self._s3.down.touch()
        if info.step == 9:
            raise Died

    def message(self, text):
        super().message(text)
        self.ended = self._s3.down.exists() or self.ended
        self._s3.down.unlink(missing_ok=True)


def another_cloud(world, shared, name, **changes):
    """The device goes to a cloud with an empty data folder on the same database and bucket."""
    cloud = InProcessCloud(world.folder / name, world.models, **shared | changes)
    world.settings = world.device(grpc_address=cloud.grpc_address, api_key=cloud.api_key)
    return cloud


def test_a_job_goes_on_in_another_cloud_and_when_the_bucket_is_back(world, shared, s3, spec):
    calm_id, _ = run(world, spec, validation=False)
    job_id = world.cloud.create_job(spec)
    same_order(world, calm_id, job_id)
    watcher = Outage(s3)
    with pytest.raises(Died):
        run(world, spec, validation=False, watcher=watcher, job_id=job_id)
    assert watcher.ended, "the checkpoint of step 8 came while it was down"
    world.cloud.stop()
    world.cloud = another_cloud(world, shared, "another")
    again = Watcher()
    run(world, spec, validation=False, watcher=again, job_id=job_id)
    assert again.starts[0].start_step == 8
    calm, tried = (world.cloud.jobs.get(one).adapter_sha256 for one in (calm_id, job_id))
    assert calm == tried is not None


def test_a_backup_of_database_and_bucket_brings_everything_back(world, shared, postgres, s3, spec, tmp_path):
    job_id, _ = run(world, spec, validation=False)
    before = Jobs(Store(shared["database"])).get(job_id)
    claim = ("alice", "a" * 32, 2, "b" * 32)
    world.cloud.jobs.homes.claim(*claim)
    key = world.cloud.api_key
    postgres.program("pg_dump", "--format=custom", f"--file={tmp_path / 'dump'}", shared["database"])
    s3.files().get(shared["artifacts_url"], str(tmp_path / "files"), recursive=True)

    restored = {"database": postgres.new(empty=True), "artifacts_url": s3.bucket()}
    postgres.program("pg_restore", "--no-owner", f"--dbname={restored['database']}", tmp_path / "dump")
    s3.files().put(str(tmp_path / "files") + "/", restored["artifacts_url"], recursive=True)
    store = Store(restored["database"])
    jobs = Jobs(store)
    store.upgrade()
    assert jobs.get(job_id) == before
    assert ApiKeys(store).authenticate(key, "device").owner == "alice"
    with pytest.raises(HomeOutdated):
        jobs.homes.claim("alice", "a" * 32, 1, "c" * 32)
    artifacts = Artifacts(open_artifacts(tmp_path / "empty", restored["artifacts_url"]))
    artifacts.adapter(job_id)
    assert artifacts.adapter_sha256(job_id) == before.adapter_sha256
    assert jobs.create("alice", spec).id != job_id
    store.close()
    postgres.drop(restored["database"])
