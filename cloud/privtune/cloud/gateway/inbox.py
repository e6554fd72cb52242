"""What one stream has sent and the compute thread has not handled yet: bounded, and ended from outside at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from privtune.cloud.compute.desk import JobSession
from privtune.shared.errors import CloudUnreachable, PrivTuneError
from privtune.shared.wire import FrameReader, Message
from privtune.split.v1 import split_pb2 as pb


class Inbox:
    """The messages of one session's stream, in order. Belongs to the event loop."""

    def __init__(self, session: JobSession) -> None:
        self._session = session
        self._queue: asyncio.Queue[Message | PrivTuneError | None] = asyncio.Queue(2 * session.spec.train.in_flight + 2)

    async def fill(self, requests: AsyncIterator[pb.Frame], max_tensor_bytes: int) -> None:
        """Read the stream to its end, ahead of the compute thread, so that uploads overlap with computation."""
        reader = FrameReader(epoch=self._session.epoch, max_tensor_bytes=max_tensor_bytes)
        try:
            async for frame in requests:
                message = reader.feed(frame)
                self._session.bytes_up = reader.bytes_received
                if message is not None:
                    await self._queue.put(message)
            await self._queue.put(None)
        except PrivTuneError as error:
            await self._queue.put(error)
        except Exception as error:  # a broken transport, which the handler reports
            await self._queue.put(CloudUnreachable("the connection to the device was lost", detail=repr(error)))

    async def next(self) -> Message | None:
        """The next message, None at the stream's end. Raises what broke or ended the stream."""
        item = await self._queue.get()
        if isinstance(item, PrivTuneError):
            raise item
        return item

    def end(self, error: PrivTuneError) -> None:
        """End the stream with an error as the very next item: its device gets a status at once."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(error)
