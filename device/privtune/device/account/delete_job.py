"""Deletes what this device keeps of a job, and says what went and what deliberately stays.

The job's folder goes. Its releases stay unless their owner wants them gone, too: later jobs send the same bytes for the
same texts. Where they go, each leaves a mark, so that it is never drawn a second time under its noise; releases of
jobs that are still here are not touched. The ledger keeps its entries, because what left can't be taken back.

A kill before the end leaves either the whole job, which is deleted again, or a folder without its name, which the next
run of any job removes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from privtune.device.account.ledger import DELETED, Ledger
from privtune.device.account.run_account import TRANSCRIPT
from privtune.device.account.verify import KEY_BYTES
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.job_lock import job_lock
from privtune.device.home.paths import job_path
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import ReleaseStore
from privtune.shared.at_rest import open_file, read_bytes
from privtune.shared.errors import DataInvalid, JobNotFound, StorageFull
from privtune.shared.files import finish_removals, remove_folder

_KINDS = {
    "checkpoints": "checkpoints",
    "losses": "own losses",
    "slopes": "slopes",
    "states": "states of the cloud",
    "transcript": "transcript",
}
ONCE = (
    "once per record: later jobs send the same bytes for the same texts, and drawing them again would let the cloud "
    "average both draws"
)
Keys = dict[str, set[RecordKey]]  # by scope of the store of releases


@dataclass(frozen=True)
class Amount:
    """Files, records or entries of one kind, and their bytes."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.count + other.count, self.bytes + other.bytes)


@dataclass(kw_only=True)
class LocalDeletion:
    """What was deleted on this device.

    went: by kind.
    stays: what deliberately stays, and why.
    """

    went: dict[str, Amount] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)


def delete_here(home: Path, job_id: str, *, releases: bool = False) -> LocalDeletion:
    """Delete a job's files on this device; nothing goes where there are none. Repeatable.

    releases: also those releases that no other job on this device has.

    Raises JobConflict while a process works on the job, StorageFull where a file can't be removed.
    """
    folder, done = job_path(home, job_id), LocalDeletion()
    finish_removals(home / "jobs")
    if folder.exists():
        with job_lock(home, job_id), Ledger(home) as ledger:
            done.went |= _measured(folder)
            _delete_releases(home, job_id, ledger, done, wanted=releases)
            went = {kind: asdict(amount) for kind, amount in done.went.items()}
            ledger.note(DELETED, {"job": job_id, "went": went})
            _remove(folder)
    elif releases and (home / "releases.sqlite").exists():
        done.stays["releases"] = "the job's folder is gone, and with it the list of those that are the job's"
    if (home / "ledger.sqlite").exists():
        with Ledger(home) as ledger:
            entries = sum(entry.get("job") == job_id for entry in ledger.entries())
        if entries:
            done.stays[f"ledger entries ({entries:,})"] = "what left can't be taken back, and later jobs count with it"
    return done


def released_by(folder: Path) -> Keys:
    """The records that a job's runs were admitted to release, from its transcript."""
    found: Keys = defaultdict(set)
    for run in folder.glob(f"{TRANSCRIPT}/[0-9]*.jsonl"):
        with open_file(run) as lines:
            for line in lines:
                if b'"type":"records"' in line:
                    facts = json.loads(line)
                    file = run.parent / f"{facts['keys']}.keys"
                    packed = read_bytes(file) if file.exists() else b""
                    parts = (packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES))
                    found[facts["scope"]] |= {RecordKey(int.from_bytes(one[:8], "big"), one[8:]) for one in parts}
    return found


def _delete_releases(home: Path, job_id: str, ledger: Ledger, done: LocalDeletion, *, wanted: bool) -> None:
    path, forget = home / "releases.sqlite", _without_randomness(home, job_id)
    mine = released_by(job_path(home, job_id)) if path.exists() else {}
    others = _released_by_others(home, job_id) if wanted else {}
    went, stay = Amount(), Amount()
    for scope, keys in mine.items():
        going = keys - others.get(scope, set()) if wanted else set()
        with closing(ReleaseStore(path, scope, 1)) as store, closing(store.in_scope("noised")) as noised:
            stay += _held(store, keys - going)
            if count := _held(store, going).count:
                place = {"store": store.identity, "scope": store.fingerprint}
                ledger.note(DELETED, {"job": job_id, **place, "forgotten": count if forget else 0})
                went += Amount(count, sum(one.delete(list(going), forget=forget) for one in (store, noised)))
    if went.count:
        done.went["releases"] = went
        if not forget:
            done.stays["a mark for each deleted release"] = "so that it is never drawn again under its noise"
    if stay.count:
        why = (
            "jobs that are still here send them"
            if wanted
            else f"{ONCE} (only --releases with the first deletion ends them)"
        )
        done.stays[f"releases ({stay.count:,}, {stay.bytes:,} bytes)"] = why


def _held(store: ReleaseStore, keys: set[RecordKey]) -> Amount:
    sizes = [found.bytes for found in store.sizes(list(keys)).values() if found.bytes]
    return Amount(len(sizes), sum(sizes))


def _released_by_others(home: Path, job_id: str) -> Keys:
    found: Keys = defaultdict(set)
    for folder in (home / "jobs").glob("[!.]*"):
        if folder.name != job_id:
            for scope, keys in released_by(folder).items():
                found[scope] |= keys
    return found


def _without_randomness(home: Path, job_id: str) -> bool:
    """Whether a second draw of the job's releases would be the first one, so that nothing can be averaged."""
    try:
        return JobFolder(home, job_id).load().spec.mechanism.name == "none"
    except (JobNotFound, DataInvalid):
        return False


def _measured(folder: Path) -> dict[str, Amount]:
    sizes: dict[str, list[int]] = defaultdict(list)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "lock":
            top = path.relative_to(folder).parts[0].partition(".")[0]
            sizes[_KINDS.get(top, "settings and secrets")].append(path.stat().st_size)
    return {kind: Amount(len(found), sum(found)) for kind, found in sizes.items()}


def _remove(folder: Path) -> None:
    try:
        remove_folder(folder)
    except OSError as error:
        raise StorageFull(f"{folder} can't be removed: {error.strerror}; run the command again") from error
