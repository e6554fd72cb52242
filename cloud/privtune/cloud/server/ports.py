"""The ports of both servers: bound before anything runs, and a taken one is a single clear line."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from privtune.cloud.settings import Settings
from privtune.shared.errors import InvalidInput, PortInUse


@contextmanager
def http_listener(host: str, port: int, name: str = "http") -> Iterator[socket.socket]:
    """A listening socket; port 0 lets the system choose. Raises PortInUse and InvalidInput.

    name: of the options that choose the address.
    """
    with _listening(host, port, f"--{name}-port", "--metrics-host" if name == "metrics" else "--host") as listener:
        listener.setblocking(False)
        yield listener


def bind_grpc(server: Any, settings: Settings) -> int:
    """Bind gRPC's port, with TLS if the settings have a certificate; returns the port. Raises PortInUse."""
    pair = _certificate(settings)
    credentials = None if pair is None else grpc.ssl_server_credentials([pair])
    return _bind(server, settings.host, settings.grpc_port, "--grpc-port", credentials)


def bind_devices(server: Any, settings: Settings, authority_pem: bytes) -> int | None:
    """Bind gRPC's port for devices with a certificate of the authority; returns the port, None without TLS.

    gRPC can't ask for a client's certificate without insisting on one, so enrolled devices have a port of their own.
    Raises PortInUse.
    """
    pair = _certificate(settings)
    if pair is None:
        return None
    credentials = grpc.ssl_server_credentials([pair], root_certificates=authority_pem, require_client_auth=True)
    return _bind(server, settings.host, settings.device_port, "--device-port", credentials)


def _certificate(settings: Settings) -> tuple[bytes, bytes] | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()


def _bind(server: Any, host: str, port: int, flag: str, credentials: Any) -> int:
    if port:
        # gRPC names no cause when it can't bind; an ordinary socket does.
        with _listening(host, port, flag):
            pass
    address = host_port(host, port)
    refused = f"gRPC can't listen on {address}; choose another {flag}."
    try:
        if credentials is not None:
            bound = server.add_secure_port(address, credentials)
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise PortInUse(refused, detail=str(error)) from error
    if not bound:
        raise PortInUse(refused)
    return int(bound)


def host_port(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def _listening(host: str, port: int, flag: str, host_flag: str = "--host") -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidInput(f"{host_flag} {host} is not an address of this machine.", detail=str(error)) from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            raise _port_error(host, port, flag, error) from error
        yield listener


def _port_error(host: str, port: int, flag: str, error: OSError) -> PortInUse | InvalidInput:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"Port {port} of {host} is taken; choose another with {flag}.")
    if error.errno == errno.EACCES:
        return PortInUse(f"This user may not listen on port {port}; choose one above 1023 with {flag}.")
    return InvalidInput(f"Can't listen on {host}:{port}: {error.strerror}.")
