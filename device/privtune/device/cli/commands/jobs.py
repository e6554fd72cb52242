"""`privtune jobs ...`: list, show, pause, resume, release, cancel and delete jobs."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from privtune.device.cli.connection import CloudOptions
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson, JobId
from privtune.device.cli.printing import print_facts, print_table

app = typer.Typer(no_args_is_help=True, help="List, show, pause, resume, release, cancel and delete jobs.")

ENDED = ("succeeded", "failed", "cancelled")
FOLLOW_S = 2.0
HEADINGS = ("JOB", "STATUS", "STEP", "CREATED", "MODEL", "DATA", "REASON")


@app.command("list")
@guarded
@grouped
def list_jobs(
    connection: CloudOptions,
    status: Annotated[list[str] | None, typer.Option(help="Only jobs with this status; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many jobs.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first."""
    with connection.control() as control:
        jobs = control.list_jobs(status=status or None, limit=limit)
    if as_json:
        typer.echo(json.dumps(jobs, indent=1))
    elif jobs:
        print_table([_row(job) for job in jobs], HEADINGS)
    else:
        typer.echo("No jobs.")


@app.command()
@guarded
@grouped
def show(job: JobId, connection: CloudOptions, as_json: AsJson = False) -> None:
    """Show one job: its state and the reason for it, its progress and its settings, and what spot checks found here."""
    from privtune.device.home.paths import job_path
    from privtune.device.training.spot_report import kept_report

    with connection.control() as control:
        found = control.get_job(job)
    report = kept_report(job_path(connection.folder, job))
    _print_job(found, as_json=as_json, checked=None if report is None else report.line())


@app.command()
@guarded
@grouped
def cancel(job: JobId, connection: CloudOptions, as_json: AsJson = False) -> None:
    """End a job after the current step, or within seconds. What was trained up to its last checkpoint is kept."""
    with connection.control() as control:
        _print_job(control.cancel(job), as_json=as_json)


@app.command()
@guarded
@grouped
def pause(job: JobId, connection: CloudOptions, as_json: AsJson = False) -> None:
    """Hold a job after the current step until you resume it. Agents leave it alone meanwhile."""
    with connection.control() as control:
        _print_job(control.pause(job), as_json=as_json)


@app.command()
@guarded
@grouped
def resume(job: JobId, connection: CloudOptions, as_json: AsJson = False) -> None:
    """Release a held job. Its agent then continues it; without an agent, run `privtune finetune --job JOB`."""
    with connection.control() as control:
        _print_job(control.resume(job), as_json=as_json)


@app.command()
@guarded
@grouped
def release(job: JobId, connection: CloudOptions, as_json: AsJson = False) -> None:
    """Take a job from its device, which may be lost, for another one. There it begins from its first step."""
    with connection.control() as control:
        _print_job(control.release(job), as_json=as_json)


@app.command()
@guarded
@grouped
def delete(
    job: JobId,
    connection: CloudOptions,
    releases: Annotated[
        bool,
        typer.Option(
            "--releases",
            help="Delete the job's releases here as well, unless other jobs have them. Later jobs can't release these "
            "texts under the same noise again.",
        ),
    ] = False,
    here: Annotated[bool, typer.Option("--here", help="Delete it on this device only; no cloud is asked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a job that has ended, in the cloud and on this device, for good: checkpoints, adapter, head, transcript,
    events. Export a model that you want to keep first. A receipt says what went, and what stays and why.

    \b
    Example:
      privtune jobs delete ftjob-5f0f6c2e9d7a4b1c8e3d2a10
    """
    from dataclasses import asdict

    from privtune.device.account.delete_job import delete_here
    from privtune.device.home.paths import job_path
    from privtune.shared.errors import JobNotFound

    folder, receipt = connection.folder, None
    held = job_path(folder, job).exists()
    if not here:
        with connection.control() as control:
            try:
                receipt = control.delete_job(job)
            except JobNotFound:
                if not held:
                    raise
    elif not held:
        raise JobNotFound(f"This device holds nothing of job {job[:80]!r}.")
    local = delete_here(folder, job, releases=releases)
    if as_json:
        typer.echo(json.dumps({"job": job, "cloud": receipt, "device": asdict(local)}, indent=1))
        return
    if not held:
        typer.echo("This device held nothing of it, or no longer.")
    if receipt is not None:
        why = "for its age" if receipt.get("why") == "age" else "at its owner's word"
        typer.echo(f"The cloud deleted it on {_moment(receipt.get('deleted_at'))}, {why}. Its receipt of then:")
    rows = [("device", kind, f"{amount.count:,}", _size(amount.bytes)) for kind, amount in local.went.items()]
    rows += [("cloud", *_amount(kind, amount)) for kind, amount in (receipt or {}).get("went", {}).items()]
    print_table(rows, ("WHERE", "WENT", "COUNT", "SIZE"), numbers=(2, 3))
    for where, stays in (("on this device", local.stays), ("in the cloud", (receipt or {}).get("stays", {}))):
        for what, why in stays.items():
            typer.echo(f"Stays {where}: {what}: {why}.")


@app.command()
@guarded
@grouped
def events(
    job: JobId,
    connection: CloudOptions,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more events until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what happened to a job, oldest event first."""
    seen: set[str] = set()
    with connection.control() as control:
        while True:
            ended = follow and control.get_job(job)["status"] in ENDED
            for event in control.events(job, seen):
                seen.add(str(event.get("id")))
                typer.echo(json.dumps(event) if as_json else _event_line(event))
            if ended or not follow:
                return
            time.sleep(FOLLOW_S)


def _print_job(job: dict[str, Any], *, as_json: bool, checked: str | None = None) -> None:
    if as_json:
        typer.echo(json.dumps(job, indent=1))
        return
    ours = job.get("privtune") or {}
    spec = ours.get("spec") or {}
    error = job.get("error") or {}
    mechanism = spec.get("mechanism") or {}
    params = ", ".join(f"{name}={value}" for name, value in (mechanism.get("params") or {}).items())
    facts: dict[str, Any] = {
        "job": job["id"],
        "status": f"{job['status']} ({ours.get('phase') or '-'})",
        "reason": ours.get("reason"),
        "error": f"{error['message']} [{error.get('code')}]" if error.get("message") else None,
        "step": _steps(job),
        "model": job.get("model"),
        "data": job.get("training_file"),
        "task": f"{spec.get('task')}, labels {spec.get('labels')}, cut {spec.get('cut')}" if spec else None,
        "replaced": _replaced(spec.get("surrogates")),
        "mechanism": f"{mechanism.get('name')} {params}".strip() if mechanism else None,
        "checked": checked,
        "created": _moment(job.get("created_at")),
        "finished": _moment(job.get("finished_at")) if job.get("finished_at") else None,
    }
    print_facts({name: _clean(value) for name, value in facts.items() if value is not None})


def _replaced(surrogates: object) -> str | None:
    """What surrogates replace; None where the cloud does not say."""
    if not isinstance(surrogates, dict):
        return None
    if surrogates.get("replace") != "identifying":
        return str(surrogates.get("replace"))
    rank = surrogates.get("rank")
    rare = f", and words rarer than the {rank:,} most common" if isinstance(rank, int) else ""
    return f"what identifies{rare}"


def _row(job: dict[str, Any]) -> list[str]:
    reason = (job.get("privtune") or {}).get("reason")
    cells = (job["id"], job["status"], _steps(job), _moment(job.get("created_at")))
    return [_clean(cell) for cell in (*cells, job.get("model"), job.get("training_file"), reason)]


def _steps(job: dict[str, Any]) -> str | None:
    progress = (job.get("privtune") or {}).get("progress") or {}
    return f"{progress.get('step', 0)}/{progress['total_steps']}" if progress.get("total_steps") else None


def _event_line(event: dict[str, Any]) -> str:
    return f"{_moment(event.get('created_at'))}  {_clean(event.get('level'))}  {_clean(event.get('message'))}"


def _moment(seconds: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, int) else "-"


def _amount(kind: str, amount: object) -> tuple[str, str, str]:
    """One kind of a cloud's receipt, which may hold anything."""
    facts = amount if isinstance(amount, dict) else {}
    count, size = facts.get("count"), facts.get("bytes")
    return kind.replace("_", " "), f"{count:,}" if isinstance(count, int) else _clean(count), _size(size)


def _size(amount: object) -> str:
    """Bytes for people; nothing for what is no file."""
    if not isinstance(amount, int) or not amount:
        return "-"
    return f"{amount / 1e6:,.1f} MB" if amount >= 1e5 else f"{amount / 1e3:,.1f} kB"


def _clean(value: object) -> str:
    return str(value) if value not in (None, "") else "-"
