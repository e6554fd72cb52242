"""What spot checks found, and the chance of a cloud that cheats to be noticed by them."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from privtune.shared.at_rest import read_text
from privtune.shared.wording import counted

FILE = "spot_checks.json"  # in the job's folder
SURE = 0.95


@dataclass(frozen=True, kw_only=True)
class SpotReport:
    """What was checked, over all runs of a job on this device.

    share: the chance of each piece of work to be checked.
    unit: of work: a micro-batch of states, or a step.
    answered: pieces that the cloud answered.
    checked: of them, those that were computed here as well.
    unrepeatable: drawn, but their dropout can't be drawn here; the cloud says so, and may lie.
    interrupted: drawn, and the connection was lost before the cloud had shown them; they were drawn again.
    worst: the largest difference as a share of its tolerance; above 1 the job ends.
    seconds: that the checks took.
    """

    share: float
    unit: Literal["micro-batch", "step"]
    answered: int = 0
    checked: int = 0
    unrepeatable: int = 0
    interrupted: int = 0
    worst: float = 0.0
    seconds: float = 0.0

    def chance(self, cheated: int) -> float:
        """Of a cloud that cheats in this many pieces of work to be noticed."""
        drawn = self.checked + self.unrepeatable
        share = self.share * (self.checked / drawn if drawn else 1.0)
        return float(1 - (1 - share) ** cheated)

    def line(self) -> str:
        """For a person."""
        line = f"Spot checks: {self.checked:,} of {counted(self.answered, self.unit)} computed here as well"
        if self.checked:
            line += f"; largest difference {self.worst:.0%} of what rounding explains"
        if self.unrepeatable:
            line += f"; {self.unrepeatable:,} more could not be repeated here, so says the cloud (dropout)"
        if self.interrupted:
            line += f"; {self.interrupted:,} interrupted by a lost connection"
        if 0 < self.chance(1) < 1:
            needed = math.ceil(math.log(1 - SURE) / math.log(1 - self.chance(1)))
            line += f". Cheating in {needed:,} of them would have been noticed with a chance of {SURE:.0%}"
        return line + "."


def kept_report(folder: Path) -> SpotReport | None:
    """What a job's folder says of its checks; None where it says nothing that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return SpotReport(**json.loads(read_text(folder / FILE))["report"])
    return None
