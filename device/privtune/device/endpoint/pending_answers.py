"""From the server's event loop to the worker's thread and back, for one request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from fastapi import Request

from privtune.device.endpoint.worker import PendingPrompt, Update, Worker
from privtune.device.inference.generate import Generated
from privtune.device.inference.generation.prompt_builder import Prompt
from privtune.device.inference.generation.sampling import Sampling

GONE_CHECK_S = 0.5


class ClientGone(Exception):
    """The client no longer waits for the answer."""


class PendingAnswers:
    """The questions of one request and their answers, several to each prompt where `times` says so.

    Use as an async context manager: leaving it cancels the answers that are not finished.
    """

    def __init__(
        self, worker: Worker, prompts: Sequence[Prompt], sampling: Sampling, *, raw: bool, times: int = 1
    ) -> None:
        loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        self._answers: list[Generated | None] = [None] * (len(prompts) * times)

        def question(index: int) -> PendingPrompt:
            def notify(update: Update) -> None:
                loop.call_soon_threadsafe(self._updates.put_nowait, (index, update))

            return PendingPrompt(
                prompt=prompts[index // times], raw=raw, sampling=sampled[index % times], notify=notify
            )

        sampled = [sampling.again(time) for time in range(times)]
        self._questions = [question(index) for index in range(len(self._answers))]
        for one in self._questions:
            worker.ask(one)

    async def __aenter__(self) -> PendingAnswers:
        return self

    async def __aexit__(self, *_: object) -> None:
        for question in self._questions:
            question.cancel.set()

    @property
    def answers(self) -> list[Generated]:
        """The finished answers, in the order of the prompts."""
        return [answer for answer in self._answers if answer is not None]

    async def begun(self) -> None:
        """Wait until the first question is accepted. Raises the error if it is refused."""
        await self._next()

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """Updates until all questions are answered, each with the number of its prompt. Raises the error of one."""
        while len(self.answers) < len(self._answers):
            yield await self._next()

    async def finished(self, request: Request) -> list[Generated]:
        """All answers, once they are finished. Raises ClientGone when the client disconnects."""
        while len(self.answers) < len(self._answers):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._next(), GONE_CHECK_S)
            if await request.is_disconnected():
                raise ClientGone
        return self.answers

    async def _next(self) -> tuple[int, Update]:
        index, update = await self._updates.get()
        if update.error is not None:
            raise update.error
        if update.done is not None:
            self._answers[index] = update.done
        return index, update
