"""Devices with certificates: of a cloud in this process, as `privtune enroll` makes them, and wrong ones."""

from __future__ import annotations

import datetime
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from privtune.device.link.certificates import new_key, signing_request
from privtune.device.link.identity import Identity, authority_file
from privtune.device.session.run_settings import RunSettings
from tests.support.world import World


def enrolled(devices: Any, file: Path, owner: str = "alice", **changes: Any) -> Identity:
    """Enrol a device, and keep its identity in a file. changes: to what the file says."""
    key = new_key()
    made = devices.enrol(devices.new_token(owner), signing_request(key))
    identity = Identity(
        device_id=made.device.id,
        key=key,
        certificate=made.certificate.decode(),
        received=time.time(),
        life_s=made.life_s,
    )
    identity = replace(identity, **changes)
    identity.save(file)
    authority_file(file).write_bytes(devices.authority.pem)
    return identity


def enrolled_settings(world: World, **changes: Any) -> tuple[Identity, RunSettings]:
    """A device of this world's owner that has enrolled with the cloud in this process, and has no API key."""
    file = world.settings.home / "identities" / "cloud.json"
    identity = enrolled(world.cloud.devices, file, **changes)
    address = world.cloud.device_address
    return identity, world.device(grpc_address=address, api_key="", identity=file, ca_cert=authority_file(file))


def resigned(identity: Identity, authority: Any, **changes: Any) -> Identity:
    """The identity with another certificate for its key. changes: `device_id`, `life_s` (negative: it has expired)."""
    key = serialization.load_pem_private_key(identity.key.encode(), password=None)
    given = {"device_id": identity.device_id, "life_s": 3600} | changes
    return replace(identity, certificate=authority.sign_device(key.public_key(), **given).decode())


def self_signed(identity: Identity) -> Identity:
    """The identity with a certificate that its own key has signed."""
    key = serialization.load_pem_private_key(identity.key.encode(), password=None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.device_id)])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(hours=1))
    return replace(identity, certificate=made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode())


def channel(address: str, identity: Identity | None, authority_pem: bytes) -> grpc.Channel:
    """A connection with the identity's certificate."""
    own = () if identity is None else (identity.key.encode(), identity.certificate.encode())
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority_pem, *own))
