"""The disk that the tests of power loss judge by loses what POSIX lets it lose, and nothing else."""

import random
from pathlib import Path

import pytest

from tests.support.losing_disk import Disk, Loss
from tests.support.strace import Operation

NEW, OLD = b"new" * 400, b"old"


def disk(*done):
    """A disk after operations (kind, path, ...), with what was there before flushed."""
    made = Disk(Path("/d"))
    before = [("create", "f"), ("write", "f", OLD), ("sync", "f"), ("sync", "")]
    for kind, path, *more in (*before, *done):
        data = more[0] if kind == "write" else b""
        to = f"/d/{more[0]}" if kind == "rename" else ""
        made.apply(Operation(time=0.0, kind=kind, path=f"/d/{path}".rstrip("/"), to=to, data=data))
    return made


REPLACED = [("create", "part"), ("write", "part", NEW), ("rename", "part", "f")]


def test_a_kill_takes_nothing():
    assert disk(*REPLACED).after(Loss.NOTHING_LOST) == {"f": NEW}


def test_a_renamed_file_that_was_not_flushed_is_empty():
    assert disk(*REPLACED).after(Loss.BYTES) == {"f": b""}


def test_a_name_that_was_not_flushed_is_not_there():
    flushed = [*REPLACED[:2], ("sync", "part"), REPLACED[2]]
    assert disk(*flushed).after(Loss.NAMES) == {"f": OLD}
    assert disk(*flushed, ("sync", "")).after(Loss.NAMES) == {"f": NEW}
    assert disk(("mkdir", "job"), ("create", "job/x"), ("sync", "job")).after(Loss.NAMES) == {"f": OLD}
    assert disk(("unlink", "f")).after(Loss.NAMES) == {"f": OLD}


@pytest.mark.parametrize("done", [REPLACED, [("write", "f", NEW)]], ids=["replaced", "over"])
def test_chance_makes_old_new_and_torn_disks(done):
    made = disk(*done)
    found = [made.after(Loss.SOME, random.Random(seed)) for seed in range(60)]
    ends = {one["f"] for one in found}
    assert {OLD, NEW} <= ends
    assert any(0 < len(end) < len(NEW) and end != OLD for end in ends)
