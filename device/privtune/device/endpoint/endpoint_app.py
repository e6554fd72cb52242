"""The endpoint's routes: chat and text completions, responses, embeddings, models."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from privtune.device.endpoint import openai_answers
from privtune.device.endpoint.guard import Guard
from privtune.device.endpoint.openai_errors import install_error_handlers
from privtune.device.endpoint.openai_logprobs import Logprobs
from privtune.device.endpoint.openai_requests import ChatRequest, CompletionRequest, EmbeddingRequest
from privtune.device.endpoint.openai_responses import ResponseShape, ResponsesRequest
from privtune.device.endpoint.pending_answers import ClientGone, PendingAnswers
from privtune.device.endpoint.worker import Worker
from privtune.device.inference.generation.prompt_builder import Prompt, Prompts
from privtune.shared.errors import ModelNotFound, PrivTuneError

Json = dict[str, Any]
Shape = openai_answers.AnswerShape | ResponseShape


def create_app(workers: Mapping[str, Worker], key: str | None, *, loopback_only: bool) -> FastAPI:
    """The ASGI app.

    Args:
        workers: by the id of their job.
        key: what clients must present; None: nothing.
        loopback_only: refuse requests that name another host.
    """
    app = FastAPI(title="PrivTune endpoint", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, key=key, loopback_only=loopback_only)
    install_error_handlers(app)

    def worker_of(model: str) -> Worker:
        worker = workers.get(job_of(model))
        if worker is None:
            raise ModelNotFound(
                f"There is no model {model[:80]!r} here; there are: {', '.join(workers)}", param="model"
            )
        return worker

    @app.get("/v1/models")
    def models() -> Json:
        return {"object": "list", "data": [_card(name, worker) for name, worker in workers.items()]}

    @app.get("/v1/models/{model:path}")
    def model_card(model: str) -> Json:
        return _card(model, worker_of(model))

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        return await _answer(asked, request, worker_of(asked.model), [asked.conversation()], chat=True)

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        return await _answer(asked, request, worker_of(asked.model), asked.prompts, chat=False)

    @app.post("/v1/responses")
    async def respond(asked: ResponsesRequest, request: Request) -> Response:
        worker = worker_of(asked.model)
        pending = PendingAnswers(worker, [asked.conversation()], asked.sampling(), raw=False)
        return await _sent(
            pending, request, ResponseShape(asked, Logprobs(worker.parts.tokenizer)), stream=asked.stream
        )

    @app.post("/v1/embeddings")
    async def embed(asked: EmbeddingRequest) -> Json:
        worker = worker_of(asked.model)
        return await asyncio.to_thread(_embeddings, worker, asked)

    return app


async def _answer(
    asked: ChatRequest | CompletionRequest, request: Request, worker: Worker, prompts: Sequence[Prompt], *, chat: bool
) -> Response:
    times = asked.n or 1
    logprobs = None if asked.alternatives is None else Logprobs(worker.parts.tokenizer)
    pending = PendingAnswers(worker, prompts, asked.sampling(), raw=not chat, times=times)
    shape = openai_answers.AnswerShape(
        asked.model, chat=chat, logprobs=logprobs, times=times, count=asked.stream_options.include_usage
    )
    return await _sent(pending, request, shape, stream=asked.stream)


async def _sent(pending: PendingAnswers, request: Request, shape: Shape, *, stream: bool | None) -> Response:
    """The answers as one document, or as events while they are written."""
    if not stream:
        async with pending:
            try:
                return JSONResponse(shape.whole(await pending.finished(request)))
            except ClientGone:
                return Response(status_code=499)
    try:
        await pending.begun()  # a refusal is still a plain error
    except BaseException:
        await pending.__aexit__()
        raise
    return StreamingResponse(
        _events(pending, shape), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


async def _events(pending: PendingAnswers, shape: Shape) -> AsyncIterator[str]:
    async with pending:
        for event in shape.begun():
            yield event
        try:
            async for index, update in pending.updates():
                for event in shape.updated(index, update):
                    yield event
        except PrivTuneError as error:
            yield shape.failed(error)
            return
        for event in shape.ended(pending.answers):
            yield event


def job_of(model: str) -> str:
    """The job that a client means: its id, or the name `ft:MODEL:OWNER:SUFFIX:ID` that the job API reports for it."""
    return f"ftjob-{model.rpartition(':')[2]}" if model.startswith("ft:") else model


def _card(name: str, worker: Worker) -> Json:
    return {"id": name, "object": "model", "created": worker.created, "owned_by": "you"}


@torch.no_grad()
def _embeddings(worker: Worker, asked: EmbeddingRequest) -> Json:
    """The mean of the bottom's output over a text's tokens, scaled to length 1. It never leaves this machine."""
    parts, data, tokens = worker.parts, [], 0
    prompts = Prompts(parts, None)
    texts: Sequence[Prompt] = asked.texts
    for index, text in enumerate(texts):
        ids_1T = torch.tensor([prompts.asked(text, raw=True).ids])
        mean_D = parts.bottom(ids_1T, torch.ones_like(ids_1T))[0].float().mean(dim=0)
        vector_D = (mean_D / mean_D.norm().clamp(min=1e-9)).numpy().astype("<f4")
        data.append({"object": "embedding", "index": index, "embedding": _encoded(vector_D, asked.encoding_format)})
        tokens += ids_1T.numel()
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": asked.model, "data": data, "usage": usage}


def _encoded(vector_D: np.ndarray[Any, np.dtype[np.float32]], how: str | None) -> Any:
    return base64.b64encode(vector_D.tobytes()).decode() if how == "base64" else vector_D.tolist()
