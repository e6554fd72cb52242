"""Whom REST and gRPC trust, and that no proxy of the environment sees what is meant for this machine."""

import contextlib
import socket
import threading

import pytest

from privtune.cloud.server.tls import create_certificates
from privtune.device.link.download import artifact_of
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rest import ControlPlane
from privtune.device.link.rpc import Link
from privtune.device.link.trust import proxy_of, trusted_roots
from privtune.shared.errors import InvalidInput, PrivTuneError

KEY = "pt-" + "k" * 40


class Listener:
    """Accepts connections, keeps what arrives, and closes each."""

    def __init__(self):
        self.seen = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._socket.accept()
                with one, contextlib.suppress(OSError):
                    one.settimeout(0.5)
                    self.seen += one.recv(65536)
                    one.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    for _ in range(4):
                        self.seen += one.recv(65536)

    def stop(self):
        self._socket.close()


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that the whole environment names."""
    listener = Listener()
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    yield listener
    listener.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_key_for_this_machine_never_reaches_a_proxy(proxy, host):
    gateway = Listener()
    with Link(GatewayAccess(address=f"{host}:{gateway.port}", api_key=KEY)) as link, pytest.raises(PrivTuneError):
        list(link.fetch(artifact_of(1, "ftjob-x"), ""))
    with ControlPlane(f"http://{host}:{gateway.port}", KEY) as control, pytest.raises(PrivTuneError):
        control.info()
    assert proxy.seen == b""
    assert KEY.encode() in gateway.seen
    gateway.stop()


def test_another_machine_is_reached_through_the_proxy_and_inside_tls_at_both_doors(proxy):
    with Link(GatewayAccess(address="cloud.example:8081", api_key=KEY)) as link, pytest.raises(PrivTuneError):
        list(link.fetch(artifact_of(1, "ftjob-x"), ""))
    with ControlPlane("https://cloud.example:8080", KEY) as control, pytest.raises(PrivTuneError):
        control.info()
    assert b"CONNECT cloud.example:8081" in proxy.seen
    assert b"CONNECT cloud.example:8080" in proxy.seen
    assert KEY.encode() not in proxy.seen


def test_no_proxy_holds_for_both(proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "cloud.example")
    assert proxy_of("cloud.example:8081") is None
    assert proxy_of("cloud.other:8081") == f"http://127.0.0.1:{proxy.port}"


def test_a_proxy_of_another_kind_is_refused_by_name(proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    for dial in (lambda: proxy_of("cloud.example"), lambda: ControlPlane("https://cloud.example", KEY)):
        with pytest.raises(InvalidInput, match="https_proxy"):
            dial()


def test_the_roots_are_the_given_file_else_the_environments(tmp_path, monkeypatch):
    mine, other = (create_certificates(tmp_path / name, []).ca for name in ("mine", "other"))
    assert trusted_roots(mine) == mine.read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "0123abcd.0").write_bytes(mine.read_bytes())
    (folder / "notes.txt").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    found = trusted_roots(None)
    assert mine.read_bytes() in found
    assert other.read_bytes() in found
    assert found.count(b"BEGIN CERTIFICATE") == 2


def test_no_authority_at_all_is_refused_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "empty.pem").write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(InvalidInput, match="--ca-cert"):
        Link(GatewayAccess(address="cloud.example:1", api_key=KEY))
