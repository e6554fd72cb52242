"""What this process counts for Prometheus; `server.metrics_server` shows it, with what it reads at each scrape.

One process, one registry: where several clouds share a database, each is scraped by itself.

The label `owner` is bounded: the first MAX_OWNERS that are seen have their own series, all later ones share OTHERS.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector

MAX_OWNERS = 100
OTHERS = "(others)"
NO_OWNER = "(none)"  # the cloud's own work, and callers that no key or certificate has named

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)


def _by_owner(name: str, about: str) -> Counter:
    return Counter(name, about, ["owner"], registry=REGISTRY)


_STEPS = _by_owner("privtune_steps", "Optimiser steps applied.")
_TOKENS = _by_owner("privtune_tokens", "Rows that devices sent, or named, for a pass through a top.")
_RECEIVED = _by_owner("privtune_received_bytes", "Bytes of frames from devices.")
_SENT = _by_owner("privtune_sent_bytes", "Bytes of frames and files to devices.")
_COMPUTED = _by_owner("privtune_turn_seconds", "Seconds for which the compute thread worked.")
_ERRORS = Counter(
    "privtune_errors",
    "Requests, calls and streams that ended with an error, by its reason in the error table.",
    ["door", "reason", "owner"],
    registry=REGISTRY,
)
_WAITED = Histogram(
    "privtune_turn_wait_seconds",
    "How long a piece of work waited for its owner's turn on the compute thread.",
    ["owner"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
    registry=REGISTRY,
)
_owners: set[str] = set()


def owner_label(owner: str) -> str:
    """The value of the label `owner`: bounded, whatever owners there are."""
    if not owner:
        return NO_OWNER
    if owner not in _owners:
        if len(_owners) >= MAX_OWNERS:
            return OTHERS
        _owners.add(owner)
    return owner


def stepped(owner: str) -> None:
    """Count an optimiser step."""
    _STEPS.labels(owner_label(owner)).inc()


def received(owner: str, size: int) -> None:
    """Count a frame of `size` bytes from a device."""
    _RECEIVED.labels(owner_label(owner)).inc(size)


def sent(owner: str, size: int) -> None:
    """Count a frame of `size` bytes to a device."""
    _SENT.labels(owner_label(owner)).inc(size)


def asked(owner: str, rows: int) -> None:
    """Count rows that a device wants a top to compute."""
    _TOKENS.labels(owner_label(owner)).inc(rows)


def turn(owner: str, waited_s: float, took_s: float) -> None:
    """Count a turn on the compute thread, in seconds."""
    label = owner_label(owner)
    _WAITED.labels(label).observe(waited_s)
    _COMPUTED.labels(label).inc(took_s)


def failed(door: str, reason: str, owner: str) -> None:
    """Count an error that a caller gets. door: rest or grpc. reason: of the error table."""
    _ERRORS.labels(door, reason, owner_label(owner)).inc()
