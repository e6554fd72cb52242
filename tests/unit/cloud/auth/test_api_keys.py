import hashlib

import pytest
from sqlalchemy import event

from privtune.cloud.auth import ApiKeys, bearer
from privtune.cloud.auth.key_rows import MAX_KEYS, SCOPES
from privtune.cloud.db.tables import ApiKeyRow
from privtune.shared.errors import InvalidInput, KeyNotFound, PermissionDenied, Unauthenticated


class Clock:
    now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timed(store, clock):
    return ApiKeys(store, clock)


def test_a_key_opens_its_owners_door_and_only_its_hash_is_kept(store, keys):
    made = keys.create("alice", "laptop")
    assert made.secret.startswith("pt-")
    assert len(made.secret) > 40
    assert keys.authenticate(made.secret, "read").owner == "alice"
    assert made.secret not in repr(made)
    with store.read() as session:
        row = session.get(ApiKeyRow, made.key.id)
        assert row.secret_sha256 == hashlib.sha256(made.secret.encode()).hexdigest()
        assert made.secret not in {str(value) for value in vars(row).values()}


def test_owners_hold_several_keys_and_a_revoked_one_stays_shut(keys):
    first, second = keys.create("alice"), keys.create("alice")
    assert keys.revoke(first.key.id).revoked_at
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(first.secret, "read")
    assert keys.authenticate(second.secret, "read").owner == "alice"
    assert {key.id: key.revoked_at is None for key in keys.list()} == {first.key.id: False, second.key.id: True}
    assert keys.revoke(second.key.display).id == second.key.id


def test_the_last_use_is_written_at_most_once_a_minute(store, timed, clock):
    made, writes = timed.create("alice"), []
    assert timed.list()[0].last_used_at is None
    event.listen(store.engine, "after_cursor_execute", lambda *seen: writes.append(seen[2].startswith("UPDATE")))
    for _ in range(36):
        clock.now += 5
        for keys in (timed, ApiKeys(store, clock)):  # also after a restart
            keys.authenticate(made.secret, "read")
    assert sum(writes) == 3
    assert timed.list()[0].last_used_at == clock.now - 55


def test_a_use_that_can_not_be_written_is_no_refusal(store, timed, clock):
    made = timed.create("alice")
    refuse = {
        "sqlite": "CREATE TRIGGER no BEFORE UPDATE ON api_keys BEGIN SELECT RAISE(FAIL, 'no'); END",
        "postgresql": "ALTER TABLE api_keys ADD CHECK (last_used_at IS NULL)",
    }
    with store.engine.begin() as connection:
        connection.exec_driver_sql(refuse[store.engine.dialect.name])
    assert timed.authenticate(made.secret, "read").owner == "alice"


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_does_what_its_scopes_say_and_nothing_else(keys, scope):
    one = keys.create("alice", scopes=[scope])
    rest = keys.create("alice", scopes=[other for other in SCOPES if other != scope])
    assert keys.authenticate(one.secret, scope).owner == "alice"
    with pytest.raises(PermissionDenied, match=f"needs the scope '{scope}' and has"):
        keys.authenticate(rest.secret, scope)
    for other in rest.key.scopes:
        with pytest.raises(PermissionDenied):
            keys.authenticate(one.secret, other)


def test_by_default_a_key_can_not_make_others(keys):
    assert keys.create("alice").key.scopes == ("read", "submit", "device")


@pytest.mark.parametrize("scopes", [[], ["write"], ["read", ""], "read"])
def test_scopes_that_there_are_not(keys, scopes):
    with pytest.raises(InvalidInput, match="read, submit, device, admin"):
        keys.create("alice", scopes=scopes)
    assert keys.list() == []


def test_a_key_ends_at_its_time(timed, clock):
    made = timed.create("alice", expires_in_s=60)
    clock.now += 59
    timed.authenticate(made.secret, "read")
    clock.now += 1
    with pytest.raises(Unauthenticated, match=r"expired on 2027-01-15 08:01 UTC"):
        timed.authenticate(made.secret, "read")


@pytest.mark.parametrize("seconds", [0, -1, 10**11])
def test_times_that_no_key_lasts(keys, seconds):
    with pytest.raises(InvalidInput, match="from 1 seconds to"):
        keys.create("alice", expires_in_s=seconds)


def test_a_rotated_key_works_for_its_overlap_and_its_heir_for_as_long_as_it_did(timed, clock):
    old = timed.create("alice", "laptop", scopes=["read", "device"], expires_in_s=1000)
    clock.now += 500
    new = timed.rotate(old.key.display, overlap_s=100)
    assert (new.key.owner, new.key.label, new.key.scopes) == ("alice", "laptop", ("read", "device"))
    assert new.key.expires_at == clock.now + 1000
    assert new.secret != old.secret
    assert timed.list()[0].replaced_by == new.key.id
    clock.now += 99
    for made in (old, new):
        assert timed.authenticate(made.secret, "device").owner == "alice"
    clock.now += 1
    with pytest.raises(Unauthenticated, match=f"was rotated to {new.key.id} and ended on"):
        timed.authenticate(old.secret, "device")
    timed.authenticate(new.secret, "device")


def test_a_rotation_without_overlap_ends_the_old_key_at_once(timed):
    old = timed.create("alice")
    new = timed.rotate(old.key.id, expires_in_s=7)
    with pytest.raises(Unauthenticated, match="was rotated"):
        timed.authenticate(old.secret, "read")
    assert new.key.expires_at == new.key.created_at + 7


def test_a_rotation_never_prolongs_a_key(timed, clock):
    old = timed.create("alice", expires_in_s=10)
    timed.rotate(old.key.id, overlap_s=1000)
    assert timed.list()[0].expires_at == clock.now + 10


def test_what_has_ended_or_was_rotated_is_not_rotated_again(timed, clock):
    revoked, expired, rotated = timed.create("a"), timed.create("b", expires_in_s=1), timed.create("c")
    timed.revoke(revoked.key.id)
    timed.rotate(rotated.key.id, overlap_s=1000)
    clock.now += 1
    count = len(timed.list())
    for made, why in ((revoked, "was revoked"), (expired, "expired on"), (rotated, "was rotated to key-")):
        with pytest.raises(InvalidInput, match=f"{why}.* already"):
            timed.rotate(made.key.id)
    with pytest.raises(InvalidInput, match="from 0 seconds"):
        timed.rotate(timed.create("d").key.id, overlap_s=-1)
    assert len(timed.list()) == count + 1


def test_an_owner_reaches_no_key_of_another(keys):
    mine, theirs = keys.create("alice"), keys.create("bob")
    assert [key.id for key in keys.list("alice")] == [mine.key.id]
    for act in (keys.revoke, keys.rotate):
        with pytest.raises(KeyNotFound):
            act(theirs.key.id, "alice")
    assert keys.authenticate(theirs.secret, "read").owner == "bob"


def test_keys_of_an_owner_are_bounded(keys):
    for _ in range(MAX_KEYS):
        newest = keys.create("alice")
    with pytest.raises(PermissionDenied, match="100 keys"):
        keys.create("alice")
    keys.create("bob")
    for _ in range(MAX_KEYS + 5):
        newest = keys.rotate(newest.key.id)
    ended = [key for key in keys.list("alice") if key.id != newest.key.id and key.replaced_by]
    assert len(ended) == MAX_KEYS
    assert len(keys.list("alice")) == 2 * MAX_KEYS


@pytest.mark.parametrize(
    "secret", ["", "sk-something", "pt-", "pt-" + "x" * 43, "pt-" + "x" * 9999, "pt-\ud800", "pt-ключ"]
)
def test_wrong_keys_are_told_so(keys, secret):
    with pytest.raises(Unauthenticated):
        keys.authenticate(secret, "read")


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
    assert keys.authenticate(secret, "read").owner == "default"
    keys.revoke(keys.list()[0].id)
    assert not keys.ensure(secret)
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(secret, "read")


def test_a_revoked_bootstrap_key_stays_so_however_many_keys_end_after_it(keys):
    secret = "pt-" + "a1" * 20
    keys.ensure(secret)
    keys.revoke(keys.list()[0].id)
    newest = keys.create("default")
    for _ in range(MAX_KEYS + 2):
        newest = keys.rotate(newest.key.id)
    assert not keys.ensure(secret)


@pytest.mark.parametrize("secret", ["pt-short", "x" * 50, "pt-" + "x" * 300])
def test_a_guessable_bootstrap_key_is_refused(keys, secret):
    with pytest.raises(InvalidInput, match="BOOTSTRAP_KEY"):
        keys.ensure(secret)


@pytest.mark.parametrize("owner", ["", "a b", "-x", "a" * 65, "ünal", "a/b"])
def test_unusable_owners_are_refused(keys, owner):
    with pytest.raises(InvalidInput, match="owner"):
        keys.create(owner)


def test_revoking_what_is_not_there(keys):
    with pytest.raises(KeyNotFound, match="No key"):
        keys.revoke("key-nope")
