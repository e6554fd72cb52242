"""A link whose answers get lost or come too late: the cloud has done the work, and the device does not learn of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from privtune.device.link import rpc


class _Lost(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "the answer was lost"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Lossy(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Loses the first `times` answers of the RPC `name`. calls: how often each RPC reached the cloud."""

    def __init__(self, name: str, *, times: int = 1) -> None:
        self._name, self._left, self.calls = name, times, Counter[str]()

    def intercept_unary_unary(self, continuation, details, request):
        call = continuation(details, request)
        if self._loses(details):
            call.result()
            raise _Lost(grpc.StatusCode.UNAVAILABLE)
        return call

    def intercept_unary_stream(self, continuation, details, request):
        call = continuation(details, request)
        return self._half(call) if self._loses(details) else call

    def _half(self, call) -> Iterator[object]:
        """The first part of a file, then nothing."""
        first = next(iter(call))
        first.data = first.data[: len(first.data) // 2]
        yield first
        raise _Lost(grpc.StatusCode.UNAVAILABLE)

    def _loses(self, details) -> bool:
        name = details.method.rpartition("/")[2]
        self.calls[name] += 1
        if name != self._name or not self._left:
            return False
        self._left -= 1
        return True


def lossy_links(patch: pytest.MonkeyPatch, name: str, *, times: int = 1) -> Lossy:
    """From here on, the links of this process lose answers of the RPC `name`."""
    channel, lossy = rpc.open_channel, Lossy(name, times=times)
    patch.setattr(rpc, "open_channel", lambda *gateway: grpc.intercept_channel(channel(*gateway), lossy))
    return lossy
