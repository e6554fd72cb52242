"""Enrolling: a device without an identity gets one, with a token that the cloud's operator gave to its owner.

The token begins with the SHA-256 of the cloud's authority. So the device can fetch the authority's certificate from
whoever answers, compare, and trust only servers of that authority from then on: the secret half of the token and the
signing request go to the right cloud, or nowhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import time
from pathlib import Path

from privtune.device.link.certificates import check_certificate, new_key, signing_request
from privtune.device.link.identity import Identity, authority_file, identity_file
from privtune.device.link.rest_client import RestClient, checked_url
from privtune.device.link.trust import tls_context
from privtune.shared.at_rest import read_text
from privtune.shared.errors import ArtifactCorrupt, CloudUnreachable, InvalidInput, StorageFull
from privtune.shared.files import make_folder, write_json, write_text

_PATH = "/v1/privtune/enrolment"
_TOKEN = re.compile(r"^[0-9a-f]{64}\.[A-Za-z0-9_-]{20,128}$")
_ID = re.compile(r"^dev-[0-9a-f]{16}$")
_OTHER_SERVER = (
    "The server's certificate is not of the authority that the token names. If the cloud's operator uses a certificate "
    "of another authority, give that one's file with --ca-cert; nothing was sent."
)


def enrol(home: Path, url: str, token: str, ca_cert: Path | None = None) -> tuple[Identity, str]:
    """Make a key, have the cloud certify it, and keep both in the home; returns the identity, and its owner's name.

    An identity that the home had at this cloud is replaced. Where the answer was lost, the same call gets it.

    Args:
        home: the device's folder.
        url: `https://host[:port]` of the cloud's REST API.
        token: what `privtune-cloud devices token` printed.
        ca_cert: whom to trust instead of the authority that the token names.

    Raises InvalidInput, Unauthenticated for a token that the cloud does not take, CloudUnreachable also for a cloud
    whose authority is another one, FrameCorrupt, StorageFull.
    """
    checked = checked_url(url)
    if checked.scheme != "https":
        raise InvalidInput("Enrolment needs TLS: start the cloud with --tls-auto, and dial https://.", param="cloud")
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise InvalidInput("--token is not what `privtune-cloud devices token` printed; copy all of it.", param="token")
    file = identity_file(home, checked.host, checked.port)
    authority = _authority(url, token.partition(".")[0])
    trusted = authority_file(file).with_suffix(".pem.new")
    try:
        make_folder(file.parent, 0o700)
        key = _pending_key(file, token)
        write_text(trusted, authority)
    except OSError as error:
        raise StorageFull(f"{file.parent} can't be written: {error.strerror}.") from error
    request = {"token": token, "csr": signing_request(key)}
    with RestClient(url, tls_context(ca_cert or trusted), {}, _OTHER_SERVER) as client:
        answer = client.call("POST", _PATH, json=request)
        facts = [answer.get(name) for name in ("device_id", "owner", "certificate", "life_s")]
        device_id, owner, certificate, life_s = facts
        texts = isinstance(device_id, str) and isinstance(owner, str) and isinstance(certificate, str)
        if not texts or not _ID.fullmatch(str(device_id)) or not isinstance(life_s, int):
            raise client.not_ours()
    checked_certificate = check_certificate(str(certificate).encode(), key, str(device_id), life_s, authority)
    made = Identity(
        device_id=str(device_id), key=key, certificate=checked_certificate, received=time.time(), life_s=life_s
    )
    try:
        if ca_cert is None:
            trusted.replace(authority_file(file))
        else:
            trusted.unlink()
            authority_file(file).unlink(missing_ok=True)
    except OSError as error:
        raise StorageFull(f"{trusted} can't be renamed: {error.strerror}.") from error
    made.save(file)
    _pending(file).unlink(missing_ok=True)
    return made, str(owner)


def _authority(url: str, fingerprint: str) -> str:
    """The PEM of the authority with this SHA-256, from a server that nobody vouches for yet: nothing is sent to it."""
    with RestClient(url, _unverified(), {}) as client:
        pem = client.call("GET", _PATH).get("certificate")
        if not isinstance(pem, str):
            raise client.not_ours()
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        der = b""
    if hashlib.sha256(der).hexdigest() != fingerprint:
        raise CloudUnreachable(
            f"{url} has another authority than the token names: it is another cloud, its operator has replaced the "
            "authority, or somebody is in between. Nothing was sent."
        )
    return ssl.DER_cert_to_PEM_cert(der)


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _pending_key(file: Path, token: str) -> str:
    """The private key for this token: kept before it is shown, so that a lost answer can be asked for again."""
    pending, named = _pending(file), hashlib.sha256(token.encode()).hexdigest()
    try:
        found = json.loads(read_text(pending)) if pending.exists() else {}
    except ValueError as error:
        raise ArtifactCorrupt(f"{pending} can't be read; remove it and ask for another token.") from error
    if found.get("token_sha256") != named:
        found = {"token_sha256": named, "key": new_key()}
        write_json(pending, found, private=True)
    return str(found["key"])


def _pending(file: Path) -> Path:
    return file.with_suffix(".pending")
