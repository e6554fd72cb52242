"""The cloud's end of the wire: the gRPC server and its service."""

from __future__ import annotations

import grpc

from privtune.cloud.auth import ApiKeys
from privtune.cloud.gateway.split_service import Gateway
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.settings import Settings
from privtune.shared.wire import DEFAULT_CHUNK_BYTES, HEADER_BYTES
from privtune.split.v1 import split_pb2_grpc

_LARGEST_MESSAGE = DEFAULT_CHUNK_BYTES + HEADER_BYTES
_OPTIONS = [
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    # A device may ping every 20 s while it computes; a stricter minimum would answer GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Connections that never speak HTTP/2, or have no call, must not hold the server's files.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.so_reuseport", 0),
]


def build_server(
    settings: Settings, jobs: Jobs, keys: ApiKeys, teachings: Teachings
) -> tuple[grpc.aio.Server, Gateway]:
    """The gRPC server, not bound to a port yet, and its service."""
    server = grpc.aio.server(options=_OPTIONS)
    gateway = Gateway(settings, jobs, keys, teachings)
    split_pb2_grpc.add_SplitServiceServicer_to_server(gateway, server)  # type: ignore[no-untyped-call]
    return server, gateway
