"""The protections by name and their settings. A job holds the settings, never the name: the cloud sees no other kind.

`names` replaces what identifies and lets the cloud train everything. `words` and `all` send one of few codes for each
token, and the last block (of a language model: the last four) trains on the device on clean vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import SurrogateSpec, Task

DEFAULT = "names"  # of both tasks; docs/protections.md says why
_NOTHING = {"replace": "nothing"}
_IDENTIFYING = {"replace": "identifying", "rank": SurrogateSpec().rank}
_CLEAN = {"name": "none", "params": {}}
# The class means are private too: their noise costs each record 8 nats, once per data set.
_TASK = {"task": "private", "epsilon_task": 8.0}
_LM_TAIL = 4


@dataclass(frozen=True, kw_only=True)
class Protection:
    """A protection.

    name: as options and policies name it.
    summary: what leaves and what does not, in one sentence without a full stop.
    claim: what may be claimed.
    settings: fields of a classifier's `JobSpec`, nested as there; of MiniLM's, which has six blocks.
    half: the cut is half of the model's blocks.
    """

    name: str
    summary: str
    claim: str
    settings: Mapping[str, Any]
    half: bool = False

    def fields(self, task: Task, blocks: int | None = None) -> dict[str, Any]:
        """Fields of a `JobSpec` of this task: a fresh copy that may be changed.

        blocks: of the model; None where that is not known, or does not count (`half`).
        """
        fields = deepcopy(dict(self.settings))
        if task == "causal-lm" and fields["tail"]:
            fields["tail"] = _LM_TAIL
            params = fields["mechanism"]["params"]
            fields["mechanism"]["params"] = {key: value for key, value in params.items() if "task" not in key}
        if self.half and blocks is not None:
            fields["cut"] = max(1, min(blocks // 2, blocks - 1 - fields["tail"]))  # some are left to the cloud
        return fields


_ENTRIES = (
    Protection(
        name="none",
        summary="every word leaves, and the cloud trains on it",
        claim="nothing",
        settings={"cut": 1, "tail": 0, "mechanism": _CLEAN, "surrogates": _NOTHING},
    ),
    Protection(
        name="names",
        summary="what identifies is replaced first, all other words leave, and the cloud trains on them",
        claim="loss 0 between words of one type for what was replaced, given types and which words are equal; the "
        "others are in clear",
        settings={"cut": 1, "tail": 0, "mechanism": _CLEAN, "surrogates": _IDENTIFYING},
    ),
    Protection(
        name="words",
        summary="one of 32 codes leaves for each token, and the device trains the last block",
        claim="nothing for the codes, which are measured only; 8 nats a record, once, for the class means",
        settings={
            "cut": 2,
            "tail": 1,
            "skip": "tuned",
            "mechanism": {"name": "codes", "params": {"codes": 32, "dims": 4, **_TASK}},
            "surrogates": _NOTHING,
        },
    ),
    Protection(
        name="all",
        summary="one of 8 codes leaves for each token, seldom the true one, and the device has half of the blocks and "
        "trains the last one too",
        half=True,
        claim="1 nat a vector, n nats a record of n vectors or a word in it; 8 nats a record, once, for the class "
        "means",
        settings={
            "cut": 3,
            "tail": 1,
            "skip": "tuned",
            "mechanism": {
                "name": "codes",
                "params": {"codes": 8, "dims": 4, **_TASK, "task_use": "hide", "epsilon_code": 1.0},
            },
            "surrogates": _NOTHING,
        },
    ),
)
PROTECTIONS: Mapping[str, Protection] = MappingProxyType({entry.name: entry for entry in _ENTRIES})  # weakest first
RANK: Mapping[str, int] = MappingProxyType({name: rank for rank, name in enumerate(PROTECTIONS)})


def protection(name: str) -> Protection:
    """The protection of this name. Raises InvalidInput that lists the names."""
    if name not in PROTECTIONS:
        raise InvalidInput(f"There is no protection '{name}'; there are: {', '.join(PROTECTIONS)}.", param="protect")
    return PROTECTIONS[name]
