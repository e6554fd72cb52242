"""Bytes of one `words` job on the wire: vectors against ids of their table, and the states that come back in 8 bits.

    python -m research.wire_bytes --data ../shared/data --records 400 --seeds 0 1

One job a form and seed, all with the same secret order and the same releases, on MiniLM and the first records of SST-2,
with LoRA (everything else as in `--protect words`). Each is a line of docs/results/wire-bytes.cells.jsonl; a second
call measures what is missing and writes wire-bytes.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from privtune.device.audit.measurement_file import MeasurementFile
from privtune.device.data.source import DataSource
from privtune.device.home.job_folder import JobFolder
from privtune.device.noise.base import Mechanism
from privtune.device.protections.protection import protection
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import RunResult, run_job
from privtune.shared.files import write_text
from privtune.shared.job_spec import JobSpec
from research.results import MINILM
from scripts.demo import MODEL, Cloud

FORMS: dict[str, dict[str, Any]] = {
    "vectors": {},
    "ids": {},
    "ids, states in 8 bits": {"states": "int8"},
}
NAME = "wire-bytes"


class Quiet:
    """Reports nothing of a run."""

    def started(self, info: object) -> None:
        """A session begins."""

    def step(self, info: object) -> None:
        """A step is done."""

    def evaluated(self, info: object) -> None:
        """An evaluation is done."""

    def message(self, text: str) -> None:
        """Something the owner should know."""


def main() -> None:
    """Measure the missing cells and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    cells = MeasurementFile(arguments.out / f"{NAME}.cells.jsonl")
    for seed in arguments.seeds:
        missing = [form for form in FORMS if cells.find(f"{arguments.records} {seed} {form}") is None]
        if missing:
            # All forms again, so that they share the secret order and the releases.
            for form, facts in jobs(arguments.data, arguments.records, seed):
                cells.keep(f"{arguments.records} {seed} {form}", facts)
    write_text(arguments.out / f"{NAME}.md", page(cells))


def jobs(data: Path, records: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of a job in each form."""
    with tempfile.TemporaryDirectory() as folder:
        cloud = Cloud(Path(folder), "pt-" + "0" * 40, MINILM)
        try:
            yield from _jobs(cloud, Path(folder), data, records, seed)
        finally:
            cloud.stop()


def _jobs(cloud: Cloud, folder: Path, data: Path, records: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    addresses = json.loads((folder / "cloud.json").read_text())
    settings = RunSettings(
        grpc_address=addresses["grpc"], api_key=cloud.key, home=folder / "device", another_noise=True
    )
    train = DataSource(path=str(data / "sst2" / "train.tsv"), limit=records)
    held_out = DataSource(path=str(data / "sst2" / "dev.tsv"))
    fields = protection("words").fields("classification") | {
        "model": MODEL,
        "training_file": "device://sst2",
        "optim": {"learning_rate": 1e-3},
        "train": {"epochs": 2, "batch_size": 32, "max_length": 64, "seed": seed},
    }
    first = None
    for form, changes in FORMS.items():
        job_id = cloud.submit(
            {"model": MODEL, "training_file": "device://sst2", "privtune": _request(fields | changes)}
        )
        spec = JobSpec.model_validate(fields | changes)
        if first is not None:
            state = JobFolder(settings.home, first).load()
            JobFolder(settings.home, job_id).save(replace(state, spec=spec, final_step=None))
        with patch.object(Mechanism, "table", None) if form == "vectors" else contextlib.nullcontext():
            result = run_job(job_id, spec, train, held_out, settings, Quiet(), threading.Event())
        first = first or job_id
        yield form, _facts(result, settings.home / "jobs" / job_id / "transcript")


def _request(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in ("model", "training_file")}


def _facts(result: RunResult, transcript: Path) -> dict[str, Any]:
    payload: Counter[str] = Counter()
    for path in transcript.glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            if line["type"] == "frame":
                payload[f"{line['direction']} {line['kind']}"] += line["payload_bytes"]
    return {
        "rows": result.tokens,
        "seconds": round(result.seconds, 1),
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "payload": dict(sorted(payload.items())),
        "accuracy": result.metrics["accuracy"],
        "loss": result.metrics["loss"],
        "trained": result.adapter_sha256,
    }


def page(cells: MeasurementFile) -> str:
    """The table of all cells."""
    lines = [
        "# Bytes of one job",
        "",
        "`words` with LoRA on MiniLM, the first records of SST-2, two epochs, evaluated on dev. Printed by "
        "`python -m research.wire_bytes --data ../shared/data --records 400 --seeds 0 1` on 2 cores that others used "
        "too, so seconds count for little. n: records. Rows: released, without headers. Trained: SHA-256 of the tail.",
        "",
        "| form | n | seed | rows, B | table, B | all up, kB | all down, kB | seconds | accuracy | loss | trained |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, one in cells.all().items():
        records, seed, form = key.split(" ", 2)
        payload = one["payload"]
        lines.append(
            f"| {form} | {records} | {seed} | {payload['up FORWARD']:,} | {payload.get('up TABLE', 0):,} "
            f"| {one['bytes_up'] / 1e3:,.1f} | {one['bytes_down'] / 1e3:,.0f} | {one['seconds']:.0f} "
            f"| {one['accuracy']:.4f} | {one['loss']:.5f} | {one['trained'][:8]} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
