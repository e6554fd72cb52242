"""Whom the device trusts, and through what it dials: one rule for REST and gRPC.

Roots: the file of `--ca-cert` alone, else SSL_CERT_FILE and SSL_CERT_DIR, else the system's store. An address of this
machine is dialed directly; any other through the proxy of the environment (https_proxy, no_proxy), inside TLS.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

from privtune.shared.addresses import host_of, is_loopback
from privtune.shared.errors import InvalidInput

_HASHED = re.compile(r"^[0-9a-f]{8}\.\d+$")  # the names under which OpenSSL looks for certificates in a folder


def trusted_roots(ca_cert: Path | None) -> bytes:
    """The trusted authorities' certificates as PEM.

    ca_cert: the file of `--ca-cert`; None: the authorities of the environment or the system.

    Raises InvalidInput when the file holds no certificate, or when no authority is found at all.
    """
    if ca_cert is None:
        pem = b"\n".join(_environment_roots())
        missing = "No certificate authorities were found: give --ca-cert, or set SSL_CERT_FILE."
    else:
        pem = _read(ca_cert)
        missing = f"--ca-cert {ca_cert} can't be read, or is not a readable PEM file."
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        raise InvalidInput(missing, param="ca_cert") from None
    return pem


def tls_context(ca_cert: Path | None) -> ssl.SSLContext:
    """A client's context that trusts `trusted_roots`. Raises InvalidInput as it does."""
    return ssl.create_default_context(cadata=trusted_roots(ca_cert).decode("ascii", "ignore"))


def proxy_of(address: str) -> str | None:
    """The URL of the proxy to a host or `host:port`; None: dialed directly.

    Raises InvalidInput for a proxy that does not speak HTTP.
    """
    host = host_of(address)
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    found = proxies.get("https") or proxies.get("all")
    if not found:
        return None
    scheme, separator, _ = found.partition("://")
    if separator and scheme.lower() != "http":
        raise InvalidInput(
            f"The proxy of https_proxy must be http://host:port; add {host} to no_proxy to dial directly."
        )
    return found if separator else f"http://{found}"


def _environment_roots() -> list[bytes]:
    """PEM texts where OpenSSL looks by default; elsewhere than on Linux, also those of the system's store."""
    paths = ssl.get_default_verify_paths()  # minds SSL_CERT_FILE and SSL_CERT_DIR
    files = [Path(paths.cafile)] if paths.cafile else []
    if paths.capath:
        files += sorted(path for path in Path(paths.capath).iterdir() if _HASHED.match(path.name))
    found = [_read(path) for path in files]
    if not found:
        ders = ssl.create_default_context().get_ca_certs(binary_form=True)
        found = [ssl.DER_cert_to_PEM_cert(der).encode() for der in ders]
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
