"""A user-space TCP proxy between device and cloud: records every byte; delays, slows down, cuts, silences, corrupts."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time


class Proxy:
    """Listens on loopback and forwards to `target` ("host:port").

    recorded: every byte in both directions, as (from_device, data).
    latency_s: one way.
    rate: bytes per second, each way.
    silent: while set, nothing passes, and neither side learns of it: a half-open connection.
    """

    def __init__(self, target: str, *, latency_s: float = 0.0, rate: float | None = None, record: bool = True) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._latency, self._rate, self._record = latency_s, rate, record
        self.recorded: list[tuple[bool, bytes]] = []
        self.corrupt_next, self.silent = threading.Event(), threading.Event()
        self._open: list[socket.socket] = []
        self._silent: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every open connection; new ones are accepted."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def silence(self) -> None:
        """Keep every open connection, and pass nothing on any more, as after a laptop's sleep; new ones work."""
        self._silent.update(self._open)

    def bytes_from(self, *, device: bool) -> bytes:
        """All that one side sent, in order."""
        return b"".join(data for from_device, data in self.recorded if from_device is device)

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
                cloud = socket.create_connection(self._target)
            except OSError:
                return
            for one in (device, cloud):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [device, cloud]
            self._pump(device, cloud, from_device=True)
            self._pump(cloud, device, from_device=False)

    def _pump(self, source: socket.socket, sink: socket.socket, *, from_device: bool) -> None:
        due: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            free_at = 0.0
            while True:
                try:
                    data = source.recv(1 << 16)
                except OSError:
                    data = b""
                if data and self.silent.is_set():
                    continue
                if data and self._record:
                    self.recorded.append((from_device, data))
                if data and from_device and len(data) > 1000 and self.corrupt_next.is_set():
                    self.corrupt_next.clear()
                    middle = len(data) // 2
                    data = data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]
                now = time.monotonic()
                free_at = max(free_at, now) + (len(data) / self._rate if self._rate else 0.0)
                due.put((free_at + self._latency, data))
                if not data:
                    return

        def write() -> None:
            while True:
                at, data = due.get()
                time.sleep(max(0.0, at - time.monotonic()))
                if sink in self._silent:
                    continue
                with contextlib.suppress(OSError):
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                        return
                    sink.sendall(data)

        threading.Thread(target=read, daemon=True).start()
        threading.Thread(target=write, daemon=True).start()
