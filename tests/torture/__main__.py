"""Every fault at every state of the protocol, then several at once, until the time is over (`make torture`).

    python -m tests.torture --seconds 1800 --seed 7 --out docs/results/torture
    python -m tests.torture --sleep 600 --out docs/results/torture-sleep

Prints its seed and each job that did not end as the undisturbed one; the exit code is 1 if there is any. With --out it
writes FILE.json and FILE.md. With --sleep no fault comes but one: in the middle of a job one side sleeps for as long.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privtune.shared.files import write_text
from tests.support.relay import Fault, State
from tests.torture.bench import JOBS, Bench, matrix, several
from tests.torture.sleep import sleep


def main() -> int:
    """Run, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--only", help="faults whose name holds this, such as 'kill cloud'")
    parser.add_argument("--out", type=Path, help="FILE without its ending")
    parser.add_argument("--sleep", type=float, help="seconds")
    arguments = parser.parse_args()
    if arguments.sleep is not None:
        return sleep(arguments.sleep, arguments.jobs, arguments.out)
    print(f"seed {arguments.seed}", flush=True)
    chance, until = random.Random(arguments.seed), time.monotonic() + arguments.seconds
    told: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder)) as bench:
        states = {job: bench.states(job) for job in arguments.jobs}
        for job, faults in _plans(states, chance, arguments.only):
            if time.monotonic() > until:
                break
            told.append(_one(bench, job, faults))
    broken = [one for one in told if one["broken"]]
    print(f"{len(told)} jobs, {len(broken)} broken; seed {arguments.seed}")
    if arguments.out is not None:
        about = {"seed": arguments.seed, "seconds": arguments.seconds, "machine": platform.platform()}
        write_text(arguments.out.with_suffix(".json"), json.dumps(about | {"jobs": told}, indent=1) + "\n")
        write_text(arguments.out.with_suffix(".md"), _page(about, told))
    return 1 if broken else 0


def _plans(
    states: dict[str, dict[State, int]], chance: random.Random, only: str | None
) -> Iterator[tuple[str, list[Fault]]]:
    """The whole matrix in a random order, then several faults a job, without end."""
    singles = [(job, [fault]) for job, seen in states.items() for fault in matrix(seen, chance)]
    singles = [plan for plan in singles if only is None or only in str(plan[1][0])]
    chance.shuffle(singles)
    yield from singles
    while only is None:
        job = chance.choice(sorted(states))
        yield job, several(states[job], chance)


def _one(bench: Bench, job: str, faults: list[Fault]) -> dict[str, Any]:
    named, began = " + ".join(map(str, faults)), time.monotonic()
    told: dict[str, Any] = {"job": job, "faults": [str(fault) for fault in faults], "broken": ""}
    try:
        story = bench.disturbed(job, faults)
        told |= {"runs": story.runs, "unmet": [str(fault) for fault in story.unmet]}
    except (AssertionError, TimeoutError) as error:
        told["broken"] = str(error)
        print(f"BROKEN {job}, {named}: {error}", flush=True)
    told["seconds"] = round(time.monotonic() - began, 1)
    return told


def _page(about: dict[str, Any], told: list[dict[str, Any]]) -> str:
    """Jobs by fault, and how many the device had to be started again for."""
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in told:
        name = one["faults"][0].split(" at ")[0].split(" after ")[0] if len(one["faults"]) == 1 else "several"
        rows[name].append(one)
    lines = [
        "# Faults at every state of the protocol",
        "",
        f"`python -m tests.torture --seconds {about['seconds']:.0f} --seed {about['seed']}`. Jobs of five steps; each "
        "is compared with the same job undisturbed: equal adapter and held-out figures, releases on the disk before "
        "they leave, ledger charged once, sound transcript, status succeeded. Unmet: a job that ended before its "
        "fault came.",
        "",
        "| fault | jobs | unmet | device started again | broken |",
        "|---|---|---|---|---|",
    ]
    for name, ones in sorted(rows.items()):
        again = sum(len(one.get("runs", [])) > 1 for one in ones)
        unmet = sum(bool(one.get("unmet")) for one in ones)
        lines.append(f"| {name} | {len(ones)} | {unmet} | {again} | {sum(bool(one['broken']) for one in ones)} |")
    broken = [f"* {one['job']}, {', '.join(one['faults'])}: {one['broken']}" for one in told if one["broken"]]
    return "\n".join([*lines, "", *broken]).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
