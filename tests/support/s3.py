"""A real server that speaks S3 (moto's), as a process of its own, which can be made to fail."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import httpx

KEY, SECRET = "AKIATEST", "sesame-open-for-nobody"

_SERVER = """
import sys, pathlib
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

moto, down = DomainDispatcherApplication(create_backend_app), pathlib.Path(sys.argv[1])

def app(environ, start):
    if down.exists():
        start("503 Service Unavailable", [])
        return [b""]
    return moto(environ, start)

class Quiet(WSGIRequestHandler):
    def log_request(self, *args): pass

server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
print(server.server_port, flush=True)
server.serve_forever()
"""


class S3:
    """The server. While the file `down` exists, it answers nothing but 503."""

    def __init__(self) -> None:
        self.down = Path(tempfile.mkdtemp(prefix="privtune-s3-")) / "down"
        command = [sys.executable, "-c", _SERVER, str(self.down)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self._numbers = itertools.count()
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

    def bucket(self) -> str:
        """The URL of a place in a new bucket."""
        name = f"bucket-{next(self._numbers)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return f"s3://{name}/clouds/one"

    def files(self) -> Any:
        """All buckets as a file system of fsspec."""
        return fsspec.filesystem(
            "s3", key=KEY, secret=SECRET, endpoint_url=self.url, use_listings_cache=False, skip_instance_cache=True
        )

    def refuse_strangers(self, refuse: bool) -> None:
        """Refuse every key: none is known here."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content=b"0" if refuse else b"inf").raise_for_status()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
