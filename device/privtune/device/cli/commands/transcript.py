"""`privtune transcript`: what left this device for a job, frame by frame."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.options import AsJson, Home, JobId, home_folder
from privtune.device.cli.printing import print_table
from privtune.shared.wording import counted

if TYPE_CHECKING:
    from privtune.device.account.verify import Check

app = typer.Typer(help="Show and verify what left this device for a job, frame by frame.", no_args_is_help=True)


@app.command()
@guarded
def show(
    job: JobId,
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many of the newest lines. 0: all of them.")] = 40,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Show the lines of a job's transcript; --json prints them as they are stored.

    \b
    Example:
      privtune transcript show ftjob-abc123 --limit 0 --json
    """
    from privtune.device.account.run_account import TRANSCRIPT
    from privtune.device.account.verify import read_run, runs_of
    from privtune.device.home.paths import check_job_id
    from privtune.shared.errors import ArtifactCorrupt

    folder = home_folder(home) / "jobs" / check_job_id(job) / TRANSCRIPT
    shown = []
    for path in runs_of(folder):
        lines, _, broken = read_run(path, job)
        if broken is not None:
            raise ArtifactCorrupt(f"{broken}. `privtune transcript verify {job}` says more.")
        shown += [(path.stem, line) for line in lines]
    newest = shown[-limit:] if limit else shown
    if as_json:
        for _, line in newest:
            typer.echo(json.dumps(line))
    else:
        print_table([(run, *_cells(line)) for run, line in newest])


def _cells(line: dict[str, Any]) -> tuple[str, str, str]:
    """Direction, kind and the rest of a line."""
    if line["type"] == "frame":
        shape = "x".join(map(str, line.get("shape", ())))
        what = f"step {line['step']}.{line['micro_batch']} {shape} {line.get('codec', '')}".rstrip()
        carried = (
            f", {counted(len(line['releases']), 'release')}, {line['named']} by name" if "releases" in line else ""
        )
        labels = f", {line['labels']} LABELS" if line.get("labels") else ""
        about = f"{what}, {line['bytes']:,} bytes{carried}{labels}, {line['payload'][:12]}"
        return line["direction"], line["kind"], about
    if line["type"] == "call":
        return "up", line["kind"], f"call, {line['bytes']:,} bytes, {line['hash'][:12]}"
    facts = " ".join(f"{key}={value}" for key, value in line.items() if key not in ("type", "chain"))
    return "-", line["type"], facts


@app.command()
@guarded
def verify(job: JobId, as_json: AsJson = False, home: Home = None) -> None:
    """Check a job's transcript against itself, the ledger, the stored releases and the kept frames.

    Shows which payloads could be recomputed and which could not. Exit code 14 if anything does not agree.

    \b
    Example:
      privtune transcript verify ftjob-abc123
    """
    from privtune.device.account.ledger import FILE, Ledger
    from privtune.device.account.run_account import TRANSCRIPT
    from privtune.device.account.verify import check
    from privtune.device.home.paths import check_job_id
    from privtune.shared.errors import ArtifactCorrupt

    folder = home_folder(home)
    entries = []
    if (folder / FILE).exists():
        with Ledger(folder) as ledger:
            entries = ledger.entries()
    found = check(job, folder / "jobs" / check_job_id(job) / TRANSCRIPT, entries, folder / "releases.sqlite")
    if as_json:
        typer.echo(json.dumps(vars(found), indent=1))
    else:
        _show(found)
    if found.problems:
        raise ArtifactCorrupt(f"{found.problems[0]} ({counted(len(found.problems), 'problem')} in all).")


def _show(found: Check) -> None:
    sizes = [(kind, f"{count:,}", f"{found.bytes[kind]:,}") for kind, count in sorted(found.frames.items())]
    print_table(sizes, ("frames", "number", "bytes"), numbers=(1, 2))
    up = Counter({kind: count for kind, count in found.bytes.items() if not kind.startswith("down")})
    typer.echo(f"left this device: {counted(up.total(), 'byte')} in {counted(found.runs, 'run')}")
    typer.echo(
        f"carried: {counted(found.records, 'record')} of training and validation, {counted(found.vectors, 'vector')}"
    )
    typer.echo(f"labels: {found.labels:,}" if found.labels else "labels: none")
    typer.echo(
        f"verified: {counted(found.recomputed, 'payload')} recomputed, {counted(found.kept, 'kept frame')} unchanged"
    )
    for kind, count in sorted(found.open.items()):
        typer.echo(
            f"not verified: {counted(count, 'payload')} of {kind}: only hashes are kept (`finetune "
            "--record-frames` keeps all)"
        )
    for line in (*found.notes, *found.problems):
        typer.echo(line)
