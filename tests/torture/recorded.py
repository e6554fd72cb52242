"""A job of which every file operation of both sides is on record, and both disks as they may be at any moment of it."""

from __future__ import annotations

import bisect
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privtune.device.home.encryption.conversion import unlock
from privtune.device.home.encryption.vault_key import WrappedKey
from privtune.shared.job_spec import JobSpec
from privtune.shared.sqlite import connect
from tests.support.losing_disk import Disk, Loss, write
from tests.support.strace import Operation, finished, operations, under_strace
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model
from tests.support.world import ProcessCloud

RECORDS, HELD_OUT = 24, 8
CHECKPOINT_EVERY = 2
_PIECE = 64  # bytes of a release that are looked for among those that were sent
# What trains where: the top in the cloud, or the tail here; there also on a home that is encrypted first.
JOBS: dict[str, dict[str, Any]] = {"top": {}, "tail": {"tail": 1}, "encrypted": {"tail": 1}}


@dataclass(kw_only=True)
class Recorded:
    """One job from the first start of both sides to its end.

    folder: `device/home` and `cloud/data` are below it, as they were at the end.
    operations: by side, in order.
    created: when the cloud had answered that it holds the job.
    sent: of each record's release its bytes, and how many operations of the device came before it left.
    key: of the device's home, if it is encrypted; `WrappedKey.key` finds it by the passphrase in the environment.
    """

    folder: Path
    spec: JobSpec
    models: dict[str, Path]
    job_id: str
    adapter_sha256: str
    created: float
    key: bytes | None
    operations: dict[str, list[Operation]] = field(default_factory=dict)
    sent: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "train.tsv"

    @property
    def held_out(self) -> Path:
        return self.folder / "dev.tsv"

    def at(self, side: str, moment: float) -> int:
        """How many operations of a side had ended at a moment."""
        return bisect.bisect_right(self.operations[side], moment, key=lambda operation: operation.time)

    def disk(self, side: str, count: int) -> Disk:
        """A side's disk after its first operations."""
        disk = Disk(self.folder / side)
        for operation in self.operations[side][:count]:
            disk.apply(operation)
        return disk

    def after(self, side: str, count: int, loss: Loss, to: Path, seed: int = 0) -> None:
        """Lay out a side's disk as it may be when the power is back."""
        write(self.disk(side, count).after(loss, random.Random(seed)), to)


def record(folder: Path, job: str) -> Recorded:
    """Run a job to its end, both sides under strace."""
    (folder / "cloud").mkdir(parents=True)
    (folder / "device").mkdir()
    models = {"enc": save_model(folder / "models" / "enc", "bert", "classification", num_labels=2)}
    write_sentences(folder / "train.tsv", RECORDS)
    write_sentences(folder / "dev.tsv", HELD_OUT, seed=1)
    logs = {side: folder / f"{side}.strace" for side in ("device", "cloud")}
    cloud = ProcessCloud(folder / "cloud" / "data", models, under=under_strace(logs["cloud"]))
    try:
        spec = _spec(job)
        job_id, created = cloud.create_job(spec), time.time()
        settings = {"grpc_address": cloud.grpc_address, "api_key": cloud.api_key, "another_noise": True}
        settings["record_frames"] = job != "top"
        facts = {"job": job_id, "encrypt": job == "encrypted", "spec": spec.model_dump(mode="json")}
        facts |= {"data": str(folder / "train.tsv"), "held_out": str(folder / "dev.tsv")}
        facts["settings"] = settings | {"home": str(folder / "device" / "home")}
        (folder / "facts.json").write_text(json.dumps(facts))
        command = [*under_strace(logs["device"]), sys.executable, "-m", "tests.torture.one_job"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [*command, str(folder / "facts.json")], stdout=subprocess.PIPE, env=environment, text=True
        ) as device:
            out, _ = device.communicate(timeout=300)
        assert device.returncode == 0
        finished(logs["device"], device.pid)
    finally:
        cloud.process.terminate()
        cloud.process.wait(120)  # what is recorded is slow
    finished(logs["cloud"], cloud.process.pid)
    made = Recorded(
        folder=folder,
        spec=spec,
        models=models,
        job_id=job_id,
        adapter_sha256=out.strip().splitlines()[-1],
        created=created,
        key=vault.key() if (vault := WrappedKey.load(folder / "device" / "home")) else None,
        operations={side: list(operations(log, folder / side)) for side, log in logs.items()},
    )
    made.sent = _sent(made)
    for log in logs.values():
        log.unlink()
    return made


def _sent(made: Recorded) -> dict[bytes, tuple[bytes, int]]:
    """When each release that the device holds at the end had left; raises AssertionError for one that never did."""
    sends = [(place, one.data) for place, one in enumerate(made.operations["device"]) if one.kind == "send"]
    everything, starts = b"".join(data for _, data in sends), [0]
    for _, data in sends:
        starts.append(starts[-1] + len(data))
    found = {}
    shutil.copytree(made.folder / "device" / "home", made.folder / "end")
    for record, data in stored_releases(made.folder / "end").items():
        pieces = (data[start : start + _PIECE] for start in range(0, len(data) - _PIECE + 1, _PIECE))
        at = min((place for piece in pieces if (place := everything.find(piece)) >= 0), default=-1)
        assert at >= 0, "a stored release is not among the bytes that were sent"
        found[record] = data, sends[bisect.bisect_right(starts, at) - 1][0]
    assert len(found) == RECORDS + HELD_OUT
    return found


def stored_releases(home: Path) -> dict[bytes, bytes]:
    """The releases of a home, unlocked if it is encrypted; none where it has no store yet."""
    unlock(home)
    if not (home / "releases.sqlite").exists():
        return {}
    with closing(connect(home / "releases.sqlite")) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'releases'").fetchone():
            return {}
        return dict(database.execute("SELECT record, data FROM releases").fetchall())


def _spec(job: str) -> JobSpec:
    base: dict[str, Any] = {
        "model": "enc",
        "training_file": "device://sentences",
        "cut": 1,
        "codec": "fp32",
        "mechanism": {"name": "dchi", "params": {"noise_ratio": 1.0}},
        "surrogates": {"replace": "nothing"},
        "tuning": {"rank": 4, "dropout": 0.1},
        "optim": {"learning_rate": 1e-2},
        "train": {
            "batch_size": 4,
            "accumulation": 2,
            "max_length": 16,
            "max_steps": 7,
            "epochs": 10,
            "checkpoint_every": CHECKPOINT_EVERY,
        },
    }
    return JobSpec.model_validate(base | JOBS[job])
