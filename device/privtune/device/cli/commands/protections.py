"""`privtune protections`: the protections by name, what the cloud reads under each, and what each costs."""

from __future__ import annotations

import json

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.options import AsJson
from privtune.device.cli.printing import print_table


@guarded
def protections(as_json: AsJson = False) -> None:
    """Compare the protections that --protect and policies name: who reads what, what it costs, what may be claimed.

    An informed attacker knows the mechanism; a strong one has also tuned a whole encoder to read what is sent. The
    cloud gain is what the cloud adds to the same device alone, with its 95% interval. MB and seconds are of one job.

    \b
    Example:
      privtune finetune --model minilm --data reviews.csv --protect names
    """
    from privtune.device.protections.protection import PROTECTIONS
    from privtune.device.protections.table import HEADINGS, first_line, listing, table

    if as_json:
        typer.echo(json.dumps(listing(), indent=1))
        return
    for chosen in PROTECTIONS.values():
        typer.echo(first_line(chosen))
    typer.echo("\nMiniLM on SST-2, test split; other models and texts differ (docs/protections.md):\n")
    print_table(table(), HEADINGS)
