"""A call that takes one message has to send it: gRPC itself waits without end, before it asks who calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from privtune.cloud.gateway.calls import Context, abort
from privtune.shared.errors import CloudUnreachable

REQUEST_S = 30.0


class FirstMessage(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # has no types
    """Makes a handler of one message into one of a stream, of which it takes the first."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        forms = {name: getattr(handler, name) for name in ("request_deserializer", "response_serializer")}
        if not handler.response_streaming:

            async def call(requests: AsyncIterator[Any], context: Context) -> Any:
                return await handler.unary_unary(await _first(requests, context), context)

            return grpc.stream_unary_rpc_method_handler(call, **forms)

        async def stream(requests: AsyncIterator[Any], context: Context) -> None:
            await handler.unary_stream(await _first(requests, context), context)

        return grpc.stream_stream_rpc_method_handler(stream, **forms)


async def _first(requests: AsyncIterator[Any], context: Context) -> Any:
    try:
        async with asyncio.timeout(REQUEST_S):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        late = CloudUnreachable(f"the request of a call did not come within {REQUEST_S:.0f} seconds; try again")
    await abort(context, late)
