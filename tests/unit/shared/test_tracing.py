"""Traces are off unless OTEL_* variables ask for them, and what fails is named by its reason alone."""

import logging
import random

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from privtune.shared import tracing
from privtune.shared.errors import DataInvalid

ON = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture
def started(monkeypatch):
    """Starts traces with these variables; returns what is recorded, None where nothing is."""

    def start(side="device", **variables):
        for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        recorded = InMemorySpanExporter()
        # Nothing is sent: the real exporter is never started.
        monkeypatch.setattr(
            "opentelemetry.sdk.trace.export.BatchSpanProcessor", lambda _: SimpleSpanProcessor(recorded)
        )
        tracing.configure(side)
        return recorded if tracing._provider is not None else None

    yield start
    tracing.end()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        ON | {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    ],
)
def test_nothing_is_recorded_or_sent_unless_asked_for(started, variables):
    assert started(**variables) is None
    with tracing.span("session"), tracing.span("step", step=1):
        assert tracing.traceparent() == ()


@pytest.mark.parametrize("name", ["OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_either_variable_is_enough(started, name):
    assert started(**{name: ON[name]}) is not None


def test_a_missing_package_is_one_line(started, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING):
        assert started(**ON) is None
    assert [record.getMessage() for record in caplog.records] == [
        "OTEL_* variables ask for traces: pip install '.[traces]' in the checkout of PrivTune"
    ]


def test_a_failure_is_its_reason_and_not_its_message(started):
    recorded = started(**ON)
    with pytest.raises(DataInvalid), tracing.span("session", job="ftjob-1"):
        raise DataInvalid("reviews.tsv: line 3: Ottilie Brandvold")
    [span] = recorded.get_finished_spans()
    assert (span.status.description, span.events) == ("DATA_INVALID", ())
    assert "ttilie" not in span.to_json()


def test_a_session_is_never_part_of_another_trace_and_ids_show_no_generator(started):
    recorded = started(**ON)
    seen = []
    for _ in range(2):
        random.seed(7)
        with tracing.span("session"), tracing.span("session"):
            seen.append(tracing.traceparent())
    assert len({span.context.trace_id for span in recorded.get_finished_spans()}) == 4
    assert [name for ((name, _),) in seen] == ["traceparent"] * 2


def test_a_device_records_sessions_alone_and_a_cloud_all_it_computes(started):
    recorded = started(**ON)
    with tracing.span("noise"):
        pass
    assert recorded.get_finished_spans() == ()
    tracing.end()
    recorded = started("cloud", **ON)
    with tracing.under("nonsense"), tracing.span("top"):
        pass
    [span] = recorded.get_finished_spans()
    assert span.parent is None
