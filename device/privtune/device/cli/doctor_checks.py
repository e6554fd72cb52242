"""What `privtune doctor` looks at: each check gives findings, and what is wrong comes with a remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

from privtune.device.cli.connection import Connection
from privtune.device.client.settings_file import settings_path
from privtune.shared.errors import CloudUnreachable, JobNotFound, PrivTuneError, StorageFull
from privtune.shared.wording import install

LEAST_FREE = 2 << 30  # bytes of disk: a bottom package, releases and checkpoints of a small job
MOST_SKEW_S = 60.0  # certificates and keys have ends
_EXTRAS = {"surrogates": "presidio_analyzer", "tail": "peft", "serve": "fastapi", "gguf": "gguf", "hub": "datasets"}
_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a check found.

    remedy: what to do; empty where nothing is wrong.
    code: the exit code of a failure, of docs/exit-codes.md.
    """

    check: str
    status: Literal["ok", "warning", "failed"] = "ok"
    found: str
    remedy: str = ""
    code: int = 0


def examine(connection: Connection, config: Path | None) -> Iterator[Diagnosis]:
    """Every check in turn, those of the cloud last. None of them raises."""
    local: list[tuple[str, Callable[[], Iterator[Diagnosis]]]] = [
        ("versions", _versions),
        ("torch", _torch),
        ("extras", _extras),
        ("settings", lambda: _settings(config)),
        ("home", lambda: _home(connection.folder)),
        ("proxy", lambda: _proxies(connection)),
        ("certificates", lambda: _certificates(connection)),
    ]
    for name, check in local:
        yield from _guarded(name, check)
    yield from _guarded("cloud", lambda: _cloud(connection))


def _guarded(name: str, check: Callable[[], Iterator[Diagnosis]]) -> Iterator[Diagnosis]:
    try:
        yield from check()
    except PrivTuneError as error:
        yield Diagnosis(check=name, status="failed", found=error.message, remedy=error.help, code=error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = StorageFull(f"{where}{error.strerror}")
        yield Diagnosis(check=name, status="failed", found=full.message, remedy=full.help, code=full.exit_code)


def _versions() -> Iterator[Diagnosis]:
    from privtune.shared import __version__
    from privtune.shared.versions import OURS

    yield Diagnosis(
        check="versions",
        found=f"PrivTune {__version__}, protocol {OURS.newest}, Python {platform.python_version()} on "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )


def _torch() -> Iterator[Diagnosis]:
    import torch

    build = torch.version.cuda
    if build is None:
        yield Diagnosis(check="torch", found=f"torch {torch.__version__}, for the CPU; a device needs no GPU")
    elif torch.cuda.is_available():
        yield Diagnosis(check="torch", found=f"torch {torch.__version__}, CUDA {build}, {torch.cuda.get_device_name()}")
    else:
        yield Diagnosis(
            check="torch",
            status="warning",
            found=f"torch {torch.__version__} is the CUDA build (several GB), and no GPU can be used",
            remedy="A device needs none. Smaller: pip install torch --index-url https://download.pytorch.org/whl/cpu",
        )


def _extras() -> Iterator[Diagnosis]:
    here = {extra for extra, module in _EXTRAS.items() if importlib.util.find_spec(module) is not None}
    found = f"installed: {', '.join(sorted(here)) or 'none'}"
    if "surrogates" in here:
        yield Diagnosis(check="extras", found=found)
    else:
        remedy = f"--protect names, the default, needs it: {install('surrogates')}"
        yield Diagnosis(check="extras", status="warning", found=f"{found}; surrogates is not", remedy=remedy)


def _settings(config: Path | None) -> Iterator[Diagnosis]:
    path = settings_path(config)
    if path is None:
        yield Diagnosis(check="settings", found="no privtune.yaml; `privtune init` writes one")
    elif sys.platform != "win32" and path.stat().st_mode & 0o077 and "api_key" in path.read_text(encoding="utf-8"):
        remedy = f"chmod 600 {path}, and have the key replaced if others use this machine."
        yield Diagnosis(
            check="settings", status="warning", found=f"{path} has your key, and others can read it", remedy=remedy
        )
    else:
        yield Diagnosis(check="settings", found=f"read from {path}")


def _home(folder: Path) -> Iterator[Diagnosis]:
    from privtune.device.home.paths import private_folder
    from privtune.device.home.policy_file import home_policy

    private = private_folder(folder)
    probe = folder / ".doctor"
    probe.touch()
    probe.unlink()
    policy = "a policy" if home_policy(folder) is not None else "no policy"
    if private:
        yield Diagnosis(check="home", found=f"{folder}, for you alone, with {policy}")
    else:
        remedy = "Give --home (PRIVTUNE_HOME) a folder of your own."
        yield Diagnosis(check="home", status="warning", found=f"others can look into {folder}", remedy=remedy)
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free >= LEAST_FREE:
        yield Diagnosis(check="disk", found=found)
    else:
        remedy = "Free some, or put the home elsewhere; `privtune plan` says what a job needs."
        yield Diagnosis(check="disk", status="warning", found=found, remedy=remedy)


def _proxies(connection: Connection) -> Iterator[Diagnosis]:
    from privtune.device.link.trust import proxy_of
    from privtune.shared.addresses import host_of
    from privtune.shared.printable import printable

    set_ = [name for name in _VARIABLES if os.environ.get(name)]
    if not connection.cloud:
        yield Diagnosis(check="proxy", found=f"set: {', '.join(set_) or 'none'}")
        return
    host = host_of(connection.cloud.partition("://")[2].partition("/")[0])
    proxy = proxy_of(host)
    way = "directly" if proxy is None else f"through {printable(proxy.rpartition('@')[2])}"
    yield Diagnosis(check="proxy", found=f"{host} is dialed {way}; set: {', '.join(set_) or 'none'}")


def _certificates(connection: Connection) -> Iterator[Diagnosis]:
    from privtune.device.link.trust import trusted_roots

    pem = trusted_roots(connection.ca_cert)
    paths = ssl.get_default_verify_paths()
    source = connection.ca_cert or paths.cafile or paths.capath or "the system's store"
    yield Diagnosis(check="certificates", found=f"{pem.count(b'BEGIN CERTIFICATE')} trusted authorities of {source}")


def _cloud(connection: Connection) -> Iterator[Diagnosis]:
    if not connection.cloud:
        yield Diagnosis(
            check="cloud",
            status="warning",
            found="no cloud is set",
            remedy="Run `privtune init`, set PRIVTUNE_CLOUD, or give --cloud https://host:port.",
        )
        return
    with connection.control() as control:
        began = time.time()
        facts, date = control.info(), control.date()
        took = time.time() - began
        versions = f"PrivTune {facts.get('version')}, protocol {facts.get('protocol_version')}"
        yield Diagnosis(check="cloud", found=f"{control.url}: {versions}, your key works")
        if date is not None:
            yield _clock(parsedate_to_datetime(date).timestamp() - began - took / 2)
        address = connection.grpc_address or control.grpc_address()
    yield _gateway(connection, address)


def _clock(ahead_s: float) -> Diagnosis:
    """ahead_s: the cloud's clock before this one."""
    how = f"{abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead of'} the cloud's"
    if abs(ahead_s) <= MOST_SKEW_S:
        return Diagnosis(check="clock", found="this machine's clock agrees with the cloud's")
    remedy = "Set the clock (NTP): certificates and keys begin and end by it. Ask the operator if theirs is wrong."
    return Diagnosis(check="clock", status="warning", found=f"this machine's clock is {how}", remedy=remedy)


def _gateway(connection: Connection, address: str) -> Diagnosis:
    """Whether gRPC answers: it refuses a job that does not exist."""
    from privtune.device.link.download import artifact_of, fetch_manifest
    from privtune.device.link.rpc import Link
    from privtune.split.v1 import split_pb2 as pb

    settings = connection.local_settings(address)
    try:
        with Link(settings.endpoint) as link:
            fetch_manifest(link, artifact_of(pb.ARTIFACT_KIND_ADAPTER, "ftjob-doctor"))
    except JobNotFound:
        pass
    except CloudUnreachable as error:
        remedy = "REST answers and gRPC does not: is its port open, and does a proxy in between let HTTP/2 through?"
        return Diagnosis(check="gateway", status="failed", found=error.message, remedy=remedy, code=error.exit_code)
    return Diagnosis(check="gateway", found=f"{address} answers")
