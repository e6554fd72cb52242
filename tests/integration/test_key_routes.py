"""An owner's own API keys over REST."""

import pytest

from privtune.cloud.auth.key_rows import SCOPES

KEYS = "/v1/privtune/keys"


@pytest.fixture
def admin(plane):
    with plane.http(plane.keys.create("alice", scopes=["admin"]).secret) as client:
        yield client


def test_an_owner_makes_rotates_and_revokes_a_key(plane, admin):
    made = admin.post(KEYS, json={"label": "ci", "scopes": ["submit"], "expires_in_s": 1000}).json()
    assert (made["label"], made["scopes"], made["expires_at"]) == ("ci", ["submit"], made["created_at"] + 1000)
    assert plane.keys.authenticate(made["secret"], "submit").owner == "alice"
    new = admin.post(f"{KEYS}/{made['id']}/rotate", json={"overlap_s": 60}).json()
    for one in (made, new):
        plane.keys.authenticate(one["secret"], "submit")
    assert admin.post(f"{KEYS}/{made['id']}/revoke").json()["revoked_at"]
    listed = {key["id"]: key for key in admin.get(KEYS).json()["data"]}
    assert listed[made["id"]]["replaced_by"] == new["id"]
    assert "secret" not in listed[new["id"]]
    with plane.http(made["secret"]) as old:
        assert old.get("/v1/models").status_code == 401


def test_what_keys_can_not_be(plane, admin):
    for body in (
        {"scopes": []},
        {"scopes": ["write"]},
        {"scopes": list(SCOPES) * 3},
        {"expires_in_s": 0},
        {"expires_in_s": True},
        {"label": "x" * 129},
        {"owner": "bob"},
    ):
        answer = admin.post(KEYS, json=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["param"] in (*body, "scopes.0"), body
    answer = admin.post(f"{KEYS}/key-none/rotate", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "KEY_NOT_FOUND")
    assert len(plane.keys.list()) == 2


def test_a_key_that_can_do_everything_else_can_not_make_keys(plane):
    with plane.http(plane.keys.create("alice", scopes=set(SCOPES) - {"admin"}).secret) as client:
        for method, path in (("GET", KEYS), ("POST", KEYS)):
            answer = client.request(method, path, json={})
            assert answer.status_code == 403
            assert "needs the scope 'admin' and has" in answer.json()["error"]["message"]
