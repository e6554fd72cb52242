import shutil
import socket
import ssl
import threading

import pytest
from pydantic import ValidationError

from privtune.cloud.auth.authority import open_authority
from privtune.cloud.server.tls import check_exposure, create_certificates, ensure_certificates, publish_ca
from privtune.cloud.settings import Settings
from privtune.shared.errors import InvalidInput, StorageFull


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_may_do_without_tls(tmp_path, host):
    check_exposure(Settings(data_folder=tmp_path, host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "cloud.lan"])
def test_other_addresses_need_tls(tmp_path, host):
    with pytest.raises(InvalidInput, match="--tls-auto"):
        check_exposure(Settings(data_folder=tmp_path, host=host))
    made = create_certificates(tmp_path / "tls", ["cloud.lan"])
    check_exposure(Settings(data_folder=tmp_path, host=host, tls_cert=made.cert, tls_key=made.key))


def test_metrics_need_tls_beyond_loopback_too(tmp_path):
    settings = Settings(data_folder=tmp_path, metrics_host="0.0.0.0")
    check_exposure(settings)  # nothing listens there
    with pytest.raises(InvalidInput, match="--metrics-host"):
        check_exposure(settings.model_copy(update={"metrics_port": 9464}))


def test_certificate_and_key_go_together(tmp_path):
    with pytest.raises(ValidationError, match="go together"):
        Settings(data_folder=tmp_path, tls_cert=tmp_path / "x")


def test_private_keys_are_for_their_owner_alone(tmp_path):
    made = create_certificates(tmp_path / "tls", ["cloud.lan"])
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in made.ca.read_bytes() + made.cert.read_bytes()


@pytest.mark.parametrize("name", ["cloud.lan", "192.168.1.20", "localhost", "127.0.0.1"])
def test_a_client_with_the_authority_trusts_every_name(tmp_path, name):
    made = create_certificates(tmp_path / "tls", ["cloud.lan", "192.168.1.20"])
    assert handshake(made, name) == name


def test_a_client_refuses_other_names_and_other_authorities(tmp_path):
    made = create_certificates(tmp_path / "tls", ["cloud.lan"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, "evil.lan")
    other = create_certificates(tmp_path / "other", ["cloud.lan"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, "cloud.lan", ca=other.ca)


def handshake(made, name, ca=None):
    """One TLS handshake over a socket pair; the name that the client verified."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(made.cert, made.key)
    client = ssl.create_default_context(cafile=ca or made.ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve():
        try:
            with server.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as wrapped:
            wrapped.send(b"x")
            return name
    finally:
        ours.close()
        thread.join()


def test_the_authority_stays_when_names_change(tmp_path):
    first = ensure_certificates(tmp_path / "tls", ["a.lan"])
    ca, cert = first.ca.read_bytes(), first.cert.read_bytes()
    assert ensure_certificates(tmp_path / "tls", ["a.lan"]).cert.read_bytes() == cert
    second = ensure_certificates(tmp_path / "tls", ["b.lan"])
    assert second.cert.read_bytes() != cert
    assert second.ca.read_bytes() == ca
    assert handshake(second, "b.lan") == "b.lan"
    second.cert.write_text("broken")
    assert handshake(ensure_certificates(tmp_path / "tls", ["b.lan"]), "b.lan")


def test_a_wrong_key_or_file_is_told_before_serving(tmp_path):
    made, other = create_certificates(tmp_path / "a", []), create_certificates(tmp_path / "b", [])
    cases = [
        (made.cert, other.key, "not the key"),
        (made.key, made.key, "PEM"),
        (tmp_path / "no", made.key, "Can't read"),
    ]
    for cert, key, words in cases:
        with pytest.raises(InvalidInput, match=words):
            check_exposure(Settings(data_folder=tmp_path, tls_cert=cert, tls_key=key))


@pytest.mark.parametrize("name", ["", "a b", "https://x", "x:80", "-x", "x" * 300, "ü.lan"])
def test_names_that_nobody_can_dial_are_refused(tmp_path, name):
    with pytest.raises(InvalidInput, match="host name"):
        create_certificates(tmp_path / "tls", [name])


def test_the_authority_is_published_where_asked(tmp_path):
    made = create_certificates(tmp_path / "tls", [])
    publish_ca(made, tmp_path / "shared" / "ca.pem")
    assert (tmp_path / "shared" / "ca.pem").read_bytes() == made.ca.read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull):
        publish_ca(made, tmp_path / "file" / "ca.pem")
    shutil.rmtree(tmp_path / "shared")


def test_a_new_authority_has_its_own_server_certificate(tmp_path):
    """Rotation: the folder's authority is moved away, whoever makes the new one."""
    made = ensure_certificates(tmp_path / "tls", [])
    for name in ("ca.pem", "ca-key.pem"):
        (tmp_path / "tls" / name).unlink()
    open_authority(tmp_path / "tls")
    assert handshake(ensure_certificates(tmp_path / "tls", []), "localhost", ca=made.ca) == "localhost"


def test_processes_that_start_at_once_have_one_authority(tmp_path):
    found, together = [], threading.Barrier(6)

    def start():
        together.wait()
        found.append(open_authority(tmp_path / "tls").fingerprint)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 6


def test_a_half_restored_authority_is_told_and_never_replaced(tmp_path):
    create_certificates(tmp_path / "a", [])
    create_certificates(tmp_path / "b", [])
    (tmp_path / "a" / "ca.pem").write_bytes(before := (tmp_path / "b" / "ca.pem").read_bytes())
    with pytest.raises(InvalidInput, match="not the key of"):
        create_certificates(tmp_path / "a", [])
    assert (tmp_path / "a" / "ca.pem").read_bytes() == before
