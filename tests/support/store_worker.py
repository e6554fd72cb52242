"""One process of `tests/integration/test_stores_survive.py`: uses every store of a home as a command would.

python -m tests.support.store_worker HOME LOG KIND: draws until it is killed or its standard input ends. What has been
"sent" is appended to LOG, one line each, only after its store said that it is on disk. Kinds: `serving`, `training`,
and `labelling`, which alone needs torch and is therefore slow to start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from privtune.device.account.ledger import Ledger
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import EncodedRelease, ReleaseStore

RECORDS, MAX_BYTES = 50_000, 1 << 40
FILES = {"releases": "releases.sqlite", "states": "states.sqlite"}


def label_key(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def release_key(number: int) -> RecordKey:
    return RecordKey(number, b"c" * 16)


def releases(store: ReleaseStore, name: str, rng: random.Random) -> Iterator[str]:
    """Draw a micro-batch, of which others may have drawn some."""
    items = {release_key(rng.randrange(RECORDS)): EncodedRelease(1, os.urandom(3000)) for _ in range(4)}
    for key, sent in store.put_many(items).items():
        yield f"{name} {store.fingerprint} {key.index} {hashlib.sha256(sent.data).hexdigest()}"


def labels(home: Path, rng: random.Random) -> Iterator[str]:
    """Open the store, draw, close."""
    import numpy as np

    from privtune.device.noise.randomness import OsNoise
    from privtune.device.release.label_store import LabelStore

    numbers = rng.sample(range(RECORDS), 4)
    with contextlib.closing(LabelStore(home)) as store:
        truth = np.zeros(len(numbers), dtype=np.int64)
        drawn = store.randomised([label_key(number) for number in numbers], truth, 2, 1.0, OsNoise())
    for number, label in zip(numbers, drawn.tolist(), strict=True):
        yield f"labels - {number} {label}"


def entries(home: Path, rng: random.Random) -> Iterator[str]:
    """Open the ledger, enter, close."""
    number = rng.getrandbits(60)
    with Ledger(home) as ledger:
        ledger.note("tested", {"number": number})
    yield f"ledger - {number} entered"


def main(home: Path, log: Path, kind: str) -> None:
    # As `serve` and `finetune` do: stores stay open, and others of the same file come and go beside them.
    stay = {name: ReleaseStore(home / file, name, MAX_BYTES) for name, file in FILES.items() if kind != "labelling"}
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def draw(rng: random.Random) -> Iterator[str]:
        for name, store in stay.items():
            yield from releases(store, name, rng)
            if kind == "serving":
                with contextlib.closing(store.in_scope(f"{name}-texts")) as texts:
                    yield from releases(texts, name, rng)
        if kind == "labelling":
            yield from labels(home, rng)
        if rng.random() < 0.2:
            yield from entries(home, rng)

    done = threading.Event()

    def loop() -> None:
        rng = random.Random()
        while not done.is_set():
            for line in draw(rng):
                os.write(sink, f"{line}\n".encode())

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(2 if kind == "serving" else 1)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    done.set()
    for thread in threads:
        thread.join()
    for store in stay.values():
        store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
