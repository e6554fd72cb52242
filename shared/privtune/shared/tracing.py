"""OpenTelemetry spans of both sides: off unless its standard variables ask for them; each side has its own collector.

A span never holds text, token ids, labels, names or records' handles: `span` takes nothing that could. Of a failure it
holds the reason in the error table, not the message. From the device to the cloud goes a `traceparent` alone, random
numbers that are new for each session: no time of a span, no baggage, nothing that two sessions have in common.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

from privtune.shared import __version__
from privtune.shared.errors import InternalError, PrivTuneError
from privtune.shared.wording import install

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

SpanName = Literal[
    "session",  # of the device, from its handshake to its end; the parent of all others, on both sides
    "step",
    "bottom",
    "noise",
    "send",
    "wait",  # for the cloud's answer
    "top",
    "optimiser",
    "checkpoint",
]
TRACEPARENT = "traceparent"  # W3C Trace Context, as gRPC metadata
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_provider: TracerProvider | None = None
_needs_session = False  # on the device, where the answer to a prompt has no session span


def configure(side: Literal["device", "cloud"]) -> None:
    """Export this process's spans, if OTEL_* variables ask for that. What they ask in vain is said in the log."""
    global _provider, _needs_session
    if _provider is not None or not _asked(os.environ):
        return
    try:
        _provider, _needs_session = _new_provider(side), side == "device"
    except ModuleNotFoundError:
        log.warning("OTEL_* variables ask for traces: %s", install("traces"))


def end() -> None:
    """Export what is left, and no more from here on."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


def span(
    name: SpanName, *, job: str = "", step: int | None = None, micro_batch: int | None = None, rows: int | None = None
) -> AbstractContextManager[None]:
    """The time of the block, inside the span that is under way in this thread; nothing outside of a device's session.

    rows: that are computed or sent.
    """
    if _provider is None or (_needs_session and name != "session" and not _here().is_valid):
        return nullcontext()
    facts = {"job": job or None, "step": step, "micro_batch": micro_batch, "rows": rows}
    return _recorded(_provider, name, {key: value for key, value in facts.items() if value is not None})


def traceparent() -> tuple[tuple[str, str], ...]:
    """The metadata that lets the other side's spans belong to the one under way; none without one."""
    if _provider is None:
        return ()
    here = _here()
    if not here.is_valid:
        return ()
    return ((TRACEPARENT, f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"),)


@contextmanager
def under(parent: str) -> Iterator[None]:
    """Spans of the block, in this thread, belong to the other side's span. parent: its `traceparent`; "": none."""
    if _provider is None:
        yield
        return
    from opentelemetry.context import attach, detach
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = attach(TraceContextTextMapPropagator().extract({TRACEPARENT: parent}))
    try:
        yield
    finally:
        detach(token)


def _here() -> SpanContext:
    from opentelemetry.trace import get_current_span

    return get_current_span().get_span_context()


def _asked(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for spans, by the one exporter that there is."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter not in ("", "none", "otlp"):
        log.warning("OTEL_TRACES_EXPORTER=%s: no traces, which go by otlp (http/protobuf) alone", exporter)
    named = exporter == "otlp" or (not exporter and any(environment.get(name) for name in _ENDPOINTS))
    return named and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"


def _new_provider(side: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class SecretIds(IdGenerator):
        """Ids from the operating system: the SDK's own show the state of Python's generator, which others share."""

        def generate_span_id(self) -> int:
            return secrets.randbits(64) or 1

        def generate_trace_id(self) -> int:
            return secrets.randbits(128) or 1

    name = os.environ.get("OTEL_SERVICE_NAME") or f"privtune-{side}"
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.version": __version__}), id_generator=SecretIds()
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextmanager
def _recorded(provider: TracerProvider, name: SpanName, facts: Mapping[str, str | int]) -> Iterator[None]:
    from opentelemetry.context import Context
    from opentelemetry.trace import Status, StatusCode

    with provider.get_tracer("privtune").start_as_current_span(
        name,
        context=Context() if name == "session" else None,
        attributes={f"privtune.{key}": value for key, value in facts.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as recorded:
        try:
            yield
        except Exception as error:
            reason = error.reason if isinstance(error, PrivTuneError) else InternalError.reason
            recorded.set_status(Status(StatusCode.ERROR, reason))
            raise
