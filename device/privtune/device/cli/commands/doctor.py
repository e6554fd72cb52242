"""`privtune doctor`: is everything here that a job needs?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from privtune.device.cli.connection import Connection
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson
from privtune.device.cli.printing import print_table

if TYPE_CHECKING:
    from privtune.device.cli.doctor_checks import Diagnosis

_MARKS = {"ok": "ok", "warning": "look", "failed": "FAIL"}


@guarded
@grouped
def doctor(context: typer.Context, connection: Connection, as_json: AsJson = False) -> None:
    """Check this machine and the way to the cloud: versions, packages, disk, proxy, certificates, clock, both servers.

    Whatever is wrong comes with a remedy. The exit code is that of the first failure, as any command would end with it
    (docs/exit-codes.md); 0 where nothing failed. It sends your key and nothing else.
    """
    from privtune.device.cli.doctor_checks import examine

    findings = list(examine(connection, context.find_root().params.get("config")))
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in findings], indent=1))
    else:
        print_table(row for one in findings for row in _rows(one))
    failed = [one.code for one in findings if one.status == "failed"]
    if failed:
        raise typer.Exit(failed[0])


def _rows(finding: Diagnosis) -> list[tuple[str, str, str]]:
    rows = [(_MARKS[finding.status], finding.check, finding.found)]
    return [*rows, ("", "", f"-> {finding.remedy}")] if finding.remedy else rows
