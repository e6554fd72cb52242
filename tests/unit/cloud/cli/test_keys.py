"""`privtune-cloud keys` as its operator types it."""

import pytest

from privtune.cloud.auth import ApiKeys
from privtune.cloud.db.store import open_store
from privtune.shared.errors import PermissionDenied, Unauthenticated


@pytest.fixture
def keys(command):
    """`keys WORDS`: exit code, stdout, stderr."""
    return lambda *words: command("keys", *words)


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "list"),
        ("keys", "rotate", "pt-x"),
        ("keys", "revoke", "pt-x"),
        ("limits", "list"),
        ("audit-log",),
        ("limits", "set", "alice", "--jobs", "1"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_a_cloud_is_refused_and_left_as_it_is(command, tmp_path, words, there):
    folder = tmp_path / "elsewhere"
    if there:
        folder.mkdir()
        (folder / "letter.txt").touch()
    code, _, told = command(*words, "--data", str(folder))
    assert (code, "There is no cloud in" in told) == (2, True), told
    assert [path.name for path in folder.glob("*")] == (["letter.txt"] if there else [])
    assert folder.exists() == there


def test_a_first_key_says_that_it_begins_a_cloud(keys, tmp_path):
    assert "a new one begins there" in keys("create", "--owner", "alice")[2]
    assert "a new one" not in keys("create", "--owner", "alice")[2]


def test_a_key_is_made_listed_rotated_and_revoked(keys, tmp_path):
    code, old, told = keys("create", "--owner", "alice", "--scope", "device", "--scope", "read", "--expires", "90d")
    assert code == 0
    assert "of alice for read, device, until 2" in told
    code, new, told = keys("rotate", f"{old[:9]}…", "--overlap", "1h")
    assert (code, new != old) == (0, True)
    assert "The old key key-" in told
    assert "ends 2" in told
    with open_store(tmp_path, None) as store:
        both = [ApiKeys(store).authenticate(secret, "device") for secret in (old, new)]
        assert [key.owner for key in both] == ["alice", "alice"]
        with pytest.raises(PermissionDenied):
            ApiKeys(store).authenticate(new, "submit")
    code, listed, _ = keys("list", "--owner", "alice")
    assert code == 0
    assert listed.count("read device") == listed.count("until 2") == 2
    assert old not in listed
    assert keys("list", "--owner", "bob")[1].startswith("No key yet")
    assert keys("revoke", new[:9])[0] == 0
    with open_store(tmp_path, None) as store, pytest.raises(Unauthenticated, match="revoked"):
        ApiKeys(store).authenticate(new, "device")
    assert "revoked 2" in keys("list")[1]


def test_a_rotation_ends_the_old_key_at_once_unless_told_otherwise(keys, tmp_path):
    _, old, _ = keys("create")
    code, _, told = keys("rotate", old[:9])
    assert code == 0
    assert " ended 2" in told
    with open_store(tmp_path, None) as store, pytest.raises(Unauthenticated):
        ApiKeys(store).authenticate(old, "read")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("create", "--scope", "write"), 2, "read, submit, device, admin"),
        (("create", "--expires", "soon"), 2, "--expires is a number of days"),
        (("create", "--expires", "0d"), 2, "A key lasts from 1 seconds"),
        (("create", "--expires", "9999d"), 2, "A key lasts from 1 seconds"),
        (("rotate", "key-x", "--overlap", "1w"), 2, "--overlap is a number of days"),
        (("rotate", "key-x"), 5, "No key is called 'key-x'"),
        (("revoke", "key-x"), 5, "No key is called 'key-x'"),
    ],
)
def test_mistakes_are_one_line(keys, words, code, line):
    ended, out, err = keys(*words)
    assert ended == code
    assert out == ""
    assert line in err
    assert err.count("\n") == 0
