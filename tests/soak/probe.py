"""How long `GET /v1/fine_tuning/jobs/JOB` takes, asked for again and again by a process that does nothing else.

    python -m tests.soak.probe URL KEY JOB OUT SECONDS_BETWEEN

Writes a line a request: when it began (seconds since 1970), its milliseconds, its status. Ends with SIGTERM.
"""

from __future__ import annotations

import itertools
import sys
import time

import httpx


def main(url: str, key: str, job_id: str, out: str, pause_s: str) -> None:
    """Ask until the process is ended."""
    headers = {"Authorization": f"Bearer {key}"}
    with open(out, "w", buffering=1) as file, httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        for _ in itertools.count():
            at, began = time.time(), time.perf_counter()
            status = client.get(f"{url}/v1/fine_tuning/jobs/{job_id}").status_code
            file.write(f"{at:.3f} {1000 * (time.perf_counter() - began):.3f} {status}\n")
            time.sleep(float(pause_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
