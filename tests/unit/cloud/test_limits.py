"""What an owner may take: the usual, or its own."""

import pytest

from privtune.cloud.limits import Buckets, OwnerLimits
from privtune.cloud.settings import Limits
from privtune.cloud.storage import ArtifactStore
from privtune.shared.errors import InvalidInput, ModelNotFound, RateLimited, StorageFull


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_bucket_leaks(clock):
    bytes_ = Buckets(clock)
    assert bytes_.take("alice", 60, 60) == 0
    assert bytes_.take("alice", 30, 60) == 30
    clock.now = 30
    assert bytes_.take("alice", 0, 60) == 0
    assert bytes_.take("alice", 1, 60, unless_over=True) == 1
    assert bytes_.take("alice", 1, 60, unless_over=True) == 1, "what is refused is not taken"
    assert bytes_.take("bob", 60, 60) == 0
    assert bytes_.take("alice", 1, 120) == 0, "a limit that was raised holds at once"


def test_requests_over_the_limit_are_refused_until_the_time_that_is_told(store, clock):
    limits = OwnerLimits(store, Limits(requests_per_minute=6), clock=clock)
    for _ in range(6):
        limits.count_request("alice")
    with pytest.raises(RateLimited, match=r"More than 6 requests .* again in 10 s") as refused:
        limits.count_request("alice")
    limits.count_request("bob")
    clock.now += refused.value.retry_after_s
    limits.count_request("alice")


def test_an_owner_has_limits_of_its_own_which_other_processes_see_soon(store, clock):
    serving, operator = OwnerLimits(store, Limits(unfinished_jobs=9), clock=clock), OwnerLimits(store)
    assert serving.of("alice").unfinished_jobs == 9
    operator.set("alice", unfinished_jobs=2, models=["a", "b"])
    clock.now += 1.1
    assert serving.of("alice") == Limits(unfinished_jobs=2, models=("a", "b"))
    assert serving.of("bob").models is None
    assert operator.own() == {"alice": {"unfinished_jobs": 2, "models": ["a", "b"]}}
    operator.set("alice", bytes_per_minute=5)
    clock.now += 1.1
    assert serving.of("alice") == Limits(unfinished_jobs=9, bytes_per_minute=5)
    operator.set("alice")
    assert operator.own() == {}


@pytest.mark.parametrize("wrong", [{"unfinished_jobs": 0}, {"bytes_per_minute": -1}, {"nonsense": 1}])
def test_limits_that_there_are_not(store, wrong):
    with pytest.raises(InvalidInput):
        OwnerLimits(store).set("alice", **wrong)
    assert OwnerLimits(store).own() == {}


def test_models_that_an_owner_may_not_use_are_not_there(store):
    limits = OwnerLimits(store)
    limits.check_model("alice", "anything")
    limits.set("alice", models=["a"])
    limits.check_model("alice", "a")
    with pytest.raises(ModelNotFound, match="does not offer you the model 'b'"):
        limits.check_model("alice", "b")


def test_bytes_wait_and_only_where_they_are_limited(store, clock):
    limits = OwnerLimits(store, clock=clock)
    assert limits.counting_bytes("alice")(1 << 40) == 0
    limits.set("alice", bytes_per_minute=600)
    one, other = limits.counting_bytes("alice"), limits.counting_bytes("alice")
    assert one(600) == 0
    assert other(100) == 10, "all streams of an owner share"
    clock.now += 10
    assert one(10) == 1


def test_an_owner_whose_jobs_take_its_room_begins_no_more(store, jobs, spec, tmp_path):
    limits = OwnerLimits(store, Limits(stored_bytes=1 << 20), ArtifactStore(tmp_path))
    mine, theirs = jobs.create("alice", spec), jobs.create("bob", spec)
    for job in (mine, theirs):
        folder = tmp_path / "jobs" / job.id / "checkpoints" / "step-1"
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(bytes((1 << 20) - 1 if job is mine else 1 << 22))
    limits.check_stored("alice")
    (folder.parents[2] / mine.id / "adapter").write_bytes(b"1")
    with pytest.raises(StorageFull, match=r"take 0\.00 GiB here, of 0\.00"):
        limits.check_stored("alice")
    limits.set("alice", stored_bytes=1 << 30)
    limits.check_stored("alice")
