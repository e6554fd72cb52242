"""What an export calls its base: what others can load, where that is known.

A name on a hub, or a folder of this machine if the owner names one. The path of `--local-model` is never taken by
itself: it would tell whoever gets the folder about this machine.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from privtune.shared.errors import InvalidInput
from privtune.shared.manifest import read_manifest
from privtune.shared.modeling.adapter_folder import ADAPTER_CONFIG, FULL_FACTS

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # a model's name on a hub
_REF = re.compile(HUB_ID.pattern + r"(::[\w.-]+\.gguf)?")  # with a GGUF file of it


@dataclass(frozen=True, kw_only=True)
class BaseName:
    """The base of an export.

    name: a hub id, a folder, or what only the cloud calls it.
    file: the GGUF file of that hub id, if it is one.
    loads: whether `from_pretrained` finds `name`.
    """

    name: str
    file: str | None = None
    loads: bool = True

    @property
    def on_hub(self) -> bool:
        """Whether it is a name on a hub."""
        return self.loads and HUB_ID.fullmatch(self.name) is not None


def chosen_name(given: str, *, folder: bool) -> BaseName:
    """The name by which the owner calls the base. folder: whether a folder of this machine will do.

    Raises InvalidInput for anything but owner/model and such a folder.
    """
    path = Path(given).expanduser()
    if folder and path.is_dir():
        return BaseName(name=str(path.absolute()))
    if HUB_ID.fullmatch(given):
        return BaseName(name=given)
    also = " nor a folder here" if folder else ""
    raise InvalidInput(f"--base-name {given!r} is not a name like owner/model{also}.", param="base_name")


def known_name(local_model: str | None, adapter: Path, model: str) -> BaseName:
    """The base by what is known of it: the owner's reference, else the cloud's, else the job's own name for it.

    local_model: the owner's copy. adapter: the cloud's folder, whose manifest has the hub id that the cloud loads.
    model: its name in the job.
    """
    theirs = read_manifest(adapter).get("base_hub_id")
    for ref in (local_model, theirs):
        if isinstance(ref, str) and _REF.fullmatch(ref) and not Path(ref.partition("::")[0]).exists():
            name, _, file = ref.partition("::")
            return BaseName(name=name, file=file or None)
    return BaseName(name=model, loads=False)


def names_a_path(folder: Path) -> bool:
    """Whether an exported adapter names its base by a path of the machine that exported it."""
    for name in (ADAPTER_CONFIG, FULL_FACTS):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text(encoding="utf-8"))
            return Path(str(config.get("base_model_name_or_path"))).is_absolute()
    return False
