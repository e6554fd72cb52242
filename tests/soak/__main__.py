"""Many devices on one cloud for minutes (`make soak`).

    python -m tests.soak --seconds 1200 --clients 60 --agents 4 --seed 1 --out docs/results/soak

Clients replay the frames of a real job with a tiny model; each of their jobs must end with the adapter of that job, to
the last bit, through storms in which all connections are cut at once. The exit code is 1 if anything was lost, if the
cloud's memory grew, or if `GET /v1/fine_tuning/jobs/JOB` took more than three times as long as without load (99th
percentile). With --out it writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from privtune.shared.files import write_text
from tests.soak.bench import Found, Plan, growth, percentile, soak

MOST_SLOWER = 3.0
MOST_GROWTH_MIB = 64.0


def main() -> int:
    """Run, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--think-ms", type=float, default=0.0, help="what a client's part of a micro-batch takes")
    parser.add_argument("--storm-seconds", type=float, default=120, help="between two cuts of all connections")
    parser.add_argument("--nice", type=int, default=5, help="niceness of the devices' processes")
    parser.add_argument("--out", type=Path, help="FILE without its ending")
    parser.add_argument("--keep", type=Path, help="an empty folder for everything that is written")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends all that it started
    plan = Plan(
        seconds=given.seconds,
        clients=given.clients,
        agents=given.agents,
        seed=given.seed,
        think_s=given.think_ms / 1000,
        storm_s=given.storm_seconds,
        nice=given.nice,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = soak(plan, given.keep or Path(folder))
    summary = summarised(plan, found)
    print(_page(summary))
    if given.out is not None:
        write_text(given.out.with_suffix(".json"), json.dumps(summary, indent=1) + "\n")
        write_text(given.out.with_suffix(".md"), _page(summary))
    return 1 if summary["missed"] else 0


def summarised(plan: Plan, found: Found) -> dict[str, Any]:
    """All figures, and which bars were missed."""
    idle, load = percentile(found.idle_ms, 99), percentile(found.load_ms, 99)
    grown, a_minute = growth(found)
    bars = {
        "no step lost, no answer wrong": not found.wrong and found.counts["jobs"] > 0,
        f"GET p99 at most {MOST_SLOWER:g} times idle": load <= MOST_SLOWER * idle,
        f"memory grows by less than {MOST_GROWTH_MIB:g} MiB once warm": grown < MOST_GROWTH_MIB,
    }
    return {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "plan": asdict(plan),
        "devices": plan.clients + plan.agents,
        "storms": found.storms,
        "counts": dict(sorted(found.counts.items())) | {"agent jobs": found.agent_jobs},
        "steps_per_s": round(found.counts["steps"] / found.seconds, 1),
        "step_ms": {f"p{one}": round(percentile(found.step_ms, one), 1) for one in (50, 99)},
        "cloud_cores": round(found.cpu_s / found.seconds, 2),
        "get_ms": {
            name: {f"p{one}": round(percentile(ms, one), 1) for one in (50, 90, 99)} | {"requests": len(ms)}
            for name, ms in (("idle", found.idle_ms), ("load", found.load_ms))
        },
        "get_p99_ratio": round(load / idle, 2),
        "rss_mib": [[round(at), round(mib, 1)] for at, mib in found.rss_mib[:: max(1, len(found.rss_mib) // 120)]],
        "rss_growth_mib": round(grown, 1),
        "rss_mib_a_minute": round(a_minute, 2),
        "wrong": found.wrong[:50],
        "missed": [bar for bar, held in bars.items() if not held],
    }


def _page(summary: dict[str, Any]) -> str:
    plan, get, counts = summary["plan"], summary["get_ms"], summary["counts"]
    command = f"python -m tests.soak --seconds {plan['seconds']:.0f} --clients {plan['clients']} "
    command += f"--agents {plan['agents']} --seed {plan['seed']} --think-ms {1000 * plan['think_s']:g} "
    command += f"--storm-seconds {plan['storm_s']:g} --nice {plan['nice']}"
    rss = [mib for _, mib in summary["rss_mib"]]
    rows = [
        ("devices", f"{plan['agents']} agents, {plan['clients']} clients with recorded frames"),
        ("storms, each cutting all connections at once", summary["storms"]),
        ("jobs of clients, of agents", f"{counts.get('jobs', 0)}, {counts['agent jobs']}"),
        ("steps of clients; a second", f"{counts.get('steps', 0)}; {summary['steps_per_s']}"),
        ("sessions of clients", counts.get("sessions", 0)),
        ("a step takes a client, p50, p99", f"{summary['step_ms']['p50']} ms, {summary['step_ms']['p99']} ms"),
        ("the cloud uses", f"{summary['cloud_cores']} cores"),
        *((f"GET of a job, {name}: p50, p90, p99", _three(get[name])) for name in ("idle", "load")),
        ("GET of a job, p99, load to idle", summary["get_p99_ratio"]),
        ("memory of the cloud, first, most, last", f"{rss[0]:.0f}, {max(rss):.0f}, {rss[-1]:.0f} MiB"),
        (
            "its growth in the last two thirds; a minute",
            f"{summary['rss_growth_mib']} MiB; {summary['rss_mib_a_minute']} MiB",
        ),
        ("bars missed", "; ".join(summary["missed"]) or "none"),
    ]
    lines = [
        "# Many devices on one cloud",
        "",
        f"`{command}` on {summary['machine']}. Each job of a client must end with the adapter of the recorded job, to "
        "the last bit, after its 30 steps; each job of an agent must succeed after its 30.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        *(["", *(f"* {one}" for one in summary["wrong"])] if summary["wrong"] else []),
    ]
    return "\n".join(lines) + "\n"


def _three(ms: dict[str, float]) -> str:
    return f"{ms['p50']}, {ms['p90']}, {ms['p99']} ms"


if __name__ == "__main__":
    sys.exit(main())
