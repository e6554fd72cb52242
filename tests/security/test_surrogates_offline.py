"""Finding and replacing asks nobody: with every connection refused, the same is found, and none was tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.support.planted import OWN_TERM, planted, texts

# No address is resolved and no connection opened, in a fresh process whose home holds no cache.
PROBE = """
import json, socket, sys

tried = []

def refuse(*address, **_):
    tried.append(repr(address))
    raise OSError("the network is cut")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse

from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.job_spec import SurrogateSpec

texts, terms = json.loads(sys.stdin.read())
surrogates = Surrogates(SurrogateSpec(replace="identifying"), bytes(32), terms)
leaving = []
for text in texts:
    found = surrogates.conversation([text])
    leaving.append(found.replace(text))
    assert found.restore(leaving[-1]) == text
print(json.dumps({"tried": tried, "leaving": leaving}))
"""


def test_nothing_is_fetched(tmp_path):
    variables = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([texts(), [OWN_TERM]]),
        env=variables | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tried"] == []
    left = "\n".join(found["leaving"]).lower()
    assert [word for word in planted() if word.lower() in left] == []
    assert "soup was cold" in left
