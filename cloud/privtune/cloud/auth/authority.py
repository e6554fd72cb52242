"""The cloud's private authority: made once in the data folder, it signs the servers' certificate and those of devices.

Its key never leaves the folder. Of what a device asks for, only the public key is taken; name, purpose and times of a
certificate are the authority's own.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privtune.shared.errors import InvalidInput, StorageFull
from privtune.shared.files import held, make_folder, write_text

CA_FILE = "ca.pem"  # what devices need
_KEY_FILE = "ca-key.pem"
_CA_DAYS = 10 * 365
_SERVER_DAYS = 397  # strict clients refuse certificates that are valid for longer
_BACKDATED = datetime.timedelta(hours=1)  # the other side's clock may be slow
AuthorityKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, kw_only=True)
class Authority:
    """An authority's certificate with its key. `open_authority` reads or makes it."""

    certificate: x509.Certificate
    key: AuthorityKey = field(repr=False)

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate in DER, hex."""
        return hashlib.sha256(self.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    def sign_server(self, key: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], title: str) -> bytes:
        """The PEM of a server's certificate for these names; title: one of them, shown by programs."""
        alternatives = x509.SubjectAlternativeName(names)
        life = datetime.timedelta(days=_SERVER_DAYS)
        builder = self._leaf(key, title[:64], life, ExtendedKeyUsageOID.SERVER_AUTH)
        return _signed(builder.add_extension(alternatives, critical=False), self.key)

    def sign_device(self, key: ec.EllipticCurvePublicKey, device_id: str, life_s: int) -> bytes:
        """The PEM of a device's certificate: for clients only, without any name that a server could have."""
        life = datetime.timedelta(seconds=life_s)
        return _signed(self._leaf(key, device_id, life, ExtendedKeyUsageOID.CLIENT_AUTH), self.key)

    def _leaf(
        self, key: ec.EllipticCurvePublicKey, title: str, life: datetime.timedelta, purpose: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        return (
            _builder(title, self.certificate.subject, key, life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )


def open_authority(folder: Path) -> Authority:
    """The authority in `folder`, made if there is none; of two processes that make one, both get the same.

    Raises InvalidInput for files that are no authority, StorageFull when the folder can't be written.
    """
    cert_path, key_path = folder / CA_FILE, folder / _KEY_FILE
    try:
        make_folder(folder, 0o700)
        with held(folder / "authority.lock", wait=True):
            if not (cert_path.exists() and key_path.exists()):
                made = _new_authority()
                write_text(key_path, pem_of(made.key), private=True)
                write_text(cert_path, made.pem.decode())
            return _read(cert_path, key_path)
    except OSError as error:
        raise StorageFull(f"Can't write certificates to {folder}: {error.strerror}.") from error


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request whose sender has the private one. Raises InvalidInput."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInput("The signing request can't be read.", param="csr", detail=str(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or not signed:
        raise InvalidInput("The signing request must be for a P-256 key, and signed with it.", param="csr")
    return key


def certified_key(certificate_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a certificate that this authority signed for a device. Raises InvalidInput for any other."""
    key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidInput("This is not a device's certificate.")
    return key


def pem_of(key: AuthorityKey) -> str:
    """A private key in PEM, without a password."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def _read(cert_path: Path, key_path: Path) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"{cert_path} or {key_path} can't be read as PEM.", detail=str(error)) from error
    if not isinstance(key, AuthorityKey) or key.public_key() != certificate.public_key():
        raise InvalidInput(
            f"{key_path} is not the key of {cert_path}. Restore both from one backup, or move both away: the next "
            "start makes a new authority, at which every device enrols anew."
        )
    return Authority(certificate=certificate, key=key)


def _new_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    title = "PrivTune private authority"
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
    builder = _builder(title, _name(title), key.public_key(), datetime.timedelta(days=_CA_DAYS))
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate=certificate, key=key)


def _builder(
    title: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(title))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _signed(builder: x509.CertificateBuilder, key: AuthorityKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(title: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
