"""What a peer may take of REST's connections: time for a body, answers that it does not read, their number."""

import contextlib
import socket
import time

from privtune.cloud.api import middleware
from privtune.cloud.server import http_protocol
from tests.support.running import wait_until


def connect(plane):
    one = socket.create_connection(plane.socket.getsockname(), 5)
    one.settimeout(5)
    return one


def get(plane, path):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {plane.key}\r\n\r\n".encode()


def test_a_body_that_drips_is_refused(plane, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_S", 0.4)
    with connect(plane) as one:
        one.sendall(get(plane, "/v1/fine_tuning/jobs").replace(b"GET", b"POST")[:-2] + b"Content-Length: 1000\r\n\r\n")
        began = time.monotonic()
        one.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - began < 5:
            one.sendall(b" ")
            try:
                answer = one.recv(4096)
            except TimeoutError:
                continue
        one.settimeout(5)
        while b"did not come within" not in answer and (more := one.recv(4096)):  # headers and body are packets
            answer += more
    assert b" 400 " in answer.splitlines()[0]
    assert b"did not come within" in answer


def test_answers_that_nobody_reads_end_their_connection(plane, monkeypatch):
    monkeypatch.setattr(http_protocol, "UNREAD_S", 0.3)
    with connect(plane) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(0.2)
        with contextlib.suppress(TimeoutError):  # until what is asked for is not taken any more either
            one.sendall(50_000 * get(plane, "/openapi.json"))
        wait_until(lambda: not plane.server.server_state.connections, seconds=5)


def test_connections_of_one_address_are_bounded(plane, monkeypatch):
    monkeypatch.setattr(http_protocol, "MAX_OF_PEER", 2)
    made = [connect(plane) for _ in range(3)]
    assert ended(made[2])
    for one in made[:2]:
        one.sendall(get(plane, "/healthz"))
        assert b" 200 " in one.recv(4096)
        one.close()
    wait_until(lambda: served(plane), seconds=5)


def served(plane):
    with connect(plane) as one:
        one.sendall(get(plane, "/healthz"))
        try:
            return b" 200 " in one.recv(4096)
        except ConnectionResetError:
            return False


def ended(one):
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True
