"""TLS of both servers: which addresses may do without it, and a private authority for those without a certificate.

The authority's key never leaves the data folder; devices need `ca.pem` only.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privtune.cloud.settings import Settings
from privtune.shared.addresses import is_loopback
from privtune.shared.errors import InvalidInput, StorageFull
from privtune.shared.files import make_folder, write_text

_CA_YEARS = 10
_SERVER_DAYS = 397  # strict clients refuse certificates that are valid for longer
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
        if not is_loopback(settings.host):
            raise InvalidInput(
                f"--host {settings.host} is open to other machines, so it needs TLS: add --tls-cert and --tls-key, "
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
    files = Certificates(ca=folder / "ca.pem", cert=folder / "server.pem", key=folder / "server-key.pem")
    try:
        make_folder(folder, 0o700)
        ca_cert, ca_key = _authority(files.ca, folder / "ca-key.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _sign_server(ca_cert, ca_key, key, wanted[0], alternatives)
        write_text(files.key, _pem(key), private=True)
        write_text(files.cert, cert.public_bytes(serialization.Encoding.PEM).decode())
    except OSError as error:
        raise StorageFull(f"Can't write certificates to {folder}: {error.strerror}.") from error
    return files


def ensure_certificates(folder: Path, names: list[str]) -> Certificates:
    """The present certificate while it covers `names` and lasts, else a new one. See `create_certificates`."""
    files = Certificates(ca=folder / "ca.pem", cert=folder / "server.pem", key=folder / "server-key.pem")
    if files.ca.exists() and files.cert.exists() and files.key.exists() and _still_good(files.cert, names):
        return files
    return create_certificates(folder, names)


def publish_ca(certificates: Certificates, target: Path) -> None:
    """Copy the authority's certificate to where devices find it. Raises StorageFull."""
    try:
        make_folder(target.parent)
        write_text(target, certificates.ca.read_text())
    except OSError as error:
        raise StorageFull(f"Can't write the authority's certificate to {target}: {error.strerror}.") from error


def _authority(cert_path: Path, key_path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if cert_path.exists() and key_path.exists():
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return x509.load_pem_x509_certificate(cert_path.read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PrivTune private authority")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    cert = (
        _builder(name, name, key, _CA_YEARS * 365)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_text(key_path, _pem(key), private=True)
    write_text(cert_path, cert.public_bytes(serialization.Encoding.PEM).decode())
    return cert, key


def _sign_server(
    ca_cert: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    name: str,
    alternatives: list[x509.GeneralName],
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    return (
        _builder(subject, ca_cert.subject, key, _SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # a laptop's clock may be slow
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _HOST_NAME.match(name) or len(name) > 253:
        raise InvalidInput(f"{name!r} is not a host name or IP address; give what devices dial, without a port.")
    return x509.DNSName(name)


def _still_good(cert_path: Path, names: list[str]) -> bool:
    try:
        cert = x509.load_pem_x509_certificate(cert_path.read_bytes())
        have = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
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


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()
