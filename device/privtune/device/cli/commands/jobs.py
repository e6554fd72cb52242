"""`privtune jobs ...`: look at jobs and steer them."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import ApiKey, AsJson, CaCert, Cloud, JobId, control_plane

app = typer.Typer(no_args_is_help=True, help="Look at jobs and steer them.")

ENDED = ("succeeded", "failed", "cancelled")
FOLLOW_S = 2.0


@app.command("list")
@guarded
def list_jobs(
    status: Annotated[list[str] | None, typer.Option(help="Only jobs of this status; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 20,
    as_json: AsJson = False,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """List your jobs, the newest first."""
    with control_plane(cloud, api_key, ca_cert) as control:
        jobs = control.list_jobs(status=status or None, limit=limit)
    if as_json:
        typer.echo(json.dumps(jobs, indent=1))
        return
    if not jobs:
        typer.echo("No jobs.")
        return
    headings = ["JOB", "STATUS", "STEP", "CREATED", "MODEL", "DATA", "REASON"]
    rows = [headings, *(_row(job) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
@guarded
def show(
    job: JobId, as_json: AsJson = False, cloud: Cloud = None, api_key: ApiKey = None, ca_cert: CaCert = None
) -> None:
    """Show one job: its state, why, how far it is, and its settings."""
    with control_plane(cloud, api_key, ca_cert) as control:
        _print_job(control.get_job(job), as_json=as_json)


@app.command()
@guarded
def cancel(
    job: JobId, as_json: AsJson = False, cloud: Cloud = None, api_key: ApiKey = None, ca_cert: CaCert = None
) -> None:
    """End a job at the next step. What was trained until its last checkpoint is kept."""
    with control_plane(cloud, api_key, ca_cert) as control:
        _print_job(control.cancel(job), as_json=as_json)


@app.command()
@guarded
def pause(
    job: JobId, as_json: AsJson = False, cloud: Cloud = None, api_key: ApiKey = None, ca_cert: CaCert = None
) -> None:
    """Hold a job at the next step until you resume it; also an agent leaves it alone."""
    with control_plane(cloud, api_key, ca_cert) as control:
        _print_job(control.pause(job), as_json=as_json)


@app.command()
@guarded
def resume(
    job: JobId, as_json: AsJson = False, cloud: Cloud = None, api_key: ApiKey = None, ca_cert: CaCert = None
) -> None:
    """Let a held job go on: its agent takes it up, or `privtune finetune --job JOB`."""
    with control_plane(cloud, api_key, ca_cert) as control:
        _print_job(control.resume(job), as_json=as_json)


@app.command()
@guarded
def events(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the job ends.")] = False,
    as_json: AsJson = False,
    cloud: Cloud = None,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Tell what happened to a job, in order."""
    seen: set[str] = set()
    with control_plane(cloud, api_key, ca_cert) as control:
        while True:
            ended = follow and control.get_job(job)["status"] in ENDED
            for event in control.events(job, seen):
                seen.add(str(event.get("id")))
                typer.echo(json.dumps(event) if as_json else _event_line(event))
            if ended or not follow:
                return
            time.sleep(FOLLOW_S)


def _print_job(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(job, indent=1))
        return
    ours = job.get("privtune") or {}
    spec = ours.get("spec") or {}
    error = job.get("error") or {}
    mechanism = spec.get("mechanism") or {}
    params = ", ".join(f"{name}={value}" for name, value in (mechanism.get("params") or {}).items())
    facts = {
        "job": job["id"],
        "status": f"{job['status']} ({ours.get('phase') or '-'})",
        "reason": ours.get("reason"),
        "error": f"{error['message']} [{error.get('code')}]" if error.get("message") else None,
        "step": _steps(job),
        "model": job.get("model"),
        "data": job.get("training_file"),
        "task": f"{spec.get('task')}, labels {spec.get('labels')}, cut {spec.get('cut')}" if spec else None,
        "mechanism": f"{mechanism.get('name')} {params}".strip() if mechanism else None,
        "created": _moment(job.get("created_at")),
        "finished": _moment(job.get("finished_at")) if job.get("finished_at") else None,
    }
    for name, value in facts.items():
        if value is not None:
            typer.echo(f"{name + ':':<11}{_clean(value)}")


def _row(job: dict[str, Any]) -> list[str]:
    reason = (job.get("privtune") or {}).get("reason")
    cells = (job["id"], job["status"], _steps(job), _moment(job.get("created_at")))
    return [_clean(cell) for cell in (*cells, job.get("model"), job.get("training_file"), reason)]


def _steps(job: dict[str, Any]) -> str | None:
    progress = (job.get("privtune") or {}).get("progress") or {}
    return f"{progress.get('step', 0)}/{progress['total_steps']}" if progress.get("total_steps") else None


def _event_line(event: dict[str, Any]) -> str:
    return f"{_moment(event.get('created_at'))}  {_clean(event.get('level')):<5} {_clean(event.get('message'))}"


def _moment(seconds: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, int) else "-"


def _clean(value: object) -> str:
    from privtune.device.link.rest import printable

    return printable(str(value)) if value not in (None, "") else "-"
