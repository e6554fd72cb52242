"""What a run keeps in an encrypted home, without the run: `python -m tests.torture.one_home HOME`.

Sends what its stores hold by then, as JSON, to a socket that nobody reads.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import closing
from pathlib import Path

from privtune.device.account.ledger import Ledger
from privtune.device.account.transcript import Transcript
from privtune.device.release.record_keys import RecordKey
from privtune.device.release.release_store import EncodedRelease, ReleaseStore
from privtune.shared.files import write_json
from tests.torture.sealing import encrypt

ROUNDS = 3

if __name__ == "__main__":
    home = Path(sys.argv[1])
    encrypt(home)
    here, _there = socket.socketpair()
    held = {"entries": 0, "releases": {}, "lines": 0, "report": False}

    def send() -> None:
        here.sendall(json.dumps(held).encode())

    transcript = Transcript(home / "jobs" / "ftjob-1" / "transcript", "ftjob-1")
    with Ledger(home) as ledger, closing(ReleaseStore(home / "releases.sqlite", "scope", 1 << 40)) as store:
        for number in range(ROUNDS):
            ledger.note("tested", {"number": number})
            held["entries"] += 1
            key, release = RecordKey(number, b"c" * 16), EncodedRelease(1, os.urandom(3000))
            held["releases"][str(number)] = store.put_many({key: release})[key].data.hex()
            transcript.call("Open", b"request")
            send()
    held["lines"] = (transcript.close() or {})["lines"]
    write_json(home / "jobs" / "ftjob-1" / "report.json", {"done": True}, private=True)
    held["report"] = True
    send()
