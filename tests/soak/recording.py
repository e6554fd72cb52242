"""The frames of a real job, kept so that a client without a model can be the device of another one.

On a CPU a job is a function of its frames, so the cloud must make the same adapter of them each time, to the last bit.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from privtune.device.training.job import run_job
from privtune.shared.job_spec import JobSpec
from privtune.shared.wire import FORWARD, GRADIENT, STEP
from privtune.split.v1 import split_pb2 as pb
from tests.support.sessions import request_for
from tests.support.transcripts import recorded_frames
from tests.support.world import Watcher, World

STEPS = 30
BATCH = 8
ACCUMULATION = 2


@dataclass(kw_only=True)
class Recording:
    """What a device sent for one job. Messages are frames, each of one chunk, by (step, micro-batch).

    body: of the request that creates the job.
    request: the serialised OpenRequest, of no job yet.
    records: the bytes of each record's release, by handle.
    forwards, gradients: serialised; the payloads of forwards are in `records`.
    controls: serialised frames, by step.
    """

    body: dict[str, Any]
    request: bytes
    in_flight: int
    adapter_sha256: str = ""
    records: dict[int, bytes] = field(default_factory=dict)
    forwards: dict[tuple[int, int], bytes] = field(default_factory=dict)
    gradients: dict[tuple[int, int], bytes] = field(default_factory=dict)
    controls: dict[int, bytes] = field(default_factory=dict)


def job_spec(world: World, training_file: str) -> JobSpec:
    """A short job with noise, dropout and checkpoints."""
    return world.spec(
        training_file=training_file,
        mechanism={"name": "dchi", "params": {"noise_ratio": 6.0}},
        tuning={"rank": 4, "dropout": 0.1},
        train={
            "batch_size": BATCH,
            "accumulation": ACCUMULATION,
            "max_steps": STEPS,
            "epochs": 10,
            "checkpoint_every": 5,
        },
    )


def record(world: World) -> Recording:
    """Run a job to its end and keep what its device sent."""
    spec = job_spec(world, "device://sentences")
    job_id = world.cloud.create_job(spec)
    settings = world.device(record_frames=True)
    done = run_job(job_id, spec, world.data, None, settings, Watcher(), threading.Event())
    made = Recording(
        body=_body(spec),
        request=request_for(world, "", spec, total_steps=STEPS).SerializeToString(),
        in_flight=spec.train.in_flight,
        adapter_sha256=done.adapter_sha256,
    )
    for line, frame in recorded_frames(settings.home / "jobs" / job_id / "transcript", job_id):
        if line["direction"] == "up":
            _keep(made, frame)
    assert len(made.forwards) == len(made.gradients) == STEPS * ACCUMULATION
    assert len(made.controls) == STEPS
    return made


def _body(spec: JobSpec) -> dict[str, Any]:
    fields = spec.model_dump(mode="json", exclude_none=True)
    return {name: fields.pop(name) for name in ("model", "training_file")} | {"privtune": fields}


def _keep(made: Recording, frame: pb.Frame) -> None:
    assert frame.chunk_count == 1
    place = frame.step, frame.micro_batch
    if frame.kind == FORWARD:
        made.records |= _releases(frame)
        frame.ClearField("payload")
        made.forwards[place] = frame.SerializeToString()
    elif frame.kind == GRADIENT:
        made.gradients[place] = frame.SerializeToString()
    elif frame.kind == STEP:
        made.controls[frame.step] = frame.SerializeToString()


def _releases(frame: pb.Frame) -> dict[int, bytes]:
    """The bytes of each record that a frame (of one chunk) carries, by handle."""
    found, start, header = {}, 0, frame.forward
    rows = sum(length for length, inlined in zip(header.lengths, header.inlined, strict=True) if inlined)
    for handle, length, inlined in zip(header.record_ids, header.lengths, header.inlined, strict=True):
        if inlined:
            size = len(frame.payload) * length // rows
            found[handle] = frame.payload[start : start + size]
            start += size
    return found
