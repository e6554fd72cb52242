"""A small form of `test_power_loss` on an encrypted home: power is lost while stores, files and logs are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from privtune.device.home.encryption.vault_key import WrappedKey
from privtune.shared import at_rest
from tests.support.losing_disk import Loss
from tests.support.strace import finished, missing, operations, under_strace
from tests.torture.one_home import ROUNDS
from tests.torture.reading import Reader, disks
from tests.torture.sealing import PASSPHRASE

MISSING = missing()


@pytest.mark.skipif(bool(MISSING), reason=f"nothing records file operations here: {MISSING}")
def test_what_was_sent_is_on_every_disk_and_nothing_is_in_clear(tmp_path, monkeypatch):
    for name, value in PASSPHRASE.items():
        monkeypatch.setenv(name, value)
    root, log = tmp_path / "device", tmp_path / "device.strace"
    root.mkdir()
    command = [*under_strace(log), sys.executable, "-m", "tests.torture.one_home", str(root / "home")]
    with subprocess.Popen(command, env=os.environ | PASSPHRASE) as process:
        assert process.wait(120) == 0
    finished(log, process.pid)
    done, reader = list(operations(log, root)), Reader(tmp_path, WrappedKey.load(root / "home").key())
    wrong, held, losses = [], {}, set()
    for count, loss, seed, found in disks(root, done):
        if done[count - 1].kind == "send":
            held = json.loads(done[count - 1].data)
        trouble = reader.unreadable(found) + reader.not_sealed(found) + list(_lost(reader, found, held))
        wrong += [f"after operation {count}, {loss.name} {seed}: {one}" for one in trouble]
        losses.add(loss)
    assert not wrong, "\n".join(wrong[:20])
    assert losses == set(Loss)
    assert held["report"]
    assert len(held["releases"]) == held["entries"] == ROUNDS


def _lost(reader, found, held):
    """What of that which had left is not on the disk."""
    releases = dict(reader.rows(found, "home/releases.sqlite", "SELECT record, data FROM releases"))
    entries = reader.rows(found, "home/ledger.sqlite", "SELECT body FROM entries")
    sent = {bytes.fromhex(data) for data in held.get("releases", {}).values()}
    if sent - set(releases.values()):
        yield "a release is not on the disk"
    if len(entries) < held.get("entries", 0):
        yield "an entry is not in the ledger"
    if held.get("report") and "home/jobs/ftjob-1/report.json" not in found:
        yield "the report is gone"
    name = "home/jobs/ftjob-1/transcript/0001.jsonl"
    if held.get("lines") and _lines(reader, found, name) != held["lines"]:
        yield "the transcript is cut off"


def _lines(reader, found, name):
    return reader.once("lines", {name: found[name]}, lambda folder: len(at_rest.read_bytes(folder / name).splitlines()))
