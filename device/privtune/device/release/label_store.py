"""Randomised labels: one draw per record (label differential privacy), for jobs with `label_epsilon`.

The gradient of a record at the head's input reveals the label that it trains with, whatever is done to its direction
or norm, so the label itself is randomised. The cloud sees one row per record: any defence is a local one, and for two
classes every epsilon-private local mechanism is a post-processing of randomised response (Kairouz et al. 2014).

A draw is made once and kept, like a release: later epochs, a retry, a resume and later jobs train with the same one. A
job with another epsilon gets a draw that is chained to the earlier ones (`privacy.bounds.label_distributions`), so that
a record loses the largest epsilon ever used and not their sum. Dimensions: N records, C classes.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from privtune.device.data.records import Records
from privtune.device.noise.randomness import NoiseSource
from privtune.device.privacy.bounds import label_distributions, label_truth
from privtune.device.release.draw_store import DrawStore

FILE, FIXED_SEED_FILE = "labels.sqlite", "labels-fixed-seed.sqlite"
Labels = npt.NDArray[np.int64]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS draws (
    record BLOB NOT NULL, epsilon REAL NOT NULL, label INTEGER NOT NULL, PRIMARY KEY (record, epsilon)) WITHOUT ROWID;
"""
_BATCH = 500  # keys per query; SQLite allows 32,766 variables


def label_keys(records: Records, label_names: Sequence[str]) -> list[bytes]:
    """A store key for each record: its text, its label among these names, and its number among equal records.

    A key does not depend on tokens: another model or length limit trains with the same draw.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for record in records:
        content = repr((tuple(label_names), record.text, record.text2, record.label)).encode()
        seen[content] += 1
        keys.append(hashlib.sha256(content + seen[content].to_bytes(8, "big")).digest())
    return keys


class LabelStore(DrawStore):
    """The draws of this device, `home/labels.sqlite`; what is on disk wins over any later draw.

    Args:
        home: the device's folder.
        fixed_seed: for draws of a seeded source (tests), in a file of their own, so that none is taken for a real one.
    """

    fingerprint = "labels"  # one scope per file, unlike releases

    def __init__(self, home: Path, *, fixed_seed: bool = False) -> None:
        path = home / (FIXED_SEED_FILE if fixed_seed else FILE)
        super().__init__(path, _SCHEMA, "the store of randomised labels")

    @property
    def size(self) -> int:
        """Number of stored draws, of any epsilon."""
        with self._using() as db:
            return int(db.execute("SELECT COUNT(*) FROM draws").fetchone()[0])

    def missing(self, keys: Sequence[bytes], epsilon: float) -> int:
        """How many of these records have no draw of this epsilon yet."""
        with self._using() as db:
            known = self._read(db, keys)
        return sum(epsilon not in known[key] for key in keys)

    def randomised(
        self, keys: Sequence[bytes], labels_N: Labels, classes: int, epsilon: float, source: NoiseSource
    ) -> Labels:
        """The label that each record trains with at this epsilon: the stored draw, or a new one. On disk on return.

        All or nothing; no two processes draw at once.

        Args:
            keys: from `label_keys`, all different.
            labels_N: the true labels, in 0..classes-1.
            classes: number of classes C.
            epsilon: nats that a draw may reveal of its label.
            source: where new draws come from.
        """
        with self._transaction() as db:
            known = self._read(db, keys)
            todo = np.array([n for n, key in enumerate(keys) if epsilon not in known[key]], dtype=np.int64)
            drawn = draw(labels_N[todo], [known[keys[n]] for n in todo], classes, epsilon, source)
            rows = [(keys[n], epsilon, label) for n, label in zip(todo.tolist(), drawn.tolist(), strict=True)]
            db.executemany("INSERT INTO draws VALUES (?, ?, ?)", rows)
        for key, _, label in rows:
            known[key][epsilon] = label
        return np.array([known[key][epsilon] for key in keys], dtype=np.int64)

    def _read(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> defaultdict[bytes, dict[float, int]]:
        """Each record's draws: epsilon -> label."""
        found: defaultdict[bytes, dict[float, int]] = defaultdict(dict)
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            marks = ",".join("?" * len(some))
            query = f"SELECT record, epsilon, label FROM draws WHERE record IN ({marks})"
            for record, epsilon, label in db.execute(query, some):
                found[record][epsilon] = label
        return found


def draw(
    labels_N: Labels, known_N: Sequence[dict[float, int]], classes: int, epsilon: float, source: NoiseSource
) -> Labels:
    """Draw a label (N,) of this epsilon for each record, chained to the known draws of other epsilons."""
    if not len(labels_N):
        return labels_N
    truths = {other: label_truth(other, classes) for known in known_N for other in known}
    nearer, farther = labels_N.copy(), np.zeros_like(labels_N)
    nearer_truth, farther_truth = np.ones(len(labels_N)), np.zeros(len(labels_N))
    for n, known in enumerate(known_N):
        larger = min((other for other in known if other > epsilon), default=None)
        smaller = max((other for other in known if other < epsilon), default=None)
        if larger is not None:
            nearer[n], nearer_truth[n] = known[larger], truths[larger]
        if smaller is not None:
            farther[n], farther_truth[n] = known[smaller], truths[smaller]
    law_NC = label_distributions(label_truth(epsilon, classes), classes, nearer, nearer_truth, farther, farther_truth)
    return source.choice(torch.from_numpy(law_NC)).numpy()
