"""Whether what `privtune plan` predicts is what then happens, on four jobs of one to three minutes each.

    python -m research.plan_check --data ../shared/data

For each job: a cloud process that has already trained a few steps of the same model, so that it knows its own speed;
then `privtune plan --json`, and `privtune finetune` with the very options. Each job is a line of
docs/results/plan-check.cells.jsonl; a second call runs what is missing and writes plan-check.md. On a machine that does
other things, the load of the minute of the plan is not that of the job's: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from privtune.device.audit.measurement_file import MeasurementFile
from privtune.shared.files import write_text
from research.results import MINILM, SMOLLM2
from scripts.demo import Cloud

NAME = "plan-check"
BAR = 0.30  # of what happened
_SST2 = "--model all-minilm-l6-v2 --data {data}/sst2/train.tsv --validation {data}/sst2/dev.tsv --max-length 64"
_E2E = (
    "--model decoder --task causal-lm --data {data}/e2e_nlg/dev.jsonl --prompt-column mr --completion-column ref "
    "--max-length 96"
)
JOBS = {
    "none": f"{_SST2} --limit 1500 --epochs 1 --protect none",
    "names": f"{_SST2} --limit 1500 --epochs 1 --protect names",
    "words": f"{_SST2} --limit 1000 --epochs 2 --protect words",
    "generation": f"{_E2E} --limit 60 --epochs 1 --batch-size 4 --protect names",
}
FIGURES = ("seconds", "bytes_up", "bytes_down", "memory")


def main() -> None:
    """Run the missing jobs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--jobs", nargs="+", choices=tuple(JOBS), default=list(JOBS))
    parser.add_argument(
        "--decoder",
        default=SMOLLM2.partition("=")[2],
        help="model of the generation job: a folder, or as `privtune-cloud serve --model` has it; default: packaged "
        "SmolLM2-135M",
    )
    parser.add_argument("--limit", type=int, help="fewer records of each job, to try this program")
    arguments = parser.parse_args()
    cells = MeasurementFile(arguments.out / f"{NAME}.cells.jsonl")
    for name in arguments.jobs:
        if cells.find(name) is None:
            options = JOBS[name].format(data=arguments.data.resolve()).split()
            if arguments.limit:
                options += ["--limit", str(arguments.limit)]
            cells.keep(
                name,
                checked(options, arguments.decoder) | {"options": JOBS[name], "decoder": Path(arguments.decoder).name},
            )
            print(name, json.dumps(cells.find(name)), flush=True)
    write_text(arguments.out / f"{NAME}.md", page(cells))


def checked(options: list[str], decoder: str) -> dict[str, Any]:
    """A job's plan beside what happened."""
    with tempfile.TemporaryDirectory() as folder:
        cloud = Cloud(Path(folder), "pt-" + "0" * 40, f"decoder={decoder}" if "causal-lm" in options else MINILM)
        try:
            _privtune(cloud, Path(folder) / "first", "finetune", *options, "--max-steps", "8", "--json")
            plan, _ = _privtune(cloud, Path(folder) / "home", "plan", *options, "--json")
            planned = json.loads(plan)
            batch = str(planned["job"]["train"]["batch_size"])
            given = [] if "--batch-size" in options else ["--batch-size", batch]
            events, used = _privtune(cloud, Path(folder) / "home", "finetune", *options, *given, "--json")
        finally:
            cloud.stop()
    finished = next(event for event in map(json.loads, events.splitlines()) if event["event"] == "finished")
    return {
        "planned": {
            "seconds": planned["seconds"]["total"],
            "bytes_up": planned["bytes"]["up"],
            "bytes_down": planned["bytes"]["down"],
            "memory": planned["room"]["device_memory"],
        },
        "happened": used | {name: finished[name] for name in ("bytes_up", "bytes_down")},
        "steps": finished["steps"],
        "limits": planned["limits"],
        "parts": planned["seconds"],
        "seconds_of_steps": finished["seconds"],
    }


def _privtune(cloud: Cloud, home: Path, *arguments: str) -> tuple[str, dict[str, float]]:
    """What a command printed, and its seconds and peak of memory."""
    environment = os.environ | {"PRIVTUNE_CLOUD": cloud.url, "PRIVTUNE_API_KEY": cloud.key, "PRIVTUNE_HOME": str(home)}
    command, began = [sys.executable, "-m", "privtune.device.cli", *arguments], time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=environment, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(arguments)} failed; see above")
        out.seek(0)
        return out.read(), {"seconds": time.monotonic() - began, "memory": used.ru_maxrss * 1024}


def page(cells: MeasurementFile) -> str:
    """The table of all jobs."""
    lines = [
        "# Plans and what happened",
        "",
        "Printed by `python -m research.plan_check --data ../shared/data`: what `privtune plan` predicted of a job, "
        f"what the job then took, and by how much the plan was off (aim: {BAR:.0%}). Seconds are those of the whole "
        "command; memory is the device's peak. Cloud and device on one machine.",
        "",
        "| job | figure | planned | happened | off by |",
        "|---|---|---|---|---|",
    ]
    for name, one in cells.all().items():
        for figure in FIGURES:
            planned, happened = one["planned"][figure], one["happened"][figure]
            off = planned / happened - 1
            missed = " (missed)" if abs(off) > BAR else ""
            lines.append(
                f"| {name} | {figure} | {_shown(figure, planned)} | {_shown(figure, happened)} | {off:+.0%}{missed} |"
            )
    lines += [
        "",
        *(
            f"* {name}: `privtune finetune {one['options']}`; decoder: {one['decoder']}"
            for name, one in cells.all().items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _shown(figure: str, value: float) -> str:
    return f"{value:.0f}" if figure == "seconds" else f"{value / 1e6:,.1f} MB"


if __name__ == "__main__":
    main()
