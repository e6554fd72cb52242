"""How this device reaches a cloud's gateway and proves who it is: by an API key, or by a certificate that it renews.

A certificate is renewed in the second half of its life, over a connection that shows it: by the link of a run that is
under way, and by the agent while it waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from privtune.device.link.certificates import check_certificate
from privtune.device.link.identity import Identity, load_identity
from privtune.device.link.trust import proxy_of, trusted_roots
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import (
    ArtifactCorrupt,
    CloudUnreachable,
    MessageTooLarge,
    PrivTuneError,
    VersionMismatch,
    by_reason,
)
from privtune.shared.metadata import AUTHORIZATION, REASON
from privtune.shared.printable import printable
from privtune.shared.wire import DEFAULT_CHUNK_BYTES, HEADER_BYTES
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc

RENEW_TIMEOUT_S = 30.0
LOOK_S = 60.0  # between two looks at a certificate's age
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class GatewayAccess:
    """How to reach the cloud's gateway.

    address: `host:port`; clear text for this machine only, TLS otherwise.
    api_key: the owner's key.
    ca_cert: PEM file of the cloud's own certificate authority; None: as `privtune.device.link.trust` finds them.
    tls: TLS on this machine too; with `ca_cert` in any case.
    identity: file of this device's identity at the cloud, which stands in for the key; None: it has not enrolled.
    """

    address: str
    api_key: str
    ca_cert: Path | None = None
    tls: bool = False
    identity: Path | None = None

    @property
    def metadata(self) -> Metadata:
        """What every call carries: nothing where TLS has shown a certificate."""
        return ((AUTHORIZATION, f"Bearer {self.api_key}"),) if self.identity is None else ()

    def read_identity(self) -> Identity | None:
        """This device's identity at the cloud as it is now. Raises ArtifactCorrupt."""
        if self.identity is None:
            return None
        found = load_identity(self.identity)
        if found is None:
            raise ArtifactCorrupt(f"This device's identity in {self.identity} is gone; enrol again.")
        return found

    def translate(self, error: grpc.RpcError) -> PrivTuneError:
        """The row of the error table for a failed call."""
        details = printable(error.details() or "")
        for key, value in error.trailing_metadata() or ():
            if key == REASON:
                return by_reason(str(value), details)
        code = error.code()
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return MessageTooLarge(
                "a message was larger than the other side accepts; lower --batch-size", detail=details
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return VersionMismatch(f"{self.address} does not speak this version of PrivTune's protocol")
        hint = "check that it runs, the address and TLS"
        if self.identity is not None:
            # TLS does not say why it refuses a certificate.
            identity = load_identity(self.identity)
            if identity is not None and identity.expired:
                return identity.ended()
            hint += ", and whether its operator has replaced its authority: then enrol this device again"
        return CloudUnreachable(
            f"no connection to the cloud's gateway at {self.address}; {hint}", detail=f"{code}: {details}"
        )


def open_channel(gateway: GatewayAccess, identity: Identity | None) -> grpc.Channel:
    """A channel to the gateway. Raises InvalidInput for an authority that can't be read."""
    limit = DEFAULT_CHUNK_BYTES + HEADER_BYTES
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # else a minute, whatever the timeout before it says
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    proxy = proxy_of(gateway.address)
    options += [("grpc.http_proxy", proxy)] if proxy else [("grpc.enable_http_proxy", 0)]
    if identity is None and is_loopback(gateway.address) and gateway.ca_cert is None and not gateway.tls:
        return grpc.insecure_channel(gateway.address, options)
    own = () if identity is None else (identity.key.encode(), identity.certificate.encode())
    credentials = grpc.ssl_channel_credentials(trusted_roots(gateway.ca_cert), *own)
    return grpc.secure_channel(gateway.address, credentials, options)


def renew_if_due(file: Path, gateway: Callable[[], GatewayAccess]) -> None:
    """Get and keep the next certificate, if the one in `file` is in the second half of its life.

    gateway: how to reach the cloud with it; asked only then.

    Raises Unauthenticated when the cloud takes the present one no more, CloudUnreachable, FrameCorrupt for an answer
    that is no certificate of this device, StorageFull.
    """
    identity = load_identity(file)
    if identity is None or not identity.due:
        return
    access = replace(gateway(), identity=file)
    with open_channel(access, identity) as channel:
        stub = split_pb2_grpc.SplitServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = stub.Renew(pb.RenewRequest(), timeout=RENEW_TIMEOUT_S)
        except grpc.RpcError as error:
            raise access.translate(error) from None
    certificate = check_certificate(answer.certificate, identity.key, identity.device_id, answer.life_s)
    replace(identity, certificate=certificate, received=time.time(), life_s=answer.life_s).save(file)


class Renewal:
    """Keeps a certificate fresh while a link is open, in a thread of its own, until `stop`.

    What fails is tried again at the next look: whoever calls next hears why.
    """

    def __init__(self, file: Path, gateway: GatewayAccess) -> None:
        self._file, self._gateway = file, gateway
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            with suppress(PrivTuneError):
                renew_if_due(self._file, lambda: self._gateway)
            if self._stopped.wait(LOOK_S):
                return
