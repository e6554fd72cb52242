"""`privtune mechanisms` and `privtune version`: what this installation offers."""

from __future__ import annotations

import json
from typing import Any

import typer

from privtune.device.cli.error_report import guarded
from privtune.device.cli.options import AsJson
from privtune.device.cli.printing import print_facts


@guarded
def mechanisms(as_json: AsJson = False) -> None:
    """List the noise mechanisms: what each does, what it lets you claim, and its parameters.

    \b
    Example:
      privtune finetune ... --mechanism gaussian --param epsilon=8
    """
    from privtune.device.noise.registry import listing

    rows = listing()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for number, row in enumerate(rows):
        typer.echo(f"{'' if number == 0 else chr(10)}{row['name']}: {row['summary']}")
        print_facts(_facts(row))


def _facts(row: dict[str, Any]) -> dict[str, str]:
    facts = {"  paper": row["paper"], "  claim": row["statement"]}
    if row["strength"]:
        values = ", ".join(f"{value:g}" for value in row["strength"]["values"])
        facts["  tuned by"] = f"{row['strength']['param']} ({values}), see `privtune tune-noise`"
    for name, param in row["params"].items():
        limits = [f"{key} {param[key]}" for key in ("min", "above", "max", "below") if key in param]
        choices = [" | ".join(param["choices"])] if param.get("choices") else []
        about = ", ".join([f"default {param.get('default')}", *limits, *choices])
        facts[f"  {name}"] = f"{param.get('description', '')} ({about})"
    return facts


@guarded
def version(as_json: AsJson = False) -> None:
    """Print the version of PrivTune and of its protocol."""
    from privtune.shared.versions import OURS

    facts = {
        "version": OURS.version,
        "protocol_version": OURS.newest,
        "oldest_protocol_version": OURS.oldest,
    }
    typer.echo(json.dumps(facts) if as_json else f"privtune: {OURS}")
