import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Canned:
    """A server that answers every request alike, as a proxy or another service at the cloud's address would."""

    def __init__(self, status, body, content_type="application/json", drop=0, headers=()):
        self.requests, self.drop = [], drop
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                canned.requests.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
                if canned.drop >= len(canned.requests):
                    self.connection.close()
                    return
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def canned():
    made = []

    def make(*arguments, **options):
        made.append(Canned(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()
