"""Devices are let in once each, known by a row, and shut out by it."""

import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privtune.cloud.auth import device_rows
from privtune.cloud.auth import devices as devices_module
from privtune.cloud.auth.authority import open_authority
from privtune.cloud.auth.devices import CERTIFICATE_S, TOKEN_S, Devices
from privtune.device.link.certificates import new_key, signing_request
from privtune.shared.errors import DeviceNotFound, InvalidInput, PermissionDenied, PrivTuneError, Unauthenticated


@pytest.fixture
def clock():
    class Clock:
        now = 1_000_000.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def devices(store, tmp_path, clock):
    return Devices(store, open_authority(tmp_path / "tls"), clock=clock)


def request(key=None, **changes):
    """A signing request: for a P-256 key unless `key` is given, and with what `changes` adds to it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(changes.get("subject", [])))
    for extension in changes.get("extensions", ()):
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def enrol(devices, owner="alice", **options):
    return devices.enrol(devices.new_token(owner, **options), request())


def test_a_token_lets_one_device_in(devices, clock):
    token = devices.new_token("alice", "laptop")
    made = devices.enrol(token, request())
    assert (made.device.owner, made.device.label, made.life_s) == ("alice", "laptop", CERTIFICATE_S)
    assert devices.authenticate(made.device.id).owner == "alice"
    with pytest.raises(Unauthenticated, match="is used"):
        devices.enrol(token, request())
    assert len(devices.list()) == 1


def test_the_same_key_may_ask_again_because_its_answer_was_lost(devices, clock):
    token, csr = devices.new_token("alice"), request()
    first, again = devices.enrol(token, csr), devices.enrol(token, csr)
    assert first.device.id == again.device.id
    clock.now += TOKEN_S
    with pytest.raises(Unauthenticated, match="expired"):
        devices.enrol(token, csr)


def test_a_revoked_device_does_not_come_back_with_its_token(devices):
    token, csr = devices.new_token("alice"), request()
    devices.revoke(devices.enrol(token, csr).device.id)
    with pytest.raises(Unauthenticated, match="has ended"):
        devices.enrol(token, csr)


def test_of_devices_that_race_with_one_token_exactly_one_gets_in(devices):
    token, ends, together = devices.new_token("alice"), [], threading.Barrier(8)

    def race():
        csr = request()
        together.wait()
        try:
            ends.append(devices.enrol(token, csr).device.id)
        except PrivTuneError as error:
            ends.append(type(error))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends.count(Unauthenticated) == 7
    assert [device.id for device in devices.list()] == [one for one in ends if one is not Unauthenticated]


def test_tokens_that_let_nobody_in(devices, clock, tmp_path):
    good = devices.new_token("alice")
    other = Devices(devices._store, open_authority(tmp_path / "other"), clock=clock).new_token("alice")
    for token in ("", "x", good[:-1], good + "x", good.partition(".")[2], other, "0" * 64 + good[64:]):
        with pytest.raises(Unauthenticated):
            devices.enrol(token, request())
    clock.now += TOKEN_S
    with pytest.raises(Unauthenticated, match="expired"):
        devices.enrol(good, request())
    assert devices.list() == []


def test_requests_that_are_not_signed_leave_the_token_as_it_was(devices):
    token, valid = devices.new_token("alice"), request()
    body = valid.splitlines()
    forged = "\n".join([*body[:-2], "A" * len(body[-2]), body[-1]])
    long_key = rsa.generate_private_key(65537, 1024)
    wrong = [
        "",
        "x",
        forged,
        valid[:200],
        new_key(),
        request(long_key),
        request(ec.generate_private_key(ec.SECP384R1())),
    ]
    for csr in wrong:
        with pytest.raises(InvalidInput, match="signing request"):
            devices.enrol(token, csr)
    assert devices.enrol(token, valid).device.owner == "alice"


def test_nothing_of_a_request_but_its_key_gets_into_the_certificate(devices):
    subject = [
        x509.NameAttribute(NameOID.COMMON_NAME, "dev-0000000000000000"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "bob"),
    ]
    extensions = [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([x509.DNSName("localhost")]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ]
    made = devices.enrol(devices.new_token("alice"), request(subject=subject, extensions=extensions))
    certificate = x509.load_pem_x509_certificate(made.certificate)
    assert certificate.subject.rfc4514_string() == f"CN={made.device.id}"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    (purpose,) = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert purpose == ExtendedKeyUsageOID.CLIENT_AUTH
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_a_certificate_is_valid_where_clocks_are_slow(devices):
    certificate = x509.load_pem_x509_certificate(enrol(devices).certificate)
    assert certificate.not_valid_before_utc.timestamp() <= time.time() - 3600
    assert certificate.not_valid_after_utc.timestamp() == pytest.approx(time.time() + CERTIFICATE_S, abs=60)


def test_a_device_lasts_as_long_as_its_newest_certificate(devices, clock):
    made = enrol(devices)
    clock.now += CERTIFICATE_S / 2
    renewed = devices.renew(made.device.id, made.certificate)
    keys = [x509.load_pem_x509_certificate(one.certificate).public_key() for one in (made, renewed)]
    assert keys[0] == keys[1]
    clock.now += CERTIFICATE_S - 1
    devices.authenticate(made.device.id)
    clock.now += 1
    for attempt in (
        lambda: devices.authenticate(made.device.id),
        lambda: devices.renew(made.device.id, made.certificate),
    ):
        with pytest.raises(Unauthenticated, match=r"let its certificate expire .*`privtune enroll`"):
            attempt()


def test_owners_see_and_revoke_their_own_alone(devices):
    hers, his = enrol(devices).device, enrol(devices, "bob").device
    assert [one.id for one in devices.list("bob")] == [his.id]
    with pytest.raises(DeviceNotFound):
        devices.revoke(hers.id, "bob")
    revoked = devices.revoke(his.id, "bob")
    assert devices.revoke(his.id).revoked_at == revoked.revoked_at, "a second time changes nothing"
    with pytest.raises(Unauthenticated, match="was revoked"):
        devices.renew(his.id, b"")
    devices.authenticate(hers.id)


def test_last_seen_is_to_the_minute(devices, clock):
    device = enrol(devices).device
    for _ in range(3):
        devices.authenticate(device.id)
        clock.now += 25
    assert devices.list()[0].last_seen_at == 1_000_000
    devices.authenticate(device.id)
    assert devices.list()[0].last_seen_at == 1_000_075


def test_devices_and_tokens_of_an_owner_are_bounded(devices, clock, monkeypatch):
    monkeypatch.setattr(device_rows, "MAX_DEVICES", 3)
    monkeypatch.setattr(devices_module, "MAX_TOKENS", 3)
    first = [enrol(devices).device.id for _ in range(3)]
    with pytest.raises(PermissionDenied, match="Revoke one"):
        enrol(devices)
    for device in first:
        devices.revoke(device)
    clock.now += 1
    enrol(devices)
    for _ in range(2):  # one is left of the device that was too many
        devices.new_token("alice")
    with pytest.raises(PermissionDenied, match="unused tokens"):
        devices.new_token("alice")
    enrol(devices, "bob")
    clock.now += TOKEN_S
    devices.new_token("alice")
    assert len(devices.list("alice")) == 3 + 1


@pytest.mark.parametrize("wrong", [{"owner": ""}, {"owner": "a b"}, {"label": "x" * 129}, {"expires_in_s": 0}])
def test_tokens_that_can_not_be_made(devices, wrong):
    with pytest.raises(InvalidInput):
        devices.new_token(**{"owner": "alice"} | wrong)


def test_no_secret_is_kept(devices, store, tmp_path):
    token = devices.new_token("alice")
    devices.enrol(token, signing_request(new_key()))
    secret = token.partition(".")[2].encode()
    assert not any(secret in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
