"""`privtune-cloud audit-log` as its operator types it."""

import json

from sqlalchemy import delete

from privtune.cloud.db.store import open_store
from privtune.cloud.db.tables import AuditRow


def test_acts_are_listed_verified_and_missed(command, tmp_path):
    assert "Nothing is in the audit log" in command("audit-log")[1]
    secret = command("keys", "create", "--owner", "alice")[1]
    command("limits", "set", "bob", "--jobs", "5")
    code, listed, _ = command("audit-log")
    assert code == 0
    assert "key.created" in listed
    assert "unfinished_jobs=5" in listed
    assert secret not in listed
    only = [
        json.loads(line) for line in command("audit-log", "--owner", "bob", "--since", "1d", "--json")[1].split("\n")
    ]
    assert [(entry["number"], entry["action"], entry["who"]) for entry in only] == [(2, "limits.set", "operator")]
    code, said, _ = command("audit-log", "--verify")
    assert code == 0
    noted = said.split()[-1]
    assert noted.startswith("2:")
    command("keys", "create")
    assert command("audit-log", "--noted", noted)[0] == 0
    assert command("audit-log", "--noted", "2:" + "0" * 64)[0] == 14
    with open_store(tmp_path, None) as store, store.write() as session:
        session.execute(delete(AuditRow).where(AuditRow.number == 2))
    code, _, error = command("audit-log", "--verify")
    assert code == 14
    assert error == "privtune-cloud: The audit log is not whole: entries 2 to 2 are missing."
    assert command("audit-log", "--since", "yesterday")[0] == 2
