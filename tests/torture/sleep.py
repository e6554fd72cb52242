"""One side of a job sleeps for longer than every deadline and lease, as they are in earnest."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from privtune.device.session.run_settings import RunSettings
from privtune.shared.files import write_text
from tests.torture.bench import SLEEPERS, Bench, Times

IN_EARNEST = Times(patience_s=RunSettings.no_progress_timeout, call_s=None, lease_s=60, steps=60, hung_s=1800.0)


def sleep(seconds: float, jobs: list[str], out: Path | None) -> int:
    """Every job with every sleeper, all at once, each with a cloud of its own; 1 if any ended otherwise than in peace.

    out: FILE.json and FILE.md are written.
    """
    cases = [(job, who) for job in jobs for who in SLEEPERS]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(cases)) as pool:
        told = list(pool.map(lambda case: _one(Path(folder) / "-".join(case), *case, seconds), cases))
    broken = sum(bool(one["broken"]) for one in told)
    print(f"{len(told)} jobs, {broken} broken")
    if out is not None:
        about: dict[str, Any] = {"command": f"python -m tests.torture --sleep {seconds:.0f} --jobs {' '.join(jobs)}"}
        about |= {"sleep_s": seconds, "lease_s": IN_EARNEST.lease_s, "patience_s": IN_EARNEST.patience_s}
        about |= {"machine": platform.platform(), "beside": f"{len(cases)} jobs at once on {os.cpu_count()} cores."}
        write_text(out.with_suffix(".json"), json.dumps(about | {"jobs": told}, indent=1) + "\n")
        write_text(out.with_suffix(".md"), _page(about, told))
    return 1 if broken else 0


def _one(folder: Path, job: str, who: str, seconds: float) -> dict[str, Any]:
    told: dict[str, Any] = {"job": job, "sleeper": who, "broken": ""}
    try:
        with Bench(folder, IN_EARNEST) as bench:
            story = bench.slept(job, who, seconds)
        told |= {"runs": story.runs, "awake_s": round(story.awake_s, 1)}
    except (AssertionError, TimeoutError) as error:
        told["broken"] = str(error)
    print(told, flush=True)
    return told


def _page(about: dict[str, Any], told: list[dict[str, Any]]) -> str:
    lines = [
        "# A side that sleeps",
        "",
        f"`{about['command']}`. In the middle of a job of {IN_EARNEST.steps} steps one side is stopped "
        f"(SIGSTOP) for {about['sleep_s']:.0f} s; the lease is {about['lease_s']} s, the device's "
        f"patience {about['patience_s']:.0f} s. Laptop: the device, whose connections are dead when it wakes up. Each "
        "job is compared with the same job in peace: equal adapter and held-out figures, ledger charged once, sound "
        f"transcripts, status succeeded. {about['beside']}",
        "",
        "| job | sleeps | ends of the device's runs | seconds from waking up to the job's end | broken |",
        "|---|---|---|---|---|",
    ]
    for one in told:
        runs, seconds = ", ".join(one.get("runs", [])), one.get("awake_s", "")
        lines.append(f"| {one['job']} | {one['sleeper']} | {runs} | {seconds} | {one['broken']} |")
    return "\n".join(lines) + "\n"
