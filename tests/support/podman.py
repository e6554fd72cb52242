"""Building and running the compose file with podman on a machine that has no Docker engine and can pull no image.

The Dockerfiles and docker-compose.yml stay what a Docker user expects; tests/containers/README.md lists all departures.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

BASE_IMAGE = "docker.io/library/python:3.11-slim-bookworm"
DEBIAN = "http://deb.debian.org/debian"
DEBIAN_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
# netavark calls iptables, and `init: true` catatonit; apt only recommends them.
APT = ("podman", "buildah", "runc", "netavark", "aardvark-dns", "iptables", "debootstrap", "catatonit")
COMMANDS = ("podman", "buildah", "runc", "catatonit", "iptables", "debootstrap")
CONTAINERS_CONF = '[containers]\ndefault_ulimits = []\n[engine]\nruntime = "runc"\n'
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PROJECT = "privtunetest"
TOOLS_VERSION = "podman-compose==1.6.0"


def why_not() -> str | None:
    """A reason why images can't be built and run here, or None."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root: podman's network and debootstrap"
    if shutil.which("apt-get") is None and any(shutil.which(name) is None for name in COMMANDS):
        return f"needs {', '.join(COMMANDS)}, and there is no apt-get to install them"
    return None


def shown(command: tuple[str, ...]) -> str:
    """A command as the log shows it: without what only this machine needs, and long arguments cut."""
    words = [f"{word[:160]}…" if len(word) > 160 else word for word in command]
    return " ".join("MOUNTS" if " --volume " in word else word for word in words)


class Log:
    """Every command with its output, in one file that can be committed as the record of a run."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._start = time.monotonic()
        self._secrets: list[str] = []

    def hide(self, secret: str) -> None:
        """Never write `secret`, whoever prints it."""
        self._secrets.append(secret)

    def write(self, text: str) -> None:
        """Add a line, with the seconds since the start."""
        self.raw(f"[{time.monotonic() - self._start:7.1f}s] {text}")

    def raw(self, text: str) -> None:
        """Add output as it came."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if text.strip():
            self._file.write(text.rstrip() + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass
class Podman:
    """podman and podman-compose with the settings that this kind of machine needs."""

    work: Path
    log: Log
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, timeout: float = 120, check: bool = True, echo: bool = True, only: str = "") -> str:
        """Run a command and return its output, which goes to the log too: all, none or the lines that match `only`.

        Raises RuntimeError with the end of the output if the command fails.
        """
        self.log.write("$ " + shown(command))
        done = subprocess.run(
            command,
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if echo:
            self.log.raw("\n".join(line for line in done.stdout.splitlines() if re.search(only, line)))
        if check and done.returncode != 0:
            self.log.raw(done.stdout[-4000:])
            raise RuntimeError(f"{shown(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout

    def prepare(self) -> None:
        """Install what is missing, write the settings and make the base image unless it is there."""
        if any(shutil.which(name) is None for name in COMMANDS):
            self.run("apt-get", "update", "-q", timeout=300, echo=False)
            install = ("apt-get", "install", "-y", "-q", "--no-install-recommends", *APT)
            self.run("env", "DEBIAN_FRONTEND=noninteractive", *install, timeout=900, echo=False)
        conf = self.work / "containers.conf"
        conf.write_text(CONTAINERS_CONF, encoding="utf-8")
        # Docker's image format keeps HEALTHCHECK; podman's own drops it.
        self.env |= {"CONTAINERS_CONF": str(conf), "BUILDAH_ISOLATION": "chroot", "BUILDAH_FORMAT": "docker"}
        tools = self.work / "tools"
        self.run(sys.executable, "-m", "venv", str(tools))
        self.run(str(tools / "bin/pip"), "install", "-q", TOOLS_VERSION, timeout=300, echo=False)
        self._base_image()

    def _base_image(self) -> None:
        # Not by what `podman images` prints: warnings would look like an image.
        exists = subprocess.run(["podman", "image", "exists", BASE_IMAGE], env={**os.environ, **self.env}, check=False)
        if exists.returncode == 0:
            return
        root = self.work / "rootfs"
        include = f"--include={DEBIAN_PACKAGES}"
        debootstrap = ("debootstrap", "--variant=minbase", include, "bookworm", str(root), DEBIAN)
        self.run("nice", *debootstrap, timeout=900, echo=False)
        (root / "usr/bin/python").symlink_to("python3")
        self.run("bash", "-c", f"tar -C {root} -c . | podman import - {BASE_IMAGE}", timeout=300)
        shutil.rmtree(root)

    def build_mounts(self) -> list[str]:
        """Arguments of `podman build` that let pip inside a build use this machine's pip configuration."""
        listed = self.run(sys.executable, "-m", "pip", "config", "list", echo=False)
        settings = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
        # global.* is the file's, :env:.* the environment's, which pip lets win.
        merged = {key.rpartition(".")[2]: value.strip("'") for key, value in settings.items() if key[:4] != ":env"}
        merged |= {key.rpartition(".")[2]: value.strip("'") for key, value in settings.items() if key[:4] == ":env"}
        parser = configparser.ConfigParser(interpolation=None)
        parser["global"] = {key: value.replace("\\n", " ") for key, value in merged.items()}
        pip_conf = self.work / "pip.conf"
        with pip_conf.open("w", encoding="utf-8") as file:
            parser.write(file)
        mounts = [f"{pip_conf}:/etc/pip.conf:ro"]
        if CA_BUNDLE.exists():
            mounts.append(f"{CA_BUNDLE}:{CA_BUNDLE}:ro")
        mounts += [f"{path}:{path}:ro" for path in _local_paths(parser["global"])]
        return [argument for mount in mounts for argument in ("--volume", mount)]

    def compose(self, file: Path, *arguments: str, timeout: float = 120, only: str = "") -> str:
        """Run podman-compose on `file`, as nicely as builds should be."""
        tool = str(self.work / "tools/bin/podman-compose")
        command = ("nice", tool, "--in-pod", "false", "-p", PROJECT, "-f", str(file), *arguments)
        return self.run(*command, timeout=timeout, only=only)

    def wait_healthy(self, container: str, timeout: float = 120) -> None:
        """Run the container's own healthcheck by hand, as podman's systemd timer would, until it passes."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            done = subprocess.run(
                ["podman", "healthcheck", "run", container],
                env={**os.environ, **self.env},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                self.log.write(f"$ podman healthcheck run {container}: healthy")
                return
            state = self.run("podman", "inspect", "--format", "{{.State.Status}}", container, echo=False).strip()
            if state != "running":
                break
            time.sleep(2)
        logs = self.run("podman", "logs", "--tail", "40", container, check=False)
        raise RuntimeError(f"{container} did not get healthy; its log ends with:\n{logs}")


def _local_paths(settings: configparser.SectionProxy) -> list[str]:
    """What pip's configuration names of this machine: folders of packages, and files of constraints."""
    keys = ("find-links", "index-url", "extra-index-url", "constraint")
    words = [word for key in keys for word in settings.get(key, "").split()]
    paths = [Path(urlparse(word).path if word.startswith("file:") else word) for word in words if "http" not in word]
    # An index of links to files beside it (simple/ and files/) needs its parent.
    return sorted({str(path.parent if path.name == "simple" else path) for path in paths if path.exists()})
