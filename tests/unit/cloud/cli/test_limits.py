"""`privtune-cloud limits` as its operator types it."""

from privtune.cloud.db.store import open_store
from privtune.cloud.limits import OwnerLimits
from privtune.cloud.settings import Limits


def test_limits_are_set_listed_and_taken_back(command, tmp_path):
    words = ("--model", "minilm", "--jobs", "5", "--requests", "7000", "--upload-mib", "10", "--stored-mib", "2048")
    assert command("limits", "set", "alice", *words)[0] == 0
    code, listed, _ = command("limits", "list")
    assert code == 0
    assert listed.splitlines()[-1].split() == ["alice", "minilm", "5", "7,000", "10", "2,048"]
    with open_store(tmp_path, None) as store:
        assert OwnerLimits(store).of("alice") == Limits(
            models=("minilm",),
            unfinished_jobs=5,
            requests_per_minute=7000,
            bytes_per_minute=10 << 20,
            stored_bytes=2 << 30,
        )
    assert command("limits", "set", "alice")[0] == 0
    assert "Every owner has the limits" in command("limits", "list")[1]
    assert command("limits", "set", "alice", "--jobs", "0")[0] == 2
