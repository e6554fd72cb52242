"""The noised slopes of one zeroth-order job: each drawn once, on disk before it is sent, and sent again as it was.

A step that is repeated after a lost connection or a resume would otherwise get fresh noise, which the cloud could
average away. With the public directions they are also the whole history of what the slopes changed. Beside each are
the sizes of its records' own slopes, which stay here: what a record really lost follows from them.

home/jobs/JOB/slopes.sqlite
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from privtune.device.release.draw_store import DrawStore

FILE = "slopes.sqlite"
_SCHEMA = "CREATE TABLE IF NOT EXISTS slopes (step INTEGER PRIMARY KEY, slope REAL NOT NULL, sizes BLOB NOT NULL);"


class SlopeStore(DrawStore):
    """The slopes of the job in this folder. Raises as `DrawStore`."""

    fingerprint = "slopes"  # one scope per file, unlike releases

    def __init__(self, job: Path) -> None:
        super().__init__(job / FILE, _SCHEMA, "the store of slopes", write_ahead_log=True)  # one flush a step

    def __getitem__(self, step: int) -> float | None:
        """The slope of a step; None before it was drawn."""
        with self._using() as db:
            row = db.execute("SELECT slope FROM slopes WHERE step = ?", (step,)).fetchone()
        return None if row is None else float(row[0])

    def first(self, steps: int) -> list[float]:
        """The slopes of the first steps, as many as there are without a gap."""
        with self._using() as db:
            rows = db.execute("SELECT step, slope FROM slopes WHERE step < ? ORDER BY step", (steps,)).fetchall()
        return [float(slope) for place, (step, slope) in enumerate(rows) if place == step]

    @property
    def size(self) -> int:
        """Number of stored slopes."""
        with self._using() as db:
            return int(db.execute("SELECT COUNT(*) FROM slopes").fetchone()[0])

    def sizes(self, step: int) -> npt.NDArray[np.float32]:
        """The size of each record's clipped slope in a stored step, in the order of the step's records."""
        with self._using() as db:
            (sizes,) = db.execute("SELECT sizes FROM slopes WHERE step = ?", (step,)).fetchone()
        return np.frombuffer(sizes, dtype=np.float32)

    def keep(self, step: int, slope: float, sizes_N: npt.NDArray[np.float32]) -> float:
        """Store a new slope and return what MUST be sent: the first one of a step wins. On disk on return."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO slopes VALUES (?, ?, ?)", (step, slope, sizes_N.tobytes()))
            return float(db.execute("SELECT slope FROM slopes WHERE step = ?", (step,)).fetchone()[0])
