import hashlib

import pytest

from privtune.cloud.auth import ApiKeys, bearer
from privtune.cloud.db.store import ApiKeyRow
from privtune.shared.errors import InvalidInput, Unauthenticated


def test_a_key_opens_its_owners_door_and_only_its_hash_is_kept(store, keys):
    made = keys.create("alice", "laptop")
    assert made.secret.startswith("pt-")
    assert len(made.secret) > 40
    assert keys.authenticate(made.secret) == "alice"
    assert made.secret not in repr(made)
    with store.read() as session:
        row = session.get(ApiKeyRow, made.key.id)
        assert row.secret_sha256 == hashlib.sha256(made.secret.encode()).hexdigest()
        assert made.secret not in {str(value) for value in vars(row).values()}


def test_owners_hold_several_keys_and_a_revoked_one_stays_shut(keys):
    first, second = keys.create("alice"), keys.create("alice")
    assert keys.revoke(first.key.id).revoked_at
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(first.secret)
    assert keys.authenticate(second.secret) == "alice"
    assert {key.id: key.revoked_at is None for key in keys.list()} == {first.key.id: False, second.key.id: True}
    assert keys.revoke(second.key.display).id == second.key.id


def test_use_is_remembered_coarsely(keys):
    made = keys.create("alice")
    assert keys.list()[0].last_used_at is None
    keys.authenticate(made.secret)
    assert keys.list()[0].last_used_at is not None


@pytest.mark.parametrize(
    "secret", ["", "sk-something", "pt-", "pt-" + "x" * 43, "pt-" + "x" * 9999, "pt-\ud800", "pt-ключ"]
)
def test_wrong_keys_are_told_so(keys, secret):
    with pytest.raises(Unauthenticated):
        keys.authenticate(secret)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic abc", "pt-abc"])
def test_wrong_headers_are_told_so(header):
    with pytest.raises(Unauthenticated, match="Bearer"):
        bearer(header)


def test_the_scheme_is_case_blind():
    assert bearer("bearer pt-x") == bearer("Bearer pt-x") == "pt-x"


def test_a_bootstrap_key_is_made_once_and_never_brought_back(store):
    keys, secret = ApiKeys(store), "pt-" + "a1" * 20
    assert keys.ensure(secret)
    assert not keys.ensure(secret)
    assert keys.authenticate(secret) == "default"
    keys.revoke(keys.list()[0].id)
    assert not keys.ensure(secret)
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(secret)


@pytest.mark.parametrize("secret", ["pt-short", "x" * 50, "pt-" + "x" * 300])
def test_a_guessable_bootstrap_key_is_refused(keys, secret):
    with pytest.raises(InvalidInput, match="BOOTSTRAP_KEY"):
        keys.ensure(secret)


@pytest.mark.parametrize("owner", ["", "a b", "-x", "a" * 65, "ünal", "a/b"])
def test_unusable_owners_are_refused(keys, owner):
    with pytest.raises(InvalidInput, match="owner"):
        keys.create(owner)


def test_revoking_what_is_not_there(keys):
    with pytest.raises(InvalidInput, match="No key"):
        keys.revoke("key-nope")
