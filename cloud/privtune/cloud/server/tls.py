"""TLS of both servers: which addresses may do without it, and a certificate of the private authority."""

from __future__ import annotations

import datetime
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privtune.cloud.auth.authority import CA_FILE, open_authority, pem_of
from privtune.cloud.settings import Settings
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import InvalidInput, StorageFull
from privtune.shared.files import make_folder, write_text

_RENEW_DAYS = 30
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST_NAME = re.compile(
    r"^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"
)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Files of a private authority and the server certificate that it signed.

    ca: the authority's certificate, for devices.
    cert, key: the server's certificate and its private key.
    """

    ca: Path
    cert: Path
    key: Path


def check_exposure(settings: Settings) -> None:
    """Raises InvalidInput when a server would speak clear text to other machines, or its certificate is unusable."""
    if settings.tls_cert is None or settings.tls_key is None:
        metrics_host = settings.metrics_host if settings.metrics_port is not None else "localhost"
        for flag, host in (("--host", settings.host), ("--metrics-host", metrics_host)):
            if not is_loopback(host):
                raise InvalidInput(
                    f"{flag} {host} is open to other machines, so it needs TLS: add --tls-cert and --tls-key, "
                    "or --tls-auto --tls-name HOSTNAME."
                )
        return
    _check_pair(settings.tls_cert, settings.tls_key)


def create_certificates(folder: Path, names: list[str]) -> Certificates:
    """Sign a new server certificate for `names` and localhost; creates the authority in `folder` if there is none.

    Raises InvalidInput for a name that is no host name or address, StorageFull when the folder can't be written.
    """
    wanted = list(dict.fromkeys([*names, *_LOCAL_NAMES]))
    alternatives = [_general_name(name) for name in wanted]
    files = Certificates(ca=folder / CA_FILE, cert=folder / "server.pem", key=folder / "server-key.pem")
    try:
        authority = open_authority(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        write_text(files.key, pem_of(key), private=True)
        write_text(files.cert, authority.sign_server(key.public_key(), alternatives, wanted[0]).decode())
    except OSError as error:
        raise StorageFull(f"Can't write certificates to {folder}: {error.strerror}.") from error
    return files


def ensure_certificates(folder: Path, names: list[str]) -> Certificates:
    """The present certificate while it covers `names` and lasts, else a new one. See `create_certificates`."""
    files = Certificates(ca=folder / CA_FILE, cert=folder / "server.pem", key=folder / "server-key.pem")
    if files.ca.exists() and files.cert.exists() and files.key.exists() and _still_good(files, names):
        return files
    return create_certificates(folder, names)


def publish_ca(certificates: Certificates, target: Path) -> None:
    """Copy the authority's certificate to where devices find it. Raises StorageFull."""
    try:
        make_folder(target.parent)
        write_text(target, certificates.ca.read_text())
    except OSError as error:
        raise StorageFull(f"Can't write the authority's certificate to {target}: {error.strerror}.") from error


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _HOST_NAME.match(name) or len(name) > 253:
        raise InvalidInput(f"{name!r} is not a host name or IP address; give what devices dial, without a port.")
    return x509.DNSName(name)


def _still_good(files: Certificates, names: list[str]) -> bool:
    try:
        cert = x509.load_pem_x509_certificate(files.cert.read_bytes())
        have = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        cert.verify_directly_issued_by(x509.load_pem_x509_certificate(files.ca.read_bytes()))
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    left = cert.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.days > _RENEW_DAYS and all(_general_name(name) in list(have) for name in names)


def _check_pair(cert_path: Path, key_path: Path) -> None:
    try:
        cert = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except OSError as error:
        raise InvalidInput(f"Can't read {error.filename}: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"{cert_path} or {key_path} can't be read: both must be PEM, the key without a password.", detail=str(error)
        ) from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if cert.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise InvalidInput(f"{key_path} is not the key of {cert_path}.")
    if cert.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise InvalidInput(f"{cert_path} expired on {cert.not_valid_after_utc:%Y-%m-%d}; renew it.")
