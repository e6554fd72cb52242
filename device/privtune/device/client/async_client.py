"""`AsyncClient`: the calls of `Client` for asyncio. Each runs in a thread, so that the event loop stays free."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from privtune.device.client.client import Client
from privtune.device.client.finetune_job import FineTuneJob
from privtune.device.client.job_model import JobModel
from privtune.device.client.sources import Data
from privtune.device.client.training_run import JobEvent

R = TypeVar("R")


class _Twin:
    """Asks what it stands for, in a thread."""

    def __init__(self, blocking: Any) -> None:
        self._blocking = blocking

    def __repr__(self) -> str:
        return f"Async{self._blocking!r}"

    def _repr_html_(self) -> str | None:
        html: str | None = getattr(self._blocking, "_repr_html_", lambda: None)()
        return html


def _twin(call: Callable[..., R]) -> Callable[..., Coroutine[Any, Any, R]]:
    """The same call, awaited."""

    @functools.wraps(call)
    async def asked(self: _Twin, *args: Any, **kwargs: Any) -> R:
        return await asyncio.to_thread(call, self._blocking, *args, **kwargs)

    return asked


class AsyncJobModel(_Twin):
    """See `JobModel`."""

    predict = _twin(JobModel.predict)
    generate = _twin(JobModel.generate)
    evaluate = _twin(JobModel.evaluate)
    export = _twin(JobModel.export)


class AsyncFineTuneJob(_Twin):
    """See `FineTuneJob`. A cancelled `wait` leaves the job as it is: it trains on."""

    @property
    def id(self) -> str:
        """The job's id."""
        return str(self._blocking.id)

    @property
    def model(self) -> AsyncJobModel:
        """The tuned model."""
        return AsyncJobModel(self._blocking.model)

    async def status(self) -> str:
        """See `FineTuneJob.status`."""
        return await asyncio.to_thread(lambda: self._blocking.status)

    async def events(self) -> AsyncIterator[JobEvent]:
        """See `FineTuneJob.events`."""
        events: Iterator[JobEvent] = self._blocking.events()
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event

    wait = _twin(FineTuneJob.wait)
    pause = _twin(FineTuneJob.pause)
    cancel = _twin(FineTuneJob.cancel)


class AsyncClient(_Twin):
    """See `Client`, whose arguments it takes.

    async with AsyncClient("https://cloud.example:8080", api_key="pt-...") as client:
        job = await client.finetune("reviews.csv", model="minilm")
        await job.wait()
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(Client(*args, **more))

    @classmethod
    async def local(cls, models: Mapping[str, str | Path], **more: Any) -> AsyncClient:
        """See `Client.local`."""
        made = cls.__new__(cls)
        _Twin.__init__(made, await asyncio.to_thread(Client.local, models, **more))
        return made

    async def finetune(self, data: Data, *, model: str, **more: Any) -> AsyncFineTuneJob:
        """See `Client.finetune`."""
        return AsyncFineTuneJob(await asyncio.to_thread(self._blocking.finetune, data, model=model, **more))

    async def resume(self, job_id: str, data: Data | None = None, **more: Any) -> AsyncFineTuneJob:
        """See `Client.resume`."""
        return AsyncFineTuneJob(await asyncio.to_thread(self._blocking.resume, job_id, data, **more))

    def job(self, job_id: str) -> AsyncFineTuneJob:
        """See `Client.job`."""
        return AsyncFineTuneJob(self._blocking.job(job_id))

    async def jobs(self, **more: Any) -> list[AsyncFineTuneJob]:
        """See `Client.jobs`."""
        return [AsyncFineTuneJob(job) for job in await asyncio.to_thread(lambda: self._blocking.jobs(**more))]

    models = _twin(Client.models)
    close = _twin(Client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
