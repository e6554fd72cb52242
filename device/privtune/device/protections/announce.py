"""A job's protection, where its settings differ from it, and what the cloud can read: for the owner's screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from privtune.device.protections.measured import cloud_gain
from privtune.device.protections.protection import protection
from privtune.device.protections.readable import what_the_cloud_reads
from privtune.shared.job_spec import JobSpec


def announcement(spec: JobSpec, protect: str, blocks: int | None = None) -> list[str]:
    """The protection with its settings and measured gain, settings that were overridden, and what the cloud reads.

    blocks: as of `Protection.fields`.
    """
    chosen = protection(protect)
    changed = departures(spec, protect, blocks)
    settings = _shown(chosen.fields(spec.task, blocks))
    lines = [f"protection {protect}: {chosen.summary} ({settings}). {cloud_gain(spec)}"]
    if changed:
        lines.append(f"overridden: {'; '.join(changed)}: this is no longer `{protect}`")
    return [*lines, *what_the_cloud_reads(spec)]


def departures(spec: JobSpec, protect: str, blocks: int | None = None) -> list[str]:
    """The settings of a job that are not those of the protection, like "cut 2 instead of 1"."""
    mine = spec.model_dump()
    wanted = protection(protect).fields(spec.task, blocks)
    pairs = [(path, _at(mine, path), value) for path, value in _leaves(wanted)]
    return [
        f"{' '.join(path)} {_word(_beyond(here, there))} instead of {_word(_beyond(there, here))}"
        for path, here, there in pairs
        if here != there
    ]


def _leaves(fields: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping) and name != "params":
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _beyond(value: Any, other: Any) -> Any:
    """Of parameters those that the other lacks or has otherwise; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return {name: one for name, one in value.items() if name not in other or other[name] != one}


def _at(fields: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        fields = fields[name]
    return fields


def _shown(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{' '.join(path)} {_word(value)}" for path, value in _leaves(fields) if value != {})


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_word(one)}" for name, one in value.items()) or "without any"
    return f"{value:g}" if isinstance(value, float) else str(value)
