"""An owner reads what was done to its things, and by which of its keys, from where."""

from privtune.cloud.limits import OwnerLimits

LOG, KEYS = "/v1/privtune/audit-log", "/v1/privtune/keys"


def test_an_owner_sees_its_acts_page_by_page_and_nobody_elses(plane):
    made = plane.keys.create("carol", scopes=["admin"])
    OwnerLimits(plane.store).set("carol", unfinished_jobs=7)
    OwnerLimits(plane.store).set("dan", unfinished_jobs=7)
    with plane.http(made.secret) as client:
        new = client.post(KEYS, json={"label": "ci"}).json()
        first = client.get(LOG, params={"limit": 2}).json()
        assert first["has_more"]
        assert [(entry["action"], entry["who"], entry["origin"]) for entry in first["data"]] == [
            ("key.created", "operator", None),
            ("limits.set", "operator", None),
        ]
        rest = client.get(LOG, params={"after": first["last_id"]}).json()
        assert not rest["has_more"]
        [last] = rest["data"]
        assert (last["who"], last["origin"], last["target"]) == (made.key.id, "127.0.0.1", new["id"])
        assert new["secret"] not in str(last)
        assert client.get(LOG, params={"limit": 0}).status_code == 400
    with plane.http() as client:
        assert client.get(LOG).status_code == 403
