"""What the cloud has of a real job: the kept frames of its transcript, put together as an attacker would.

A handle is a record's number on the wire: the job's training records in their secret order, then the held-out ones.
B records, R released rows of one, P read-out rows of a micro-batch, E epochs, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtune.device.account.transcript import FRAMES_MAX_BYTES
from privtune.device.account.verify import kept_frame, read_run, runs_of
from privtune.device.audit.attacks.gradients import SentBack
from privtune.shared.codec import FloatArray, decode, row_bytes
from privtune.shared.errors import ArtifactCorrupt, JobConflict
from privtune.shared.public_table import PublicTable
from privtune.shared.wire import FORWARD, GRADIENT, OUTPUT, STEP, FrameReader, Message, readout_positions

Json = dict[str, Any]


@dataclass(kw_only=True)
class Count:
    """Frames of one kind in one direction. kept: those on disk, which were examined."""

    frames: int = 0
    bytes: int = 0
    kept_frames: int = 0
    kept_bytes: int = 0


class Traffic:
    """The transcript of a job with its kept frames.

    keys: names the job's list of records (`digest` of their packed keys). Frames of other runs under the job's id
    (predictions) carry other records and are only counted.
    Raises JobNotFound without a transcript, JobConflict without kept frames, ArtifactCorrupt if they disagree.
    """

    def __init__(self, folder: Path, job_id: str, keys: str) -> None:
        self._keys = keys
        self._runs: list[tuple[Path, list[Json]]] = []
        self.counts: dict[str, Count] = defaultdict(Count)
        self.scopes: set[str] = set()
        self.notes: list[str] = []
        self.handles: set[int] = set()  # records whose release is in a kept frame
        for path in runs_of(folder):
            lines, _, broken = read_run(path, job_id)
            if broken is not None:
                raise ArtifactCorrupt(f"{broken}; `privtune transcript verify {job_id}` says more")
            self._runs.append((path, lines))
            self._survey(path, lines)
        if not any(count.kept_frames for count in self.counts.values()):
            raise JobConflict(
                f"job {job_id} ran without --record-frames: only hashes of its frames are here, so what was sent can't "
                "be attacked. `privtune audit --model ... --data ...` simulates it; record the next job"
            )

    def _survey(self, path: Path, lines: list[Json]) -> None:
        ours = False
        for line in lines:
            if line["type"] == "records":
                ours = line["keys"] == self._keys
                self.scopes.update([line["scope"]] if ours else [])
            elif line["type"] == "note":
                self.notes.append(f"run {path.stem}: {line['text']}")
            elif line["type"] == "call":
                self._count(f"up {line['kind']} (call)", line)
            elif line["type"] == "frame":
                self._count(f"{line['direction']} {line['kind']}" + ("" if ours else " (other records)"), line)
                if ours and "at" in line:
                    self.handles.update(line.get("releases", ()))

    def _count(self, kind: str, line: Json) -> None:
        count = self.counts[kind]
        count.frames += 1
        count.bytes += line["bytes"]
        count.kept_frames += "at" in line
        count.kept_bytes += line["bytes"] if "at" in line else 0

    def messages(self) -> Iterator[tuple[str, Message]]:
        """(session, message) of every kept frame about the job's records, in order."""
        for path, lines in self._runs:
            readers: dict[tuple[str, int], FrameReader] = {}
            ours = False
            for line in lines:
                if line["type"] == "records":
                    ours = line["keys"] == self._keys
                if not ours or "at" not in line:
                    continue
                place = (line["direction"], line["session"])
                if place not in readers:
                    readers[place] = FrameReader(epoch=line["session"], max_tensor_bytes=FRAMES_MAX_BYTES)
                message = readers[place].feed(kept_frame(path, line))
                if message is not None:
                    yield f"{path.stem}.{line['session']}", message


@dataclass(kw_only=True)
class Collected:
    """What the attacks need of the messages.

    rows: released rows of each attacked record, (R, D) float32; the mean of its draws if there are several.
    uploads: how often each record was sent, by digest of its bytes.
    gradients: those of each labelled record at the head's input, in order.
    states: the last state that the cloud computed for each labelled record.
    words: a language model's gradients by micro-batch, the first of each attacked record (record_P: its handle).
    labels: number of labels that were sent.
    both: of a zeroth-order job, by step and micro-batch: handles, and the outputs moved forwards, then backwards.
    slopes: what it answered to each step.
    """

    rows: dict[int, Tensor] = field(default_factory=dict)
    uploads: dict[int, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))
    gradients: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    states: dict[int, Tensor] = field(default_factory=dict)
    words: list[SentBack] = field(default_factory=list)
    labels: int = 0
    both: dict[int, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=lambda: defaultdict(dict))
    slopes: dict[int, float] = field(default_factory=dict)

    def gradients_EBD(self) -> tuple[list[int], Tensor]:
        """Handles, and their gradients of as many epochs as nine records in ten completed; empty without any."""
        times = sorted(len(rows) for rows in self.gradients.values())
        if not times:
            return [], torch.zeros(0, 0, 0)
        epochs = times[len(times) // 10]
        handles = sorted(handle for handle, rows in self.gradients.items() if len(rows) >= epochs)
        return handles, torch.stack([torch.stack(self.gradients[handle][:epochs]) for handle in handles], dim=1)


@dataclass(kw_only=True)
class _Pending:
    """A micro-batch in flight: record and position of each read-out row, and the output."""

    handle_P: Tensor
    place_P: Tensor
    items: float
    out_PD: Tensor | None = None


class Collector:
    """Folds messages into `Collected`.

    attacked: handles of the attacked records.
    labelled: handles for the label attack.
    words: whether the read-out rows predict tokens (a language model) rather than classes.
    table: what ids stand for; None: vectors were sent.
    """

    def __init__(
        self, attacked: set[int], labelled: set[int], *, words: bool, table: PublicTable | None = None
    ) -> None:
        self._attacked, self._labelled, self._words, self._table = attacked, labelled, words, table
        self._pending: dict[tuple[str, int, int], _Pending] = {}
        self._collected: set[int] = set()
        self._draws: Counter[int] = Counter()
        self.found = Collected()

    def take(self, session: str, message: Message) -> None:
        """One message of the job, in order."""
        place = (session, message.step, message.micro_batch)
        if message.kind == FORWARD and message.forward is not None:
            self._uploads(message)
            self._pending[place] = _pending(message)
        elif message.kind == OUTPUT and place in self._pending:
            self._output(message, self._pending[place])
            if not self._pending[place].items:
                del self._pending[place]  # only evaluated
        elif message.kind == GRADIENT and place in self._pending:
            self._gradient(message, self._pending.pop(place))
        elif message.kind == STEP and message.control is not None and message.control.HasField("slope"):
            self.found.slopes[message.step] = message.control.slope

    def _uploads(self, message: Message) -> None:
        header, at = message.forward, 0
        if header is None:
            return
        self.found.labels += len(header.shared_labels)
        bytes_a_row = row_bytes(message.width, message.codec) if message.codec else 0
        for handle, rows, now in zip(header.record_ids, header.lengths, header.inlined, strict=True):
            if not now:
                continue
            data = bytes(message.payload[at : at + rows * bytes_a_row])
            at += len(data)
            known = self.found.uploads[handle]
            name = hashlib.sha256(data).digest()
            known[name] += 1
            if handle in self._attacked and known[name] == 1:
                self._average(handle, torch.from_numpy(self._vectors(data, rows, message)))

    def _vectors(self, data: bytes, rows: int, message: Message) -> FloatArray:
        rows_RW = decode(data, rows, message.width, message.codec)
        return rows_RW if self._table is None else self._table.of_record(rows_RW)

    def _average(self, handle: int, rows_RD: Tensor) -> None:
        """Several draws of a record are averaged, as the cloud would."""
        before = self.found.rows.get(handle)
        self._draws[handle] += 1
        self.found.rows[handle] = rows_RD if before is None else before + (rows_RD - before) / self._draws[handle]

    def _output(self, message: Message, pending: _Pending) -> None:
        out_PD = torch.from_numpy(message.tensor())
        pending.out_PD = out_PD
        handles = pending.handle_P.tolist()
        # With a tail every row comes back, from blocks that nobody tuned: no more than the releases reveal.
        if self._words or len(set(handles)) < len(handles):
            return
        if len(out_PD) == 2 * len(handles):  # of a zeroth-order job, whose top moved forwards and backwards
            self.found.both[message.step][message.micro_batch] = (pending.handle_P, out_PD)
            out_PD = torch.stack(out_PD.chunk(2)).mean(0)
        for handle, out_D in zip(handles, out_PD, strict=True):
            if handle in self._labelled:
                self.found.states[handle] = out_D.clone()

    def _gradient(self, message: Message, pending: _Pending) -> None:
        gradient_PD = torch.from_numpy(message.tensor())
        if self._words:
            self._keep_words(gradient_PD, pending)
            return
        for handle, gradient_D in zip(pending.handle_P.tolist(), gradient_PD, strict=True):
            if handle in self._labelled:
                self.found.gradients[handle].append(gradient_D.clone())

    def _keep_words(self, gradient_PD: Tensor, pending: _Pending) -> None:
        new = (self._attacked & set(pending.handle_P.tolist())) - self._collected
        if not new:
            return
        self._collected |= new
        kept_P = torch.isin(pending.handle_P, torch.tensor(sorted(new)))
        self.found.words.append(
            SentBack(
                record_P=pending.handle_P[kept_P],
                place_P=pending.place_P[kept_P],
                gradient_PD=gradient_PD[kept_P],
                out_PD=None if pending.out_PD is None else pending.out_PD[kept_P],
                items=pending.items,
            )
        )


def _pending(message: Message) -> _Pending:
    header = message.forward
    if header is None:
        raise ArtifactCorrupt("a kept FORWARD frame has no header")
    positions_P = readout_positions(header)
    width = max(header.lengths, default=1)
    handles = np.array(header.record_ids, dtype=np.int64)
    # weight is the micro-batch's share of the step's loss terms; 0 where it is only evaluated.
    return _Pending(
        handle_P=torch.from_numpy(handles[positions_P // width]),
        place_P=torch.from_numpy(positions_P % width + 1),
        items=len(positions_P) / header.weight if header.weight else 0.0,
    )
