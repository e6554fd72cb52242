"""The device's key, its signing request, and a look at the certificates that come back; the library loads at first use.

The cloud's answers are untrusted: a certificate is kept only if it is for this device's own key, so that no answer can
lock a device out of its identity.
"""

from __future__ import annotations

from privtune.shared.errors import FrameCorrupt

MAX_LIFE_S = 366 * 86400


def new_key() -> str:
    """A private key (P-256) in PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(*form).decode()


def signing_request(key_pem: str) -> str:
    """A request in PEM for a certificate of the key; it names nobody, because the cloud gives the name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def check_certificate(
    certificate_pem: bytes, key_pem: str, device_id: str, life_s: int, authority_pem: str | None = None
) -> str:
    """The certificate as text. Raises FrameCorrupt for one that is not for this key, device or authority.

    authority_pem: who must have signed it, where that is known.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
        named = [one.value for one in certificate.subject]
        if certificate.public_key() != key.public_key() or named != [device_id] or not 0 < life_s <= MAX_LIFE_S:
            raise ValueError("for another key, device or time")
        if authority_pem is not None:
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem.encode()))
        return certificate.public_bytes(serialization.Encoding.PEM).decode()
    except (ValueError, TypeError, InvalidSignature) as error:
        raise FrameCorrupt(
            "the cloud answered with a certificate that is not this device's; nothing was kept", detail=str(error)
        ) from error
