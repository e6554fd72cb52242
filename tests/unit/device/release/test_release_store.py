"""The once-per-record store: the same bytes through crashes, two writers, damage and full disks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from privtune.device.release.record_keys import RecordKey, content_fingerprint
from privtune.device.release.release_store import EncodedRelease, ReleaseStore, release_fingerprint
from privtune.shared.codec import encode
from privtune.shared.errors import ArtifactCorrupt, InvalidInput, JobConflict, StorageFull
from privtune.shared.sqlite import open_private

PRINT = release_fingerprint(mechanism="m", model="a" * 64, cut=1, codec="bf16")


def key(index: int) -> RecordKey:
    return RecordKey(index, content_fingerprint([index, 5]))


def drawn(seed: int, rows: int = 3) -> EncodedRelease:
    h_ND = np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)
    return EncodedRelease(rows=rows, data=encode(h_ND, "bf16"))


def counted_bytes(path: Path) -> int:
    """What the file says that it holds, which is what the bound compares; checked against what it does hold."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (counted,), (held,) = db.execute("SELECT bytes FROM totals UNION ALL SELECT SUM(length(data)) FROM releases")
    assert counted == held
    return int(counted)


def test_same_bytes_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "releases.sqlite"
    store = ReleaseStore(path, PRINT, 10**6)
    items = {key(i): drawn(i, rows=1 + i % 4) for i in range(1200)}  # more than one query's worth
    assert store.put_many(items) == items
    store.close()
    again = ReleaseStore(path, PRINT, 10**6)
    assert again.get_many([*items, key(5000)]) == items
    assert again.size == 1200
    assert counted_bytes(path) == sum(len(item.data) for item in items.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_text_is_known_by_the_laws_that_it_was_drawn_under(tmp_path: Path) -> None:
    path, item = tmp_path / "r", drawn(0)
    stores = [ReleaseStore(path, law, 10**6) for law in ("one", "two", "three")]
    mine, rows = stores[0], stores[1].in_scope("rows")
    mine.put_many({key(1): item})
    assert mine.other_laws(key(1)) == 0
    rows.put_many({RecordKey(0, key(1).content): item})
    assert mine.other_laws(key(1)) == 1
    stores[1].put_many({RecordKey(0, key(1).content): item})
    assert mine.other_laws(key(1)) == 1
    assert stores[2].in_scope("rows").other_laws(key(1)) == 1
    assert rows.other_laws(key(2)) == 0


def test_first_release_wins(tmp_path: Path) -> None:
    one = ReleaseStore(tmp_path / "r", PRINT, 10**6)
    two = ReleaseStore(tmp_path / "r", PRINT, 10**6)
    first = one.put_many({key(1): drawn(1)})
    assert two.put_many({key(1): drawn(2), key(2): drawn(3)}) == {**first, key(2): drawn(3)}
    assert one.get_many([key(1)]) == first
    assert counted_bytes(tmp_path / "r") == 2 * len(drawn(1).data)


def test_other_settings_and_edited_records_are_other_releases(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "r", PRINT, 10**6)
    store.put_many({key(1): drawn(1)})
    other = ReleaseStore(tmp_path / "r", release_fingerprint(mechanism="n", model="a", cut=1, codec="bf16"), 10**6)
    assert other.get_many([key(1)]) == {}
    assert store.get_many([RecordKey(1, content_fingerprint([1, 6]))]) == {}
    base = {"mechanism": "m", "model": "a", "cut": 1, "codec": "bf16"}
    changes = ({}, {"mechanism": "x"}, {"model": "x"}, {"cut": 2}, {"codec": "fp32"})
    prints = {release_fingerprint(**{**base, **change}) for change in changes}  # type: ignore[arg-type]
    assert len(prints) == 5


def test_large_and_bad_indices(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "r", PRINT, 10**6)
    big = RecordKey(2**64 - 1, b"x" * 16)
    store.put_many({big: drawn(1)})
    assert store.get_many([big]) == {big: drawn(1)}
    with pytest.raises(InvalidInput):
        store.get_many([RecordKey(-1, b"")])
    with pytest.raises(InvalidInput):
        ReleaseStore(tmp_path / "s", PRINT, 0)


def test_bounded_and_never_evicts(tmp_path: Path) -> None:
    size = len(drawn(0).data)
    store = ReleaseStore(tmp_path / "r", PRINT, 2 * size)
    kept = store.put_many({key(1): drawn(1), key(2): drawn(2)})
    with pytest.raises(StorageFull, match="Raise the bound"):
        store.put_many({key(2): drawn(9), key(3): drawn(3)})
    assert store.get_many([key(1), key(2), key(3)]) == kept
    assert store.put_many({key(1): drawn(7)}) == {key(1): drawn(1)}  # a repeat needs no room


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "r"
    store = ReleaseStore(path, PRINT, 10**6)
    store.put_many({key(1): drawn(1)})
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE releases SET data = zeroblob(length(data))")
    with pytest.raises(ArtifactCorrupt, match="checksum"):
        ReleaseStore(path, PRINT, 10**6).get_many([key(1)])
    (tmp_path / "text").write_text("this is not a database, " * 100)
    with pytest.raises(ArtifactCorrupt, match="not one of ours"):
        ReleaseStore(tmp_path / "text", PRINT, 10**6)


def test_disk_full_and_unwritable(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "r", PRINT, 10**9)
    with contextlib.closing(open_private(tmp_path / "r", "")) as file, file.using() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own "database or disk is full"
    with pytest.raises(StorageFull, match="full"):
        store.put_many({key(i): drawn(i, rows=500) for i in range(20)})
    assert store.size == 0
    with pytest.raises(StorageFull):
        ReleaseStore(tmp_path / "r" / "below-a-file", PRINT, 1)


def test_locked_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privtune.shared.sqlite.TIMEOUT_S", 0.05)
    store = ReleaseStore(tmp_path / "r", PRINT, 10**6)
    with sqlite3.connect(tmp_path / "r", isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(JobConflict, match="another process"):
            store.put_many({key(1): drawn(1)})
        db.execute("ROLLBACK")
    store.put_many({key(1): drawn(1)})


WRITER = """
    import os, sys
    from pathlib import Path
    from privtune.device.release.record_keys import RecordKey
    from privtune.device.release.release_store import EncodedRelease, ReleaseStore
    store = ReleaseStore(Path(sys.argv[1]), sys.argv[2], 10**9)
    index = 0
    while True:
        items = {RecordKey(index * 4 + i, b"c" * 16): EncodedRelease(1, os.urandom(4096)) for i in range(4)}
        sent = store.put_many(items)
        # Only now may the bytes leave: this line represents the wire.
        for key, item in sent.items():
            sys.stdout.write(f"{key.index} {item.data.hex()}\\n")
        sys.stdout.flush()
        index += 1
"""


def test_killed_writer_keeps_every_byte_that_left(tmp_path: Path) -> None:
    path = tmp_path / "r"
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), PRINT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().splitlines()
    process.wait()
    whole = [line for line in [*seen, *rest] if len(line.split(" ")[-1].strip()) == 8192]
    left = {RecordKey(int(i), b"c" * 16): bytes.fromhex(data) for i, data in (line.split() for line in whole)}
    store = ReleaseStore(path, PRINT, 10**9)
    kept = store.get_many(list(left))
    assert len(left) >= 59
    assert {k: item.data for k, item in kept.items()} == left
    assert store.size % 4 == 0  # a micro-batch is all or nothing
    assert counted_bytes(path) == 4096 * store.size


def _race(path: Path, seed: int, results: multiprocessing.Queue[list[bytes]]) -> None:
    store = ReleaseStore(path, PRINT, 10**9)
    sent = [store.put_many({key(i): drawn(1000 * seed + i)})[key(i)].data for i in range(40)]
    results.put(sent)


def test_two_processes_send_the_same_bytes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[bytes]] = context.Queue()
    workers = [context.Process(target=_race, args=(tmp_path / "r", seed, results)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    one, two = results.get(timeout=180), results.get(timeout=180)
    for worker in workers:
        worker.join()
    assert one == two
