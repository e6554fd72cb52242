"""Jobs that a device holds, without the device."""

from __future__ import annotations

from privtune.cloud.jobs.service import Jobs

HOLDER, OTHER = "a" * 32, "b" * 32  # two devices


def begin(jobs: Jobs, job_id: str, holder: str = HOLDER) -> int:
    """The job runs; the token of its session."""
    token = jobs.leases.claim(job_id, holder)
    jobs.start(job_id, token)
    return token
