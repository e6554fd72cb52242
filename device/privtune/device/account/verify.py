"""Verifies a job's transcript: is it whole, and does it agree with the ledger, the releases and the kept frames?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privtune.device.account.hash_chain import chained, digest, genesis
from privtune.device.account.transcript import describe
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.at_rest import open_file, read_bytes, size_of
from privtune.shared.errors import ArtifactCorrupt, JobNotFound
from privtune.split.v1 import split_pb2 as pb

Json = dict[str, Any]
_CHAIN = ',"chain":"'
KEY_BYTES = 24
_WENT = {"up": "left", "down": "came"}


@dataclass(kw_only=True)
class Check:
    """What was found.

    runs: runs of the job.
    frames: number of frames by "direction KIND", and of calls by "call NAME".
    bytes: their bytes, by the same names.
    records: records whose release left in training.
    vectors: vectors that left.
    labels: labels that left.
    recomputed: frames whose payload was recomputed from the store of releases, or that have none.
    kept: frames that were kept and match their line.
    open: frames by kind whose payload can be neither recomputed nor compared with a kept frame.
    notes: what an owner should know, each in one line.
    problems: what is wrong, each in one line; empty for a sound transcript.
    """

    runs: int = 0
    frames: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    records: int = 0
    vectors: int = 0
    labels: int = 0
    recomputed: int = 0
    kept: int = 0
    open: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def runs_of(folder: Path) -> list[Path]:
    """The transcript files of a job, in order. Raises JobNotFound if there is none."""
    files = sorted(folder.glob("[0-9]*.jsonl"))
    if not files:
        raise JobNotFound(f"there is no transcript in {folder}; this device has not run the job")
    return files


def read_run(path: Path, job_id: str) -> tuple[list[Json], list[str], str | None]:
    """The lines of one run, their hashes, and where the chain breaks (the lines end there); None if it does not."""
    previous = genesis(job_id, str(int(path.stem)))
    lines: list[Json] = []
    hashes: list[str] = []
    for number, raw in enumerate(read_bytes(path).split(b"\n"), 1):
        if not raw:
            continue
        body, mark, tail = raw.decode("utf-8", "replace").rpartition(_CHAIN)
        previous = chained(previous, body + "}")
        if not mark or tail != previous + '"}':
            return lines, hashes, f"run {path.stem}: the chain breaks at line {number}: changed or damaged there"
        lines.append(json.loads(raw))
        hashes.append(previous)
    return lines, hashes, None


def check(job_id: str, folder: Path, ledger: Sequence[Json], releases: Path) -> Check:
    """Check all runs of a job.

    Args:
        job_id: the job.
        folder: its transcript.
        ledger: the ledger's checked entries, which hold the last hash of every run that ended.
        releases: the file of the store of releases.
    """
    found, ends = Check(), {}
    carried: set[int] = set()
    for entry in ledger:
        if entry["kind"] == "transcript" and entry["job"] == job_id:
            ends[entry["run"]] = entry
    for path in runs_of(folder):
        found.runs += 1
        lines, hashes, broken = read_run(path, job_id)
        end = ends.pop(int(path.stem), None)
        if broken is not None:
            (found.notes if end is None and _torn(path) else found.problems).append(broken)
        _against_ledger(path, lines, hashes, end, found)
        _count(path, lines, carried, found)
        _Payloads(path, lines, releases, found, ended=end is not None).check()
    found.problems += [f"run {run:04d}: it is in the ledger, but its file is gone" for run in ends]
    found.records = len(carried)
    return found


def kept_frame(path: Path, line: Json) -> pb.Frame:
    """The frame that a line describes, from the run's .frames file. Raises ArtifactCorrupt if it is a different one."""
    try:
        with open_file(path.with_suffix(".frames")) as file:
            file.seek(line["at"])
            frame = pb.Frame()
            frame.ParseFromString(file.read(line["bytes"]))
    except Exception as error:  # protobuf's DecodeError has no public home
        raise ArtifactCorrupt(f"run {path.stem}: kept frame {line['seq']} can't be read") from error
    if any(line.get(name) != value for name, value in describe(frame, line["direction"]).items()):
        raise ArtifactCorrupt(
            f"run {path.stem}: kept frame {line['seq']} is not the one that {_WENT[line['direction']]}"
        )
    return frame


def _against_ledger(path: Path, lines: list[Json], hashes: list[str], end: Json | None, found: Check) -> None:
    if end is None:
        found.notes.append(
            f"run {path.stem} has no end in the ledger (killed, still running, or power was lost): its last lines may "
            "be missing"
        )
    elif len(lines) < end["lines"] or hashes[end["lines"] - 1] != end["chain"]:
        found.problems.append(f"run {path.stem} does not end as the ledger says: lines are missing or were rewritten")


def _torn(path: Path) -> bool:
    """Whether a run's lines, which are flushed when it ends, look as after a loss of power: cut, or with gaps."""
    raw = read_bytes(path)
    return not raw.endswith(b"\n") or b"\0" in raw


def _count(path: Path, lines: list[Json], carried: set[int], found: Check) -> None:
    due: dict[tuple[str, int], int] = {}
    training = any(line.get("kind") == "STEP" for line in lines)
    for line in lines:
        if line["type"] == "note":
            found.notes.append(f"run {path.stem}: {line['text']}")
        kind = f"call {line['kind']}" if line["type"] == "call" else f"{line.get('direction')} {line.get('kind')}"
        if line["type"] not in ("call", "frame"):
            continue
        found.frames[kind] += 1
        found.bytes[kind] += line["bytes"]
        if line["type"] == "call":
            continue
        place = (line["direction"], line["session"])
        if line["seq"] != due.get(place, 0):
            gap = f"run {path.stem}: frame {due.get(place, 0)} of session {line['session']}"
            if line["direction"] == "up":
                found.problems.append(f"{gap} is missing")
            else:  # the cloud's own numbers: what it left out, or said twice, is no fault of the transcript
                found.notes.append(f"{gap} from the cloud did not come, or not in its turn")
        due[place] = line["seq"] + 1
        found.labels += line.get("labels", 0)
        if "releases" in line:
            found.vectors += line.get("shape", [0])[0]
            carried.update(line["releases"] if training else ())


class _Payloads:
    """Recomputes the payloads of one run's outgoing frames."""

    def __init__(self, path: Path, lines: list[Json], releases: Path, found: Check, *, ended: bool) -> None:
        self._path, self._lines, self._file, self._found, self._ended = path, lines, releases, found, ended
        self._store: ReleaseStore | None = None
        self._keys: list[RecordKey] = []
        self._message = b""
        self._known = False

    def check(self) -> None:
        try:
            for line in self._lines:
                if line["type"] == "records":
                    self._records(line)
                elif line["type"] == "frame" and line["direction"] == "up":
                    self._frame(line)
                elif line["type"] == "frame":
                    self._kept(line)
        finally:
            if self._store is not None:
                self._store.close()

    def _records(self, line: Json) -> None:
        """From here on, handles mean these keys."""
        file = self._path.parent / f"{line['keys']}.keys"
        packed = read_bytes(file) if file.exists() else b""
        if digest(packed) != line["keys"]:
            self._found.problems.append(f"run {self._path.stem}: {file.name} is missing or was changed")
            return
        parts = [packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)]
        self._keys = [RecordKey(int.from_bytes(part[:8], "big"), part[8:]) for part in parts]
        if self._store is not None:
            self._store.close()
        self._store = ReleaseStore(self._file, line["scope"], 1) if self._file.exists() else None

    def _frame(self, line: Json) -> None:
        kept = self._kept(line)
        if "releases" in line:
            self._message, self._known = self._released(line["releases"])
        elif line["kind"] == "TABLE" and line["chunk"][0] == 0:
            self._message = self._store.table() if self._store is not None else b""
            self._known = bool(self._message)
        if line["kind"] in ("FORWARD", "TABLE") and self._known:
            payload, self._message = self._message[: line["payload_bytes"]], self._message[line["payload_bytes"] :]
            if digest(payload) != line["payload"]:
                self._found.problems.append(
                    f"run {self._path.stem}: frame {line['seq']} carried other bytes than the store of releases holds"
                )
            else:
                self._found.recomputed += 1
        elif not line["payload_bytes"]:
            self._found.recomputed += 1  # there is nothing to recompute
        elif not kept:
            self._found.open[line["kind"]] += 1

    def _kept(self, line: Json) -> bool:
        if "at" not in line:
            return False
        frames = self._path.with_suffix(".frames")
        if not self._ended and (size_of(frames) if frames.exists() else 0) < line["at"] + line["bytes"]:
            return False  # flushed when a run ends, as its lines are: power was lost before
        try:
            kept_frame(self._path, line)
        except ArtifactCorrupt as error:
            self._found.problems.append(error.message)
            return False
        self._found.kept += 1
        return True

    def _released(self, handles: list[int]) -> tuple[bytes, bool]:
        if self._store is None or any(handle >= len(self._keys) for handle in handles):
            return b"", False
        keys = [self._keys[handle] for handle in handles]
        held = self._store.get_many(keys)
        if len(held) < len(set(keys)):
            self._found.notes.append(f"run {self._path.stem}: the store no longer holds all releases that left")
            return b"", False
        return b"".join(held[key].data for key in keys), True
