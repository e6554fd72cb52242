"""The transcript: what left this device and what came back, with the kind, shape and hash of every frame.

home/jobs/JOB/transcript/0001.jsonl    one line per frame or call, chained; one file per run of the job
home/jobs/JOB/transcript/0001.frames   with --record-frames: the frames themselves, both directions, concatenated
home/jobs/JOB/transcript/HASH.keys     24 bytes per record handle: the key under which the store keeps its release

A line is given to the operating system before its frame is given to gRPC: a killed process has sent no frame that is
not in its transcript. Lines are written on gRPC's own threads, not on the one that trains. REST (the job's description)
and the cloud's answers to a fetch are not in it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privtune.device.account.hash_chain import chained, digest, genesis
from privtune.shared.at_rest import Appender, append, size_of, write_bytes
from privtune.shared.errors import StorageFull
from privtune.shared.files import flush, make_folder, replacing_file
from privtune.split.v1 import split_pb2 as pb

FRAMES_MAX_BYTES = 8 << 30
FORMAT = 1


class Transcript:
    """Writes the lines of one run of a job. Safe to use from several threads; creates nothing before the first line.

    Args:
        folder: the job's transcript folder.
        job_id: the job.
        record_frames: keep the frames too, up to `FRAMES_MAX_BYTES` over all runs of the job.

    Raises, in every call:
        StorageFull: a line can't be written; then its frame must not leave.
    """

    def __init__(self, folder: Path, job_id: str, *, record_frames: bool = False) -> None:
        self._folder, self._job_id = folder, job_id
        # A job whose frames were kept in an earlier run continues to keep them.
        self._recording = record_frames or any(folder.glob("*.frames"))
        self._room = FRAMES_MAX_BYTES
        self._lock = threading.Lock()
        self._file: Appender | None = None
        self._frames: Appender | None = None
        self._at = 0
        self.run = self.lines = 0
        self.head = ""

    def sent(self, frame: pb.Frame) -> None:
        """A frame is about to leave."""
        self._frame(frame, "up")

    def received(self, frame: pb.Frame) -> None:
        """A frame has arrived."""
        self._frame(frame, "down")

    def call(self, name: str, request: bytes) -> None:
        """A unary call (Open, Commit, Refuse, Fetch) is about to leave, serialised as `request`."""
        with self._lock:
            self._write({"type": "call", "kind": name, "bytes": len(request), "hash": digest(request)})

    def records(self, scope: str, keys: Sequence[bytes]) -> None:
        """From here on, record handle i means the release under `keys[i]` in the store's `scope`."""
        packed = b"".join(keys)
        name = digest(packed)
        with self._lock:
            self._open()
            file = self._folder / f"{name}.keys"
            try:
                if not file.exists():
                    with replacing_file(file) as scratch:
                        scratch.touch(0o600)
                        write_bytes(scratch, packed)
            except OSError as error:
                raise self._full(error) from error
            self._write({"type": "records", "scope": scope, "keys": name, "records": len(keys)})

    def close(self) -> dict[str, Any] | None:
        """End the run's file. Returns its end, for the ledger; None if nothing was sent or received."""
        with self._lock:
            if self._file is None:
                return None
            try:
                self._write({"type": "end", "time": _now()})
                for file in (self._file, self._frames):
                    if file is not None:
                        file.sync()
                flush(self._folder)
            finally:
                for file in (self._file, self._frames):
                    if file is not None:
                        file.close()
                self._file = self._frames = None
            return {"run": self.run, "lines": self.lines, "chain": self.head}

    def _frame(self, frame: pb.Frame, direction: str) -> None:
        with self._lock:
            facts = describe(frame, direction)
            self._open()
            if self._recording and self._frames is not None:
                self._keep(frame, facts, self._frames)
            self._write(facts)

    def _write(self, facts: dict[str, Any]) -> None:
        file = self._open()
        body = json.dumps(facts, separators=(",", ":"))
        self.head = chained(self.head, body)
        line = f'{body[:-1]},"chain":"{self.head}"}}\n'.encode()
        try:
            file.write(line)
        except OSError as error:
            raise self._full(error) from error
        self.lines += 1

    def _keep(self, frame: pb.Frame, facts: dict[str, Any], frames: Appender) -> None:
        raw = frame.SerializeToString()
        if self._at + len(raw) > self._room:
            self._recording = False
            self._write({"type": "note", "text": "the size limit is reached: no more frames are kept"})
            return
        try:
            frames.write(raw)
        except OSError as error:
            raise self._full(error) from error
        facts["at"] = self._at
        self._at += len(raw)

    def _open(self) -> Appender:
        if self._file is not None:
            return self._file
        try:
            make_folder(self._folder, 0o700)
            self._room -= sum(size_of(file) for file in self._folder.glob("*.frames"))
            self.run = max((int(file.stem) for file in self._folder.glob("[0-9]*.jsonl")), default=0)
            while self._file is None:
                self.run += 1
                path = self._folder / f"{self.run:04d}.jsonl"
                try:
                    self._file = append(path, new=True)
                except FileExistsError:
                    continue  # another process of this job (a prediction) has taken the number
            if self._recording:
                self._frames = append(path.with_suffix(".frames"))
        except OSError as error:
            raise self._full(error) from error
        self.head = genesis(self._job_id, str(self.run))
        self._write({"type": "start", "format": FORMAT, "job": self._job_id, "run": self.run, "time": _now()})
        return self._file

    def _full(self, error: OSError) -> StorageFull:
        return StorageFull(
            f"the transcript in {self._folder} can't be written ({error.strerror}), so nothing more was sent; free "
            "room and run again",
            detail=str(error),
        )


def describe(frame: pb.Frame, direction: str) -> dict[str, Any]:
    """A frame's line: what can be said without its content, a hash of its payload, and a hash of the rest."""
    payload = frame.payload
    head = pb.Frame()
    head.CopyFrom(frame)
    head.ClearField("payload")
    facts: dict[str, Any] = {
        "type": "frame",
        "direction": direction,
        "kind": _named(pb.FrameKind, frame.kind, "FRAME_KIND_"),
        "session": frame.session_epoch,
        "seq": frame.seq,
        "step": frame.step,
        "micro_batch": frame.micro_batch,
        "chunk": [frame.chunk_index, frame.chunk_count],
        "bytes": frame.ByteSize(),
        "payload_bytes": len(payload),
        "payload": digest(payload),
        "rest": digest(head.SerializeToString(deterministic=True)),
    }
    if frame.HasField("tensor"):
        codec = _named(pb.Codec, frame.tensor.codec, "CODEC_").lower()
        facts |= {"shape": [frame.tensor.rows, frame.tensor.width], "codec": codec}
    if frame.HasField("forward"):
        header = frame.forward
        carried = [handle for handle, now in zip(header.record_ids, header.inlined, strict=False) if now]
        facts |= {"releases": carried, "named": len(header.record_ids) - len(carried)}
        facts |= {"labels": len(header.shared_labels)} if header.shared_labels else {}
    return facts


def _named(enum: Any, number: int, prefix: str) -> str:
    """An enum's value without its prefix; the cloud may send a number that has no name."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else str(value.name).removeprefix(prefix)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
