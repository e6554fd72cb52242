"""The cloud's end of the wire: the gRPC server and its service."""

from __future__ import annotations

import grpc

from privtune.cloud.auth import ApiKeys
from privtune.cloud.gateway.first_message import FirstMessage
from privtune.cloud.gateway.split_service import Gateway
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.settings import Settings
from privtune.shared.wire import DEFAULT_CHUNK_BYTES, HEADER_BYTES
from privtune.split.v1 import split_pb2_grpc

_LARGEST_MESSAGE = DEFAULT_CHUNK_BYTES + HEADER_BYTES
MAX_CONNECTIONS = 1024
MAX_STREAMS = 128  # of a connection at once
_OPTIONS = [
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    # A device may ping every 20 s while it computes; a stricter minimum would answer GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    # Connections that never speak HTTP/2, or have no call, must not hold the server's files.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.absolute_max_metadata_size", 16_384),
    ("grpc.so_reuseport", 0),
]
# Without the last one gRPC waits for the answer to a ping for a minute, whatever the timeout before it says.
_PINGS = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")


def build_server(
    settings: Settings, jobs: Jobs, keys: ApiKeys, teachings: Teachings
) -> tuple[grpc.aio.Server, Gateway]:
    """The gRPC server, not bound to a port yet, and its service."""
    third_ms = jobs.leases.lease_s * 1000 // 3  # a stream whose device is gone has ended before its lease runs out
    options = [*_OPTIONS, ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS)]
    options += [("grpc.max_concurrent_streams", MAX_STREAMS)]
    options += [(name, third_ms) for name in _PINGS]
    server = grpc.aio.server(options=options, interceptors=[FirstMessage()])
    gateway = Gateway(settings, jobs, keys, teachings)
    split_pb2_grpc.add_SplitServiceServicer_to_server(gateway, server)  # type: ignore[no-untyped-call]
    return server, gateway
