"""This device's identity at a cloud: a private key that never leaves the home, and the certificate that goes with it.

One file for each cloud, mode 0600, replaced whole: key and certificate never come apart. Times are this machine's own,
taken when the certificate came, so that a clock that differs from the cloud's does no harm.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from privtune.shared.at_rest import read_text
from privtune.shared.errors import ArtifactCorrupt, StorageFull, Unauthenticated
from privtune.shared.files import make_folder, write_json

FOLDER = "identities"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A device's identity at one cloud.

    device_id: what the cloud calls it.
    key, certificate: PEM.
    received, life_s: when the certificate came (seconds since 1970), and for how long it lasts.
    """

    device_id: str
    key: str = field(repr=False)
    certificate: str
    received: float
    life_s: int

    @property
    def due(self) -> bool:
        """Half of its life is over, or this machine's clock was set back."""
        return not self.received <= time.time() < self.received + self.life_s / 2

    @property
    def expired(self) -> bool:
        """It has ended, by this machine's clock."""
        return time.time() >= self.received + self.life_s

    def ended(self) -> Unauthenticated:
        """What to say when the cloud takes it no more."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.received + self.life_s))
        return Unauthenticated(
            f"This device's certificate ended on {when}, because it was not renewed in time. Ask the cloud's operator "
            "for a token, then run `privtune enroll` with it; jobs continue where they are."
        )

    def save(self, file: Path) -> None:
        """Write it to the home. Raises StorageFull."""
        try:
            make_folder(file.parent, 0o700)
            write_json(file, asdict(self), private=True)
        except OSError as error:
            raise StorageFull(f"{file} can't be written: {error.strerror}.") from error


def identity_file(home: Path, host: str, port: int | None) -> Path:
    """Where the identity at the cloud with this REST address is, if there is one."""
    safe = "".join(one if one.isalnum() or one in ".-" else "_" for one in host.lower())
    return home / FOLDER / f"{safe}_{443 if port is None else port}.json"


def authority_file(file: Path) -> Path:
    """Beside an identity, the PEM of the authority that its token named; missing where `--ca-cert` named another."""
    return file.with_suffix(".pem")


def load_identity(file: Path) -> Identity | None:
    """The identity in a file; None where there is none. Raises ArtifactCorrupt."""
    try:
        return Identity(**json.loads(read_text(file)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactCorrupt(
            f"This device's identity in {file} can't be read; remove the file and enrol again.", detail=str(error)
        ) from error
