"""The composed cloud and device as a test sees them: built, started one after the other, asked over REST, removed."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.podman import BASE_IMAGE, PROJECT, Podman

PORTS = {"PRIVTUNE_REST_PORT": "18080", "PRIVTUNE_GRPC_PORT": "18081", "PRIVTUNE_DEVICE_PORT": "18082"}
BUILD_STEPS = "STEP|COMMIT|Successfully|[Ee]rror"
ENDED = {"succeeded", "failed", "cancelled"}


@dataclass
class Composed:
    """docker-compose.yml of `folder`, run by podman-compose."""

    podman: Podman
    folder: Path

    @property
    def file(self) -> Path:
        """The compose file."""
        return self.folder / "docker-compose.yml"

    @property
    def api_key(self) -> str:
        """The key of the sample's .env, which the compose file gives to both services."""
        lines = (self.folder / ".env").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)["PRIVTUNE_API_KEY"]

    def container(self, service: str) -> str:
        """podman-compose's name of a service's container."""
        return f"{PROJECT}_{service}_1"

    def build(self) -> None:
        """Build both images, on the base image made here; pip inside uses this machine's configuration."""
        self.podman.log.hide(self.api_key)
        self.podman.env |= {"TORCH_INDEX": "", "PYTHON_IMAGE": BASE_IMAGE, **PORTS}
        mounts = " ".join(self.podman.build_mounts())
        build = ("--podman-build-args", f"--layers {mounts}", "build")
        self.podman.compose(self.file, *build, timeout=1500, only=BUILD_STEPS)

    def up(self) -> None:
        """Start the cloud, run its healthcheck until it passes, then the device.

        podman runs healthchecks by systemd timers, which a machine like this one lacks, so `depends_on: condition:
        service_healthy` would wait for ever; the harness waits in its place.
        """
        self.podman.compose(self.file, "up", "-d", "--no-build", "--no-deps", "cloud", timeout=180)
        self.podman.wait_healthy(self.container("cloud"), timeout=240)
        self.podman.compose(self.file, "up", "-d", "--no-build", "--no-deps", "device", timeout=180)
        self.podman.wait_healthy(self.container("device"), timeout=120)

    def down(self) -> None:
        """Write both services' logs into the log and remove containers, networks and volumes."""
        for service in ("cloud", "device"):
            self.podman.run("podman", "logs", self.container(service), check=False)
        self.podman.compose(self.file, "down", "--volumes", "--timeout", "10", timeout=180)

    def inside(self, service: str, *command: str, check: bool = True, timeout: float = 300) -> str:
        """Run a command in a service's container."""
        return self.podman.run("podman", "exec", self.container(service), *command, check=check, timeout=timeout)

    def rest(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request from the host to the published REST port, verified against the cloud's own CA."""
        pem = self.podman.run("podman", "exec", self.container("cloud"), "cat", "/tls/ca.pem", echo=False)
        request = urllib.request.Request(
            f"https://localhost:{PORTS['PRIVTUNE_REST_PORT']}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"},
        )
        context = ssl.create_default_context(cadata=pem)
        try:
            with urllib.request.urlopen(request, context=context, timeout=30) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error
        return answer

    def wait_for_job(self, job: str, timeout: float) -> dict[str, Any]:
        """Poll a job until it ends; each change goes to the log. Raises RuntimeError when the time is over."""
        deadline, before = time.monotonic() + timeout, ""
        while time.monotonic() < deadline:
            answer = self.rest("GET", f"/v1/fine_tuning/jobs/{job}")
            facts = answer["privtune"]
            now = f"{answer['status']}, {facts['phase']}, {json.dumps(facts['progress'])}"
            if now != before:
                self.podman.log.write(f"job {job}: {now}")
                before = now
            if answer["status"] in ENDED:
                return answer
            time.sleep(2)
        raise RuntimeError(f"job {job} did not end within {timeout:.0f} s; it was {before}")
