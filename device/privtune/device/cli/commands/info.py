"""`privtune mechanisms` and `privtune version`: what this installation has."""

from __future__ import annotations

import json
from typing import Any

import typer

from privtune.device.cli.failures import guarded
from privtune.device.cli.options import AsJson


@guarded
def mechanisms(as_json: AsJson = False) -> None:
    """List the noise mechanisms: what each does, what it lets you claim, its parameters.

    \b
    Example:
      privtune finetune ... --mechanism gaussian --param epsilon=8
    """
    from privtune.device.noise.registry import listing

    rows = listing()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    typer.echo("\n\n".join(_described(row) for row in rows))


def _described(row: dict[str, Any]) -> str:
    lines = [f"{row['name']}: {row['summary']}", f"  paper:      {row['paper']}", f"  claim:      {row['statement']}"]
    if row["strength"]:
        tried = ", ".join(f"{value:g}" for value in row["strength"]["values"])
        lines.append(f"  tuned by:   {row['strength']['param']} ({tried}), see `privtune tune-noise`")
    for name, facts in row["params"].items():
        limits = [f"{key} {facts[key]}" for key in ("min", "above", "max", "below") if key in facts]
        choices = facts.get("choices")
        about = ", ".join([f"default {facts.get('default')}", *limits, *([" | ".join(choices)] if choices else [])])
        lines.append(f"  {name} ({about}): {facts.get('description', '')}")
    return "\n".join(lines)


@guarded
def version(as_json: AsJson = False) -> None:
    """Print the version of PrivTune and of the protocol that it speaks."""
    from privtune.shared import __version__
    from privtune.shared.wire import PROTOCOL_VERSION

    facts = {"version": __version__, "protocol_version": PROTOCOL_VERSION}
    typer.echo(json.dumps(facts) if as_json else f"privtune {__version__}, protocol {PROTOCOL_VERSION}")
