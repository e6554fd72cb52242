"""Commands as processes of their own, forked from one that has imported what they need: seconds less for each start.

The fork server imports torch, transformers and the cloud once per test process; it runs neither threads nor tests. A
process forked from it parses the command's arguments, has its own environment and output, and is signalled, killed and
waited for as any other. That a start from nothing works is for `test_cloud_processes`, `test_import_hygiene`, the demo.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import cache
from importlib import import_module
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

# The libraries, and the architectures of the tiny models, which transformers imports when it first loads one.
IMPORTS = (
    "peft",
    "privtune.cloud.gateway",
    "privtune.cloud.server.plane",
    "privtune.cloud.server.server",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)


class Forked:
    """`MODULE`'s main with arguments, in a process of its own whose output goes to a file. Faces as `Popen` does."""

    def __init__(self, module: str, arguments: list[str], *, environment: dict[str, str], output: Path) -> None:
        made = _server().Process(target=_run, args=(module, arguments, environment, os.getcwd(), str(output)))
        made.start()
        self._process = made
        self.pid: int = made.pid or 0

    def poll(self) -> int | None:
        """The exit code; minus the signal's number for a killed process; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end. Raises TimeoutError."""
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def _server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; threads that it made would be lost in a fork
    forkserver.ensure_running()
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    return context


def _run(module: str, arguments: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    import_module(module).main()
