"""Releases that come as ids: bit for bit the vectors that their device would have sent, within the memory bound."""

import numpy as np
import pytest

from privtune.cloud.compute.memory_budget import MemoryBudget
from privtune.cloud.compute.release_cache import NotHeld, ReleaseCache
from privtune.cloud.compute.step_machine import StepMachine
from privtune.cloud.compute.top_session import TopSession
from privtune.shared.errors import CloudOutOfMemory, FrameCorrupt
from privtune.shared.job_spec import JobSpec
from privtune.shared.public_table import PublicTable
from privtune.shared.wire import FORWARD, TABLE, Message, pack_positions, tensor_message
from privtune.split.v1 import split_pb2 as pb

WIDTH = 32
LENGTHS, IDS = (2, 4), np.array([3, 0, 1, 6, 2, 2])
_RNG = np.random.default_rng(1)
PUBLIC = PublicTable(
    rows_KD=_RNG.standard_normal((7, WIDTH)).astype(np.float32),
    offsets_PD=_RNG.standard_normal((3, WIDTH)).astype(np.float32),
    placed=6,
)


def message(rows_MW, codec, *, inlined=True, **header):
    made = tensor_message(FORWARD, 0, 0, rows_MW if inlined else rows_MW[:0], codec)
    fields = {
        "record_ids": (1, 2),
        "lengths": LENGTHS,
        "inlined": [inlined] * 2,
        "readout": pack_positions(np.array([0])),
    }
    made.forward = pb.ForwardHeader(**fields | header)
    return made


def as_ids(ids_M=IDS, **header):
    return message(ids_M[:, None].astype(np.float32), "ids8", **header)


def cache(codec="bf16", budget=None):
    return ReleaseCache(WIDTH, codec, 1 << 20, budget, PUBLIC.sha256)


def ready(codec="bf16", budget=None):
    made = cache(codec, budget)
    made.take_table(PUBLIC)
    return made


@pytest.mark.parametrize("codec", ["bf16", "fp32"])
@pytest.mark.parametrize("past", [(), (5, 1)], ids=["records", "texts"])
def test_ids_become_the_vectors_of_their_positions(codec, past):
    firsts = past or (0, 0)
    places_M = np.concatenate([np.arange(n) + first for n, first in zip(LENGTHS, firsts, strict=True)])
    vectors = message(PUBLIC.vectors(IDS, places_M), codec, past=past)
    plain = ReleaseCache(WIDTH, codec, 1 << 20)
    take, expected = (ready(codec).unpack_rows, plain.unpack_rows) if past else (ready(codec).unpack, plain.unpack)
    assert take(as_ids(past=past)).h_BTD.equal(expected(vectors).h_BTD)


def test_a_later_epoch_names_its_records_and_they_are_held_as_ids():
    budget = MemoryBudget(1 << 20).of("alice")
    releases = ready(budget=budget)
    first = releases.unpack(as_ids())
    assert releases.unpack(as_ids(inlined=False)).h_BTD.equal(first.h_BTD)
    left = (1 << 20) - PUBLIC.nbytes - len(IDS)
    assert budget.fits(cache(), left)
    assert not budget.fits(cache(), left + 1)
    releases.shed()
    with pytest.raises(NotHeld):
        releases.unpack(as_ids(inlined=False))


def test_ids_before_their_table_are_refused():
    with pytest.raises(FrameCorrupt, match="before the table"):
        cache().unpack(as_ids())


def test_ids_outside_the_table_are_refused():
    with pytest.raises(FrameCorrupt, match="not in the job's table of 7"):
        ready().unpack(as_ids(np.array([3, 0, 1, 7, 2, 2])))


@pytest.mark.parametrize("codec", ["ids16", "bf16"])
def test_rows_in_another_form_than_announced_are_refused(codec):
    width = 1 if codec == "ids16" else WIDTH
    with pytest.raises(FrameCorrupt, match="this job uses 1 in ids8"):
        ready().unpack(message(np.zeros((6, width), np.float32), codec))
    with pytest.raises(FrameCorrupt, match="this job uses 32 in bf16"):
        ReleaseCache(WIDTH, "bf16", 1 << 20).unpack(as_ids())


def test_a_table_that_was_not_announced_is_refused():
    other = PublicTable(rows_KD=PUBLIC.rows_KD + 1, offsets_PD=PUBLIC.offsets_PD)
    narrow = PublicTable(rows_KD=PUBLIC.rows_KD[:, :8], offsets_PD=PUBLIC.offsets_PD[:, :8])
    for releases, table in (
        (cache(), other),
        (ReleaseCache(WIDTH, "bf16", 1 << 20), PUBLIC),
        (ReleaseCache(WIDTH, "bf16", 1 << 20, None, narrow.sha256), narrow),
    ):
        with pytest.raises(FrameCorrupt, match="did not announce"):
            releases.take_table(table)


def test_a_table_counts_into_the_memory_of_all_jobs():
    with pytest.raises(CloudOutOfMemory):
        cache(budget=MemoryBudget(PUBLIC.nbytes - 1).of("alice")).take_table(PUBLIC)


def test_the_machine_takes_a_table_keeps_it_and_acknowledges_it(host, tmp_path):
    spec = JobSpec(model="enc", training_file="device://x", train={"batch_size": 4}, tail=1)
    kept, releases = [], cache()
    machine = StepMachine(TopSession(host, spec, 10, tmp_path), releases, lambda: None, keep_table=kept.append)
    (answer,) = machine.handle(PUBLIC.to_message())
    assert (answer.kind, answer.table.sha256) == (TABLE, PUBLIC.sha256)
    assert [one.sha256 for one in kept] == [PUBLIC.sha256]
    assert not releases.needs_table
    # Every row comes back where none is named, as vectors of the job's codec.
    (out,) = machine.handle(as_ids(readout=b"", forward_only=True))
    assert (out.rows, out.width, out.codec) == (6, WIDTH, "bf16")


def test_a_message_that_is_no_table_is_refused(host, tmp_path):
    spec = JobSpec(model="enc", training_file="device://x")
    machine = StepMachine(TopSession(host, spec, 10, tmp_path), cache(), lambda: None)
    with pytest.raises(FrameCorrupt):
        list(machine.handle(Message(kind=TABLE, step=0)))
