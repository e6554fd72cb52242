"""A real PostgreSQL for tests: a server process of its own on a free port, with a new database for each test.

Its data are in a temporary folder. PostgreSQL refuses to run as root, so root starts it as the user `postgres`, whom
Debian's package makes.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from privtune.cloud.db.store import Store

USER, PASSWORD, QUOTED = "privtune", "s3cret/pass@word", "s3cret%2Fpass%40word"  # as a URL writes it
_TEMPLATE = "migrated"
_FAST = ("fsync=off", "full_page_writes=off", "autovacuum=off", "shared_buffers=16MB", "max_connections=60")


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    here = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return Path(found).parent if found else here[-1].parent if here else None


def name_of(url: str) -> str:
    """The database of a URL."""
    return url.partition("?")[0].rpartition("/")[2]


class Postgres:
    """A server, and databases on it. `folder`: of its data."""

    def __init__(self) -> None:
        bin_folder = programs()
        if bin_folder is None:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="privtune-postgres-", dir=memory if memory.is_dir() else None))
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        if self._as:
            shutil.chown(self.folder, "postgres", "postgres")
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = self.folder / "data"
        made = [bin_folder / "initdb", "--no-sync", "--no-instructions", "--username", USER, "--pwfile", secret]
        made += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "-D", data]
        subprocess.run(made, check=True, capture_output=True, cwd=self.folder, **self._as)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        settings = itertools.chain.from_iterable(("-c", setting) for setting in _FAST)
        where = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}", "-p", self.port]
        command = [bin_folder / "postgres", "-D", data, *where, *settings]
        with (self.folder / "log").open("wb") as log:
            words = [str(word) for word in command]
            self._process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.folder, **self._as)
        self._numbers = itertools.count()
        self._wait()
        self._migrate()

    def url(self, database: str) -> str:
        """Of a database on this server, with the password."""
        return f"postgresql://{USER}:{QUOTED}@127.0.0.1:{self.port}/{database}"

    def new(self, *, empty: bool = False) -> str:
        """The URL of a new database, at this version's schema unless `empty`."""
        name = f"test{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}" + ("" if empty else f" TEMPLATE {_TEMPLATE}"))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is connected."""
        self.execute(f"DROP DATABASE IF EXISTS {name_of(url)} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run a statement on the server, in no transaction."""
        self._control.execute(statement)

    def program(self, name: str, *words: object) -> None:
        """Run a client program such as pg_dump."""
        command = [str(programs() / name), *map(str, words)]
        done = subprocess.run(command, env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._control.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self._control = psycopg.connect(self.url("postgres"), autocommit=True)
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    log = (self.folder / "log").read_text()
                    raise RuntimeError(f"PostgreSQL did not start as {getpass.getuser()}: {log}") from None
                time.sleep(0.02)

    def _migrate(self) -> None:
        self.execute(f"CREATE DATABASE {_TEMPLATE}")
        store = Store(self.url(_TEMPLATE))
        store.upgrade()
        store.close()
