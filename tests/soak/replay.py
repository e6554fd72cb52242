"""Clients that speak the device's protocol with recorded frames, many of them in one process and without torch.

    python -m tests.soak.replay FACTS.json

Each runs one job after another: creates it, opens a session, sends what the recorded device sent (again where the cloud
asks), comes back after every lost connection, commits, and compares. Whatever is not as it must be is an error.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import httpx

from privtune.shared.metadata import AUTHORIZATION, EPOCH, JOB, REASON
from privtune.shared.wire import OUTPUT, RESEND, STEP
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc

JOBS = "/v1/fine_tuning/jobs"
COMES_BACK = ("", "CLOUD_UNREACHABLE", "SESSION_SUPERSEDED", "RATE_LIMITED")
# A channel of its own for each client, and no long waits for a new connection.
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class Wrong(AssertionError):
    """The cloud did what it must not."""


@dataclass(kw_only=True)
class Tally:
    """What the clients of a process did. counts: jobs, steps, sessions, resent micro-batches, reasons of lost ones."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)


class Replay:
    """One client. think_s: what a device's own part of a micro-batch takes."""

    def __init__(self, facts: dict[str, Any], key: str, tally: Tally, chance: random.Random) -> None:
        self._made = pickle.loads(Path(facts["recording"]).read_bytes())
        self._facts, self._key, self._tally, self._chance = facts, key, tally, chance
        self._think_s = facts["think_s"]
        self._http = httpx.AsyncClient(
            base_url=facts["url"], headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
        )
        self._channel = grpc.aio.insecure_channel(facts["gateway"], options=_CHANNEL)
        self._stub = split_pb2_grpc.SplitServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._about = ((AUTHORIZATION, f"Bearer {key}"),)
        self._steps = len(self._made.controls)

    async def run(self, until: float) -> None:
        """One job after another; the one at the end is finished."""
        async with self._http, self._channel:
            while time.time() < until:
                try:
                    await self._job()
                except Exception as error:
                    self._tally.wrong.append(f"{type(error).__name__}: {error}"[:500])
                    await asyncio.sleep(1)

    async def _job(self) -> None:
        job_id = (await self._rest("POST", JOBS, json=self._made.body))["id"]
        request = pb.OpenRequest.FromString(self._made.request)
        request.job_id, request.holder = job_id, f"{self._chance.getrandbits(128):032x}"
        digest, checkpoints = None, list[int]()
        while digest is None:
            del request.checkpoint_steps[:]
            request.checkpoint_steps.extend(checkpoints)
            try:
                digest = await self._session(request, checkpoints)
            except grpc.RpcError as error:
                self._lost(error)
                await asyncio.sleep(self._chance.uniform(0.1, 1.0))
        job = await self._rest("GET", f"{JOBS}/{job_id}")
        seen = job["status"], job["privtune"]["progress"]["step"], job["privtune"]["adapter_sha256"], digest
        if seen != ("succeeded", self._steps, self._made.adapter_sha256, self._made.adapter_sha256):
            raise Wrong(f"{job_id} ended as {seen}, not after {self._steps} steps as the recorded job")
        await self._rest("DELETE", f"{JOBS}/{job_id}")
        self._tally.counts["jobs"] += 1

    async def _session(self, request: pb.OpenRequest, checkpoints: list[int]) -> str:
        """From the newest checkpoint to the commit; the adapter's SHA-256. checkpoints: grows."""
        opened = await self._stub.Open(request, metadata=self._about, timeout=60)
        self._tally.counts["sessions"] += 1
        first = opened.resume_step
        if first not in (0, *checkpoints):
            raise Wrong(f"{request.job_id} resumes at step {first}, of which no checkpoint was reported")
        checkpoints[:] = [step for step in checkpoints if step <= first]
        place = ((JOB, request.job_id), (EPOCH, str(opened.session_epoch)))
        commit = pb.CommitRequest(
            job_id=request.job_id, session_epoch=opened.session_epoch, final_step=self._steps, tokens=1
        )
        call = self._stub.Train(metadata=(*self._about, *place)) if first < self._steps else None
        try:
            if call is not None:
                training = _Training(self._made, call, opened.session_epoch, self._tally, self._think_s)
                await training.run(first, checkpoints)
            done = await self._stub.Commit(commit, metadata=self._about, timeout=60)  # while the stream holds the job
        finally:
            if call is not None:
                call.cancel()
        return str(done.adapter_sha256)

    def _lost(self, error: grpc.RpcError) -> None:
        metadata = error.trailing_metadata() or ()
        reason = next((str(value) for key, value in metadata if key == REASON), "")
        if reason not in COMES_BACK:
            raise Wrong(f"a session ended with {reason}: {error.details()}")
        self._tally.counts[f"lost {reason or error.code().name}"] += 1

    async def _rest(self, method: str, path: str, **options: Any) -> Any:
        while True:
            answer = await self._http.request(method, path, **options)
            if answer.status_code != 429:
                break
            self._tally.counts["429"] += 1
            await asyncio.sleep(int(answer.headers["retry-after"]))
        if answer.status_code != 200:
            raise Wrong(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        return answer.json()


class _Training:
    """One training stream."""

    def __init__(self, made: Any, call: Any, epoch: int, tally: Tally, think_s: float) -> None:
        self._made, self._call, self._epoch, self._tally, self._think_s = made, call, epoch, tally, think_s
        self._seq = 0
        self._held: set[int] = set()  # records that the cloud has of this session
        self._stash: dict[tuple[int, int, int], pb.Frame] = {}

    async def run(self, first: int, checkpoints: list[int]) -> None:
        """Send all steps from `first` on, the window full as a device's is."""
        places = sorted(place for place in self._made.forwards if place[0] >= first)
        sent, began = 0, time.monotonic()
        for number, (step, micro_batch) in enumerate(places):
            while sent < min(len(places), number + self._made.in_flight):
                await self._forward(places[sent])
                sent += 1
            answer = await self._expect(step, micro_batch, OUTPUT, RESEND)
            if answer.kind == RESEND:
                self._tally.counts["resent"] += 1
                await self._forward((step, micro_batch), inline_all=True)
                answer = await self._expect(step, micro_batch, OUTPUT)
            await asyncio.sleep(self._think_s)
            await self._send(pb.Frame.FromString(self._made.gradients[step, micro_batch]))
            if number + 1 < len(places) and places[number + 1][0] == step:
                continue
            await self._send(pb.Frame.FromString(self._made.controls[step]))
            report = (await self._expect(step, 0, STEP)).report
            if report.outcome != pb.STEP_OUTCOME_APPLIED:
                raise Wrong(f"step {step} ended with outcome {report.outcome}")
            if report.checkpointed:
                checkpoints.append(step + 1)
            self._tally.counts["steps"] += 1
            self._tally.step_ms.append(1000 * (time.monotonic() - began))
            began = time.monotonic()

    async def _forward(self, place: tuple[int, int], *, inline_all: bool = False) -> None:
        frame = pb.Frame.FromString(self._made.forwards[place])
        inlined = [inline_all or record not in self._held for record in frame.forward.record_ids]
        carried = [record for record, inline in zip(frame.forward.record_ids, inlined, strict=True) if inline]
        del frame.forward.inlined[:]
        frame.forward.inlined.extend(inlined)
        frame.payload = b"".join(self._made.records[record] for record in carried)
        frame.tensor.rows = sum(length for length, one in zip(frame.forward.lengths, inlined, strict=True) if one)
        frame.crc32c = google_crc32c.value(frame.payload)
        self._held.update(carried)
        await self._send(frame)

    async def _send(self, frame: pb.Frame) -> None:
        frame.session_epoch, frame.seq = self._epoch, self._seq
        self._seq += 1
        try:
            await self._call.write(frame)
        except asyncio.InvalidStateError:  # the call has ended: its status says why
            await self._ended()

    async def _expect(self, step: int, micro_batch: int, *kinds: int) -> pb.Frame:
        while True:
            for kind in kinds:
                if (found := self._stash.pop((kind, step, micro_batch), None)) is not None:
                    return found
            frame = await self._call.read()
            if frame is grpc.aio.EOF:
                await self._ended()
            place = frame.kind, frame.step, frame.micro_batch
            if place in self._stash:
                raise Wrong(f"micro-batch {place} was answered twice")
            self._stash[place] = frame

    async def _ended(self) -> None:
        metadata = await self._call.trailing_metadata()
        code, details = await self._call.code(), await self._call.details()
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


async def main(facts: dict[str, Any]) -> Tally:
    """All clients of this process, from when the file `start` says until when."""
    tally, chance = Tally(), random.Random(facts["seed"])
    replays = [Replay(facts, key, tally, random.Random(chance.random())) for key in facts["keys"]]
    Path(facts["ready"]).touch()
    while not (start := Path(facts["start"])).exists():
        await asyncio.sleep(0.1)
    until = float(start.read_text())
    await asyncio.gather(*(one.run(until) for one in replays))
    return tally


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    ended = asyncio.run(main(given))
    Path(given["out"]).write_text(json.dumps(vars(ended)))
