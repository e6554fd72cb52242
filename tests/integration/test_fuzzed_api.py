"""The control plane answers as its OpenAPI document says, whatever schemathesis makes of it.

All its checks, in all phases; `make fuzz` tries far more than CI does.
"""

import os
import subprocess
import sys

import httpx
import pytest

from privtune.cloud.auth.key_rows import SCOPES
from tests.support.plane import Plane

pytest.importorskip("schemathesis")
EXAMPLES = os.environ.get("PRIVTUNE_FUZZ_EXAMPLES", "2")
SEED = os.environ.get("PRIVTUNE_FUZZ_SEED", "1")

pytestmark = pytest.mark.timeout(3600 if "PRIVTUNE_FUZZ_EXAMPLES" in os.environ else 280)


@pytest.fixture
def plane(tmp_path):
    """Offers the model of the document's example, so large that any cut and length fits; all scopes, no limits."""
    shape = {"n_layer": 5000, "n_positions": 40_000}
    opened = Plane(tmp_path, names=("minilm",), shape=shape, max_jobs=1_000_000, max_changes_per_minute=1_000_000)
    httpx.get(f"{opened.url}/openapi.json", timeout=60)  # made at the first request, which takes seconds
    yield opened
    opened.stop()


def fuzz(plane, folder, phases, *options):
    """What schemathesis prints of the operations that `options` choose, tried with a key of their own."""
    key = plane.keys.create("alice", scopes=SCOPES).secret
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{plane.url}/openapi.json", "--no-color"]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", "all", "--phases", phases]
    command += ["--max-examples", EXAMPLES, "--seed", SEED, "--request-timeout", "60", "--continue-on-failure"]
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_every_answer_is_one_of_the_document(plane, tmp_path):
    # A stream of a job that waits has no end, so it is asked for while there is no job. Whoever tries the routes of
    # keys finds its own and revokes it, after which every other route says no more than 401.
    fuzz(plane, tmp_path, "examples,coverage,fuzzing", "--include-path-regex", "/stream$")
    fuzz(plane, tmp_path, "examples,coverage,fuzzing", "--include-path-regex", "/keys")
    printed = fuzz(plane, tmp_path, "examples,coverage,fuzzing,stateful", "--exclude-path-regex", "(/stream$|/keys)")
    assert "/jobs/{job_id}" not in printed.partition("Authentication failed")[2]  # lists what said only 401 or 403
