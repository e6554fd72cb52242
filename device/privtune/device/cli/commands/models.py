"""`privtune models`: what a cloud offers, as jobs name it."""

from __future__ import annotations

import json
from typing import Any

import typer

from privtune.device.cli.connection import CloudOptions
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import AsJson
from privtune.device.cli.printing import print_table

HEADINGS = ("MODEL", "TASKS", "BLOCKS", "CUTS", "LONGEST TEXT")


@guarded
@grouped
def models(connection: CloudOptions, as_json: AsJson = False) -> None:
    """List the models that a job can name with --model, and what each can be tuned for.

    \b
    Example:
      privtune finetune --model minilm --data reviews.csv
    """
    with connection.control() as control:
        offered = control.models()
    if as_json:
        typer.echo(json.dumps(offered, indent=1))
    elif offered:
        print_table([_row(model) for model in offered], HEADINGS, numbers=(2,))
    else:
        typer.echo("This cloud offers no models.")


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    about = model.get("privtune") or {}
    blocks, longest = about.get("layers"), about.get("max_positions")
    cuts = f"0 to {blocks - 1}" if isinstance(blocks, int) else "-"
    tokens = "any" if longest is None else f"{longest} tokens"
    return str(model.get("id")), ", ".join(map(str, about.get("tasks") or ())), str(blocks or "-"), cuts, tokens
