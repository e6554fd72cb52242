"""A model hub to push to: a small real HTTP server with the calls that huggingface_hub makes, keeping what arrives."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_owner"
READ_ONLY = "hf_reader"


@dataclass
class Repo:
    """One repository: whether it is private, and path -> bytes of its newest commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    summaries: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What arrived. bodies: every request body, so that a test can look for what must not be there."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    broken_uploads: bool = False


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of loopback."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._route("GET", b"")

    def do_POST(self) -> None:
        self._route("POST", self._body())

    def do_PUT(self) -> None:
        self._route("PUT", self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.bodies.append(body)
        return body

    def _route(self, method: str, body: bytes) -> None:
        path = self.path.partition("?")[0]
        for verb, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                # The address of an upload is a secret of its own and takes no token, as on S3.
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                if verb != "PUT" and token not in (TOKEN, READ_ONLY):
                    return self._send(401, {"error": "Invalid credentials in Authorization header"})
                if token == READ_ONLY and verb == "POST":
                    return self._send(403, {"error": "You don't have the rights to write here"})
                return answer(self, body, *found.groups())
        return self._send(404, {"error": f"no such call: {method} {path}"})

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status >= 400:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        self.wfile.write(data)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"owner/{asked['name']}"
        if name in self.hub.repos:
            return self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(private=private)
        return self._send(200, {"url": f"{self.hub.url}/{name}"})

    def info(self, _: bytes, name: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._send(404, {"error": "Repository not found"})
        return self._send(
            200, {"id": name, "private": repo.private, "siblings": [{"rfilename": n} for n in repo.files]}
        )

    def validate(self, body: bytes) -> None:
        head = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        try:
            facts = yaml.safe_load(head[1]) if head else None
        except yaml.YAMLError as error:
            return self._send(400, {"error": "Invalid metadata", "errors": [{"message": str(error)}]})
        base = (facts or {}).get("base_model", "a/b")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            return self._send(400, {"error": "bad", "errors": [{"message": f"base_model {base!r} is no model id"}]})
        return self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        def mode(file: dict[str, Any]) -> dict[str, Any]:
            large = file["path"].endswith((".safetensors", ".gguf"))
            return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

        self._send(200, {"files": [mode(file) for file in json.loads(body)["files"]]})

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            actions["verify"] = {"href": f"{self.hub.url}/lfs/verify"}
            objects.append(one | ({} if one["oid"] in self.hub.blobs else {"actions": actions}))
        self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        if self.hub.broken_uploads or hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "the content does not match its hash"})
        self.hub.blobs[oid] = body
        return self._send(200, {})

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        known = len(self.hub.blobs.get(asked["oid"], b"")) == asked["size"]
        self._send(200 if known else 404, {"error": ""})

    def commit(self, body: bytes, name: str) -> None:
        repo = self.hub.repos[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repo.summaries.append(value["summary"])
            elif entry["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_NAME}/preupload/main", _Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", _Handler.store),
    ("POST", "/lfs/verify", _Handler.verify),
    ("POST", f"/api/models/{_NAME}/commit/main", _Handler.commit),
)
