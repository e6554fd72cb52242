"""Every administrative act is in the audit log, once, with whose things it touched and no secret."""

import json

import pytest

from privtune.cloud.audit_log.check import entries, verify
from privtune.cloud.jobs.homes import Homes
from privtune.cloud.limits import OwnerLimits
from privtune.shared.errors import HomeOutdated, KeyNotFound
from tests.support.leases import begin

HOME, ONE, OTHER = "a" * 32, "1" * 32, "2" * 32


def acts(store):
    assert verify(store).problem is None
    return [(entry.action, entry.owner, entry.target) for entry in entries(store)]


def test_keys(store, keys):
    made = keys.create("alice", "ci", scopes=["read"])
    new = keys.rotate(made.key.id, overlap_s=100)
    for _ in range(2):
        keys.revoke(new.key.id)
    with pytest.raises(KeyNotFound):
        keys.revoke("key-none")
    keys.authenticate(keys.create("bob").secret, "read")
    boot = "pt-" + "b" * 40
    for _ in range(2):
        keys.ensure(boot)
    bob, default = (keys.list(owner)[0].id for owner in ("bob", "default"))
    assert acts(store) == [
        ("key.created", "alice", made.key.id),
        ("key.rotated", "alice", made.key.id),
        ("key.revoked", "alice", new.key.id),
        ("key.created", "bob", bob),
        ("key.created", "default", default),
    ]
    written = json.dumps([entry.detail for entry in entries(store)])
    assert '"replaced_by": "' + new.key.id in written
    assert not any(secret in written for secret in (made.secret, new.secret, boot))


def test_limits(store):
    OwnerLimits(store).set("alice", unfinished_jobs=3)
    OwnerLimits(store).set("alice")
    assert [entry.detail for entry in entries(store)] == [{"unfinished_jobs": 3}, {}]
    assert acts(store) == [("limits.set", "alice", "")] * 2


def test_jobs_that_are_deleted_or_taken_from_their_devices(store, jobs, spec):
    taken, deleted, old = (jobs.create("alice", spec).id for _ in range(3))
    jobs.leases.release(taken, "alice")
    assert acts(store) == [], "nobody held it"
    begin(jobs, taken)
    jobs.leases.release(taken, "alice")
    for job_id in (deleted, old):
        jobs.cancel(job_id)
    for _ in range(2):
        jobs.deletions.delete(deleted, "alice")
    jobs.deletions.sweep(1 << 40)
    assert acts(store) == [
        ("lease.released", "alice", taken),
        ("job.deleted", "alice", deleted),
        ("job.deleted", "alice", old),
    ]
    assert [entry.detail["why"] for entry in entries(store) if entry.action == "job.deleted"] == ["asked", "age"]


def test_homes_once_when_they_are_new_and_once_for_each_older_copy(store):
    homes = Homes(store)
    for count in (1, 2, 5):
        homes.claim("alice", HOME, count, ONE)
    for count in (3, 3, 4):
        with pytest.raises(HomeOutdated):
            homes.claim("alice", HOME, count, OTHER)
    assert acts(store) == [("home.added", "alice", HOME)] + [("home.refused", "alice", HOME)] * 2
    assert [entry.detail["count"] for entry in entries(store)] == [1, 3, 4]
