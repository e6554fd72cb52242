"""Which home this is, and how far: so that of several copies of a home only the newest one draws.

The store of releases remembers what was drawn. An older copy of the home has forgotten some of it, and would draw it
again. So a home counts its claims, in the same file as the ledger, and each run that may draw makes one: the cloud
keeps the largest count that it has seen, and refuses a copy that is behind. A home that was moved away refuses by
itself.

Not covered: a cloud that does not keep the count, or has never seen the home; a copy that was made while a run drew, if
that run never came to its end and no later one began.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from privtune.device.account.ledger import Ledger
from privtune.device.home.run_locks import run_lock
from privtune.device.release.draw_store import DrawStore
from privtune.device.release.label_store import FILE as LABELS
from privtune.device.release.slope_store import FILE as SLOPES
from privtune.shared.errors import HomeOutdated, PrivTuneError

RECOVERED = "recovered"  # kind of a note in the ledger


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That this copy of a home is the newest one.

    home_id: names the home, 32 hex digits.
    count: of its claims, this one included.
    nonce: drawn for this claim; of two copies with one count only the first to come is right.
    """

    home_id: str
    count: int
    nonce: str


class HomeIdentity(Ledger):
    """The home's own line in the file of its ledger. Raises as `Ledger`."""

    def claim(self) -> Claim:
        """The next claim, which is on disk on return. Raises HomeOutdated for a home that was moved away."""
        with self._transaction() as (db, _):
            home_id, count, moved = db.execute("SELECT id, count, moved FROM home").fetchone()
            if moved:
                raise HomeOutdated(
                    f"This home was moved to another machine on {moved}, where its jobs go on, and may not draw any "
                    "more. To come back, export it there and import it here into an empty folder (--home)."
                )
            db.execute("UPDATE home SET count = ?", (count + 1,))
        return Claim(home_id=home_id, count=count + 1, nonce=secrets.token_hex(16))

    @property
    def moved(self) -> str:
        """When the home was moved away; empty if it was not."""
        with self._using() as db:
            return str(db.execute("SELECT moved FROM home").fetchone()[0])

    def set_moved(self, moved: bool) -> None:
        """Mark the home as moved away, or as the one in use."""
        with self._using() as db:
            db.execute("UPDATE home SET moved = ?", (time.strftime("%Y-%m-%d") if moved else "",))

    def renew(self) -> None:
        """Go on as another home: what the newest copy drew is lost, and counts as another noise distribution."""
        home = self.path.parent
        for path in (home / "releases.sqlite", home / LABELS, *(home / "jobs").glob(f"[!.]*/{SLOPES}")):
            if path.exists():
                log = path.name == "releases.sqlite"
                with closing(DrawStore(path, "", "the store of draws", write_ahead_log=log)) as store:
                    store.renew_identity()
        self.note(RECOVERED, {})
        with self._using() as db:
            db.execute("UPDATE home SET id = lower(hex(randomblob(16))), count = 0, moved = ''")


@contextmanager
def newest(home: Path, announce: Callable[[Claim], object]) -> Iterator[None]:
    """A run that may draw in this home. announce: asks the cloud whether the home is the newest copy; raises if not.

    The count also moves at the end of a run, so that a copy that was made meanwhile is behind.
    """
    with run_lock(home):
        with HomeIdentity(home) as identity:
            announce(identity.claim())
        yield
        with contextlib.suppress(PrivTuneError), HomeIdentity(home) as identity:
            announce(identity.claim())
