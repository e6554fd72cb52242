"""What a stream may queue before the compute thread looks at it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from privtune.cloud.compute.memory_budget import MemoryBudget
from privtune.cloud.gateway.inbox import Inbox
from privtune.shared.errors import FrameCorrupt
from privtune.shared.job_spec import JobSpec
from privtune.shared.wire import FORWARD, FrameWriter, Message
from privtune.split.v1 import split_pb2 as pb


def test_what_comes_too_fast_waits():
    """A stream is read no faster than its owner's limit; the event loop and other streams go on."""
    spec = JobSpec(model="m", training_file="device://x")
    session = SimpleNamespace(spec=spec, epoch=1, owner="alice", max_message_bytes=None)
    counted = []

    def count(size):
        counted.append(size)
        return 0.05

    async def requests():
        for step in range(4):
            message = Message(
                kind=FORWARD, step=step, micro_batch=0, payload=b"1234" * 4, rows=4, width=1, codec="fp32"
            )
            for frame in FrameWriter(epoch=1).frames(message):
                yield frame

    async def read():
        began = asyncio.get_running_loop().time()
        await Inbox(session, MemoryBudget(1 << 30).of("alice"), lambda *_: asyncio.sleep(0), count).fill(
            requests(), 1 << 30
        )
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(read()) >= 0.05 * len(counted) > 0


def test_record_ids_without_end_are_not_queued():
    """Parsed, they take eight times their bytes, and more messages of them may wait while another job computes."""
    spec = JobSpec(model="m", training_file="device://x")
    session = SimpleNamespace(spec=spec, epoch=1, owner="alice", max_message_bytes=None, bytes_up=0)
    header = pb.ForwardHeader(record_ids=[1] * 100_000)
    message = Message(kind=FORWARD, step=0, micro_batch=0, payload=b"", rows=0, width=4, codec="fp32", forward=header)

    async def requests():
        for frame in FrameWriter(epoch=1).frames(message):
            yield frame

    async def read():
        inbox = Inbox(session, MemoryBudget(1 << 30).of("alice"), lambda holder, size: asyncio.sleep(0))
        await inbox.fill(requests(), 1 << 30)
        return await inbox.next()

    with pytest.raises(FrameCorrupt, match="100000 records"):
        asyncio.run(read())
