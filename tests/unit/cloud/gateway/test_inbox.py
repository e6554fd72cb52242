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


def test_record_ids_without_end_are_not_queued():
    """Parsed, they take eight times their bytes, and more messages of them may wait while another job computes."""
    spec = JobSpec(model="m", training_file="device://x")
    session = SimpleNamespace(spec=spec, epoch=1, max_message_bytes=None, bytes_up=0)
    header = pb.ForwardHeader(record_ids=[1] * 100_000)
    message = Message(kind=FORWARD, step=0, micro_batch=0, payload=b"", rows=0, width=4, codec="fp32", forward=header)

    async def requests():
        for frame in FrameWriter(epoch=1).frames(message):
            yield frame

    async def read():
        inbox = Inbox(session, MemoryBudget(1 << 30), lambda holder, size: asyncio.sleep(0))
        await inbox.fill(requests(), 1 << 30)
        return await inbox.next()

    with pytest.raises(FrameCorrupt, match="100000 records"):
        asyncio.run(read())
