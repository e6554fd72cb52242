"""What each record really lost, beside the worst case that the ledger counts and the budget bounds.

The worst case is that of the longest record with the farthest vectors. A record's own loss follows from what it is: how
many vectors it has, how far any other vector could be from each of them before the noise (`Release.share_BT`), under
how many noise distributions it was drawn, and how far it can have moved what was fitted on the records. Individual
privacy accounting: Feldman & Zrnic 2021 (arXiv 2008.11193); Yu et al. 2022 (arXiv 2206.02617).

A record's own loss bounds how far its releases shift the odds between THIS record and any other in its place. It is
computed from the record, so whoever learns it learns something of the record: it stays in the job's folder, nothing of
it is sent, and budgets are not spent by it. N records.

home/jobs/JOB/losses/*.npz    of one data set under one noise distribution
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from privtune.device.home.paths import check_job_id
from privtune.shared.at_rest import open_file, write_bytes
from privtune.shared.errors import ArtifactCorrupt, StorageFull
from privtune.shared.files import make_folder, replacing_file

FOLDER = "losses"
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OwnLosses:
    """The drawn records of one data set under one noise distribution.

    source, law: as in the ledger.
    unit: what `number_N` counts.
    number_N: line of each record in its file; int64.
    text_N: which text it is (`RecordLines`); uint64.
    rows_N: its released vectors; int64.
    nats_N: its own loss, at `delta`; float64, NaN where the mechanism has no bound.
    fisher_N: Fisher information of its vectors under noise of bounded support, relative to plain noise; NaN elsewhere.
    slopes_N: what of its own loss slopes of zeroth-order jobs are; float64.
    delta: of the guarantee.
    """

    source: str
    law: str
    unit: str
    number_N: npt.NDArray[np.int64]
    text_N: npt.NDArray[np.uint64]
    rows_N: npt.NDArray[np.int64]
    nats_N: FloatArray
    fisher_N: FloatArray
    slopes_N: FloatArray
    delta: float

    def __len__(self) -> int:
        return len(self.number_N)

    def save(self, job: Path) -> None:
        """Write them into the job's folder, whole or not at all. Raises StorageFull."""
        name = hashlib.sha256(f"{self.source}\0{self.law}\0".encode() + self.text_N.tobytes()).hexdigest()[:16]
        path = job / FOLDER / f"{name}.npz"
        try:
            make_folder(path.parent, 0o700)
            with replacing_file(path) as part:
                part.touch(0o600)
                packed = io.BytesIO()
                np.savez(packed, **{field.name: getattr(self, field.name) for field in fields(self)})
                write_bytes(part, packed.getvalue())
        except OSError as error:
            raise StorageFull(f"{path} can't be written: {error.strerror}; free room and run again") from error


def stored_losses(home: Path, source: str, job: str | None = None) -> list[OwnLosses]:
    """What the jobs of this device, or one of them, released of a data set. Raises ArtifactCorrupt for a bad file."""
    found = []
    for path in sorted((home / "jobs").glob(f"{'*' if job is None else check_job_id(job)}/{FOLDER}/*.npz")):
        try:
            with open_file(path) as file, np.load(file, allow_pickle=False) as stored:
                named = {field.name: stored[field.name] for field in fields(OwnLosses)}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ArtifactCorrupt(f"{path} is damaged; the job's next run writes it again") from error
        found.append(OwnLosses(**{name: value if value.ndim else value.item() for name, value in named.items()}))
    return [one for one in found if one.source == source]


def together(losses: Sequence[OwnLosses]) -> OwnLosses:
    """One data set over all its noise distributions: a record's losses add up, and under one it was drawn once.

    A text that is in the file several times is as many records. Where a text was on different lines, the last wins.
    """
    by_law: defaultdict[str, list[OwnLosses]] = defaultdict(list)
    for one in losses:
        by_law[one.law].append(one)
    all_texts = np.concatenate([one.text_N for one in losses])
    text_N, place = np.unique(all_texts, return_inverse=True)
    number_N, rows_N = (np.zeros(len(text_N), dtype=np.int64) for _ in range(2))
    number_N[place] = np.concatenate([one.number_N for one in losses])
    nats_N, fisher_N, slopes_N = np.zeros(len(text_N)), np.full(len(text_N), np.nan), np.zeros(len(text_N))
    for drawn in by_law.values():
        where = np.searchsorted(text_N, np.concatenate([one.text_N for one in drawn]))
        largest_N, longest_N = np.zeros(len(text_N)), np.zeros(len(text_N), dtype=np.int64)
        with np.errstate(invalid="ignore"):  # NaN, no bound, wins
            np.maximum.at(largest_N, where, np.concatenate([one.nats_N for one in drawn]))
        np.maximum.at(longest_N, where, np.concatenate([one.rows_N for one in drawn]))
        nats_N, rows_N = nats_N + largest_N, rows_N + longest_N
        np.add.at(slopes_N, where, np.concatenate([one.slopes_N for one in drawn]))  # one file a law of slopes
        np.fmax.at(fisher_N, where, np.concatenate([one.fisher_N for one in drawn]))
    return OwnLosses(
        source=losses[0].source,
        law="",
        unit=losses[-1].unit,
        number_N=number_N,
        text_N=text_N,
        rows_N=rows_N,
        nats_N=nats_N,
        fisher_N=fisher_N,
        slopes_N=slopes_N,
        delta=sum(max(one.delta for one in drawn) for drawn in by_law.values()),
    )
