"""What one stream has sent and the compute thread has not handled yet: bounded, and ended from outside at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from privtune.cloud import meters
from privtune.cloud.compute.job_session import JobSession
from privtune.cloud.compute.memory_budget import OwnersBudget
from privtune.cloud.compute.step_machine import MAX_INFERENCE_RECORDS
from privtune.shared.errors import CloudUnreachable, FrameCorrupt, PrivTuneError
from privtune.shared.wire import FrameReader, Message
from privtune.split.v1 import split_pb2 as pb

FRAME_S = 60.0  # longest wait for the next frame of a message, which holds memory meanwhile


class Inbox:
    """The messages of one session's stream, in order. Belongs to the event loop.

    budget: in which frames and answers are entered for as long as they are here.
    make_room: enters a holder's bytes in the budget on the compute thread, whose caches may have to give way.
    count: counts bytes that came, and gives the seconds to wait before more are read.
    idle_s: longest wait for a message; meanwhile the session holds memory.
    """

    def __init__(
        self,
        session: JobSession,
        budget: OwnersBudget,
        make_room: Callable[[object, int], Awaitable[None]],
        count: Callable[[int], float] = lambda _: 0.0,
        *,
        idle_s: float = 3600.0,
    ) -> None:
        self._session, self._budget, self._make_room, self._count = session, budget, make_room, count
        self._idle_s = idle_s
        self._queue: asyncio.Queue[Message | PrivTuneError | None] = asyncio.Queue(2 * session.spec.train.in_flight + 2)
        self._size = self._handled = 0

    @property
    def epoch(self) -> int:
        """The session's."""
        return self._session.epoch

    @property
    def job_id(self) -> str:
        """The job of the stream."""
        return self._session.job_id

    async def fill(self, requests: AsyncIterator[pb.Frame], max_tensor_bytes: int) -> None:
        """Read the stream to its end, ahead of the compute thread, so that uploads overlap with computation."""
        largest = min(max_tensor_bytes, self._session.max_message_bytes or max_tensor_bytes)
        reader = FrameReader(epoch=self._session.epoch, max_tensor_bytes=largest)
        try:
            while (frame := await self._frame(requests, reader)) is not None:
                meters.received(self._session.owner, frame.ByteSize())
                await self._hold(frame.ByteSize())
                if wait_s := self._count(frame.ByteSize()):
                    await asyncio.sleep(wait_s)  # gRPC makes the device wait as well
                message = reader.feed(frame)
                self._session.bytes_up = reader.bytes_received
                if message is not None:
                    self._check(message)
                    self._session.tokens += sum(message.forward.lengths) if message.forward is not None else 0
                    await self._queue.put(message)
            await self._queue.put(None)
        except PrivTuneError as error:
            await self._queue.put(error)
        except Exception as error:  # a broken transport, which the handler reports
            await self._queue.put(CloudUnreachable("the connection to the device was lost", detail=repr(error)))

    def _check(self, message: Message) -> None:
        """Refuse what the step machine would refuse, where the parsed header takes many times its bytes until then."""
        most = max(self._session.spec.train.batch_size, MAX_INFERENCE_RECORDS)
        if message.forward is not None and len(message.forward.record_ids) > most:
            raise FrameCorrupt(f"a micro-batch of {len(message.forward.record_ids)} records is over every limit")

    @staticmethod
    async def _frame(requests: AsyncIterator[pb.Frame], reader: FrameReader) -> pb.Frame | None:
        try:
            async with asyncio.timeout(FRAME_S if reader.unfinished else None):
                return await anext(requests, None)
        except TimeoutError:
            raise CloudUnreachable(f"the next part of a message did not come within {FRAME_S:.0f} seconds") from None

    async def next(self) -> Message | None:
        """The next message, None at the stream's end; the one before is done. Raises what broke or ended the stream."""
        await self._hold(-self._handled)
        try:
            async with asyncio.timeout(self._idle_s):
                item = await self._queue.get()
        except TimeoutError:
            raise CloudUnreachable(f"the device sent nothing for {self._idle_s:.0f} seconds") from None
        if isinstance(item, PrivTuneError):
            raise item
        self._handled = 0 if item is None else item.wire_bytes
        return item

    @asynccontextmanager
    async def answering(self, size: int) -> AsyncIterator[None]:
        """While an answer of `size` bytes waits for its device to read it. Raises as `MemoryBudget.hold`."""
        await self._hold(size)
        try:
            yield
        finally:
            self._size -= size  # entered with the next change

    def end(self, error: PrivTuneError) -> None:
        """End the stream with an error as the very next item: its device gets a status at once."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    async def _hold(self, more: int) -> None:
        self._size += more
        if not self._budget.hold_at_once(self, self._size):
            await self._make_room(self, self._size)
