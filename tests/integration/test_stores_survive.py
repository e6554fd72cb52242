"""Processes use the stores of one home at once, and some are killed: no file breaks, no sent row is lost.

PRIVTUNE_TORTURE_S is how long it goes on, in seconds (`make torture`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from privtune.device.account.ledger import Ledger
from privtune.device.release.release_store import ReleaseStore
from tests.support.store_worker import FILES, MAX_BYTES, label_key, release_key

SECONDS = float(os.environ.get("PRIVTUNE_TORTURE_S", "8"))


class Worker:
    """A process that draws, and the log of what it sent."""

    def __init__(self, home: Path, log: Path, kind: str) -> None:
        log.touch()
        self.log, self.kind = log, kind
        command = [sys.executable, "-m", "tests.support.store_worker", str(home), str(log), kind]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def has_sent(self) -> bool:
        assert self._process.poll() is None, self._process.communicate()[1].decode()
        return self.log.stat().st_size > 0

    def end(self) -> None:
        """As a command ends: it closes its files."""
        _, errors = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, errors.decode()

    def kill(self) -> None:
        """As `kill -9` ends it."""
        self._process.kill()
        self._process.communicate()


def disturb(home: Path, logs: Path) -> None:
    """Processes of each kind, of which now and then one ends, or is killed, and is replaced."""

    def start(kind: str) -> Worker:
        return Worker(home, logs / str(len(list(logs.iterdir()))), kind)

    workers = [start(kind) for kind in ("serving", "training", "labelling")]
    while not all(worker.has_sent() for worker in workers):
        time.sleep(0.05)
    until, ended = time.monotonic() + SECONDS, 0
    while time.monotonic() < until or ended < 8:
        time.sleep(random.uniform(0, 0.3))
        worker = random.choice(workers[:-1])  # the last is slow to start
        if worker.has_sent():
            random.choice((Worker.end, Worker.kill))(worker)
            ended += 1
            workers[workers.index(worker)] = start(worker.kind)
    for worker in reversed(workers):
        random.choice((Worker.end, Worker.kill))(worker)


def sent_lines(logs: Path) -> list[list[str]]:
    """What left, as (store, scope, number, content); a line that a kill cut short never left."""
    whole = [line for log in logs.iterdir() for line in log.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    return [line.split() for line in whole]


def stored(home: Path, sent: list[list[str]]) -> list[list[str]]:
    """The same rows as the stores have them now."""
    numbers: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for name, scope, number, _ in sent:
        numbers[name, scope].append(int(number))
    found = []
    for (name, scope), wanted in numbers.items():
        if name == "ledger":
            with Ledger(home) as ledger:
                held = {entry["number"]: "entered" for entry in ledger.entries()}
        elif name == "labels":
            with contextlib.closing(sqlite3.connect(home / "labels.sqlite")) as db:
                by_key = dict(db.execute("SELECT record, label FROM draws"))
            held = {number: str(by_key.get(label_key(number))) for number in wanted}
        else:
            with contextlib.closing(ReleaseStore(home / FILES[name], scope, MAX_BYTES)) as store:
                kept = store.get_many([release_key(number) for number in wanted])
            held = {key.index: hashlib.sha256(item.data).hexdigest() for key, item in kept.items()}
        found += [[name, scope, str(number), held.get(number, "lost")] for number in wanted]
    return found


@pytest.mark.timeout(SECONDS + 240)
def test_nothing_breaks_and_nothing_that_was_sent_is_lost(tmp_path: Path) -> None:
    home, logs = tmp_path / "home", tmp_path / "logs"
    logs.mkdir()
    disturb(home, logs)
    for file in (*FILES.values(), "labels.sqlite", "ledger.sqlite"):
        with contextlib.closing(sqlite3.connect(home / file)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], file
    sent = sent_lines(logs)
    assert len(sent) > 100
    assert {line[0] for line in sent} == {*FILES, "labels", "ledger"}
    assert sorted(sent) == sorted(stored(home, sent))  # sent twice is the same twice
