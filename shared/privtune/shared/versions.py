"""Which versions of the protocol this side speaks, and which one two sides agree on.

Each side says the oldest and the newest that it speaks: the cloud at `GET /v1/privtune/info` and when a job is opened,
the device when it opens one. They use the newest that both speak. NEWEST grows with every change of the wire that an
older side would misread; a field that it may ignore is no such change. OLDEST follows one version behind, so that one
side can be upgraded before the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from privtune.shared import __version__
from privtune.shared.errors import VersionMismatch

OLDEST, NEWEST = 4, 4


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What a side says of itself: protocols from `oldest` to `newest`, and the version of PrivTune."""

    oldest: int
    newest: int
    version: str

    def __str__(self) -> str:
        several = "" if self.oldest == self.newest else f"{self.oldest} to "
        return f"protocol {several}{self.newest} (PrivTune {self.version})"


OURS = Spoken(oldest=OLDEST, newest=NEWEST, version=__version__)


def heard(oldest: object, newest: object, version: object) -> Spoken:
    """What the other side said of itself. One that names a single protocol speaks only that."""
    last = newest if isinstance(newest, int) else 0
    first = oldest if isinstance(oldest, int) and 0 < oldest <= last else last
    return Spoken(oldest=first, newest=last, version=str(version or "unknown")[:40])


def agree(*, device: Spoken, cloud: Spoken) -> int:
    """The newest protocol that both speak. Raises VersionMismatch, which names both sides and which one to upgrade."""
    newest = min(device.newest, cloud.newest)
    if newest >= max(device.oldest, cloud.oldest):
        return newest
    older = "the device" if device.newest < cloud.oldest else "the cloud"
    raise VersionMismatch(f"The device speaks {device}, the cloud {cloud}. Upgrade {older}.")
