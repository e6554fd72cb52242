"""From the event loop of the server to the worker's thread and back, for one request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from fastapi import Request

from privtune.device.endpoint.worker import News, Ticket, Worker
from privtune.device.inference.generate import Generated
from privtune.device.inference.generation.prompt_builder import Prompt
from privtune.device.inference.generation.sampling import Sampling

GONE_CHECK_S = 0.5


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Asking:
    """The questions of one request. Use as an async context manager: leaving it gives up what is not written yet."""

    def __init__(self, worker: Worker, prompts: Sequence[Prompt], sampling: Sampling, *, raw: bool) -> None:
        loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self._answers: list[Generated | None] = [None] * len(prompts)

        def teller(index: int) -> Ticket:
            def tell(news: News) -> None:
                loop.call_soon_threadsafe(self._news.put_nowait, (index, news))

            return Ticket(prompt=prompts[index], raw=raw, sampling=sampling, tell=tell)

        self._tickets = [teller(index) for index in range(len(prompts))]
        for ticket in self._tickets:
            worker.ask(ticket)

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        for ticket in self._tickets:
            ticket.cancel.set()

    @property
    def answers(self) -> list[Generated]:
        """What is written whole, in the order of the prompts."""
        return [answer for answer in self._answers if answer is not None]

    async def begun(self) -> None:
        """Wait until the first question is accepted; raises the error if it is not."""
        await self._next()

    async def news(self) -> AsyncIterator[tuple[int, News]]:
        """What becomes of the questions, until all are answered. Raises the error of one that is not."""
        while len(self.answers) < len(self._answers):
            yield await self._next()

    async def whole(self, request: Request) -> list[Generated]:
        """All answers. Raises ClientGone when the client hangs up."""
        while len(self.answers) < len(self._answers):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._next(), GONE_CHECK_S)
            if await request.is_disconnected():
                raise ClientGone
        return self.answers

    async def _next(self) -> tuple[int, News]:
        index, news = await self._news.get()
        if news.error is not None:
            raise news.error
        if news.done is not None:
            self._answers[index] = news.done
        return index, news
