"""`privtune.yaml`: the owner's own defaults for the options of every command.

An option comes before the environment, that before this file, and the file before the built-in default: typer looks
them up in this order once the file is the context's `default_map`. A `Client` of Python takes the settings of every
command.

The file is in the home folder, or where --config says; never simply in the folder that a command runs in. A file that
came with somebody's data could name another cloud and a weaker protection, and the owner's text would go there.

    cloud: https://cloud.example:8080     # for every command
    protect: names
    finetune: {epochs: 2}                 # for one
    jobs: {list: {limit: 20}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from privtune.shared.errors import InvalidInput

NAME = "privtune.yaml"
COMMON = ("cloud", "api_key", "ca_cert", "grpc_address", "patience", "home", "threads", "protect", "json")


def settings_path(given: Path | None) -> Path | None:
    """The file: `given`, else that of the home folder where there is one; None: there is none.

    Raises InvalidInput for a given file that does not exist.
    """
    from privtune.device.home.paths import default_home

    if given is not None:
        if not given.expanduser().is_file():
            raise InvalidInput(f"--config {given}: no such file.", param="config")
        return given.expanduser()
    try:
        usual = default_home() / NAME
    except RuntimeError:  # no home folder: a command that needs one says so
        return None
    return usual if usual.is_file() else None


def common_settings(path: Path | None) -> dict[str, Any]:
    """The file's settings of every command; empty without a file. Raises DataInvalid, InvalidInput."""
    if path is None:
        return {}
    from privtune.device.home.policy_file import read_mapping

    return {_plain(key): value for key, value in read_mapping(path, "`cloud:`").items() if _plain(key) in COMMON}


def settings_of(group: Any, path: Path | None) -> dict[str, Any]:
    """The file as the `default_map` of a group of commands; empty without a file.

    Raises InvalidInput for an option that no command has, DataInvalid for a file that can't be read.
    """
    if path is None:
        return {}
    from privtune.device.home.policy_file import read_mapping

    raw = {_plain(key): value for key, value in read_mapping(path, "`cloud:`").items()}
    common = {key: value for key, value in raw.items() if not _names_group(group, key, value)}
    if wrong := sorted(common.keys() - set(COMMON)):
        raise InvalidInput(
            f"{path}: `{wrong[0]}` is no setting of every command. Those are {', '.join(COMMON)}; others belong under "
            f"their command, like `finetune: {{{wrong[0]}: ...}}`.",
            param="config",
        )
    special = {key: value for key, value in raw.items() if key not in common}
    return _of_group(group, common, special, path)


def _of_group(group: Any, common: Mapping[str, Any], special: Mapping[str, Any], path: Path) -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        own = {_plain(key): value for key, value in (special.get(_plain(name)) or {}).items()}
        if hasattr(command, "commands"):
            if wrong := sorted(own.keys() - set(map(_plain, command.commands))):
                raise InvalidInput(f"{path}: there is no command `{name} {wrong[0]}`.", param="config")
            found[name] = _of_group(command, common, own, path)
        else:
            found[name] = _of_command(name, command, common, own, path)
    return found


def _of_command(
    name: str, command: Any, common: Mapping[str, Any], own: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    known = dict(_options(command))
    if wrong := sorted(own.keys() - known.keys()):
        raise InvalidInput(f"{path}: `privtune {name}` has no option --{wrong[0].replace('_', '-')}.", param="config")
    given = {key: value for key, value in common.items() if key in known} | dict(own)
    return {known[key]: _value(key, value, path) for key, value in given.items() if value is not None}


def _options(command: Any) -> Iterator[tuple[str, str]]:
    """Each option as the file names it, and as the command's function does."""
    for parameter in command.params:
        for flag in parameter.opts:
            if flag.startswith("--"):
                yield _plain(flag.removeprefix("--")), parameter.name


def _value(key: str, value: Any, path: Path) -> Any:
    if isinstance(value, Mapping):
        raise InvalidInput(f"{path}: `{key}` takes a value, not keys and values.", param="config")
    return value


def _names_group(group: Any, key: str, value: Any) -> bool:
    """Whether a key is for one command: some options are called like one."""
    return isinstance(value, Mapping) and key in map(_plain, group.commands)


def _plain(name: Any) -> str:
    return str(name).replace("-", "_")
