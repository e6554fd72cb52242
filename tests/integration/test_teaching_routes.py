"""The control plane's routes of teachings over HTTP, without a cloud that teaches."""

from __future__ import annotations

import pytest

from privtune.device.link.rest import ControlPlane
from privtune.device.link.teaching_calls import list_corpora, list_teachings, newest_for
from privtune.shared.errors import JobNotFound
from tests.support.builders import least_spec

PATH = "/v1/privtune/teachings"
BODY = {"model": "tiny", "corpus": "reviews", "cut": 1, "task": "causal-lm"}


def test_a_teaching_is_made_shown_listed_and_cancelled(plane):
    with plane.http() as http:
        made = http.post(PATH, json=BODY).json()
        assert (made["object"], made["status"], made["card"], made["error"]) == (
            "privtune.teaching",
            "queued",
            None,
            None,
        )
        assert made["spec"]["max_length"] == 32
        assert http.get(f"{PATH}/{made['id']}").json() == made
        assert [one["id"] for one in http.get(PATH).json()["data"]] == [made["id"]]
        assert http.post(f"{PATH}/{made['id']}/cancel").json()["status"] == "cancelled"
        assert [one["id"] for one in http.get("/v1/privtune/corpora").json()["data"]] == ["reviews"]
        kept = http.post(PATH, json=BODY | {"seed": 1}).json()["id"]
        assert http.delete(f"{PATH}/{kept}").status_code == 409
    stranger = plane.keys.create("mallory").secret
    with plane.http(stranger) as http:
        assert http.get(f"{PATH}/{made['id']}").status_code == 404
        assert http.get(PATH).json()["data"] == []
        assert http.delete(f"{PATH}/{made['id']}").status_code == 404
    with plane.http() as http:
        gone = {"id": made["id"], "object": "privtune.teaching", "deleted": True}
        assert http.delete(f"{PATH}/{made['id']}").json() == gone
        assert http.get(f"{PATH}/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"corpus": "/etc/passwd"}, 404, "CORPUS_NOT_FOUND", "corpus"),
        ({"model": "other"}, 404, "MODEL_NOT_FOUND", "model"),
        ({"cut": 9}, 400, "CUT_OUT_OF_RANGE", "cut"),
        ({"label_column": "label"}, 400, "INVALID_INPUT", None),
        ({"epochs": "3"}, 400, "INVALID_INPUT", "epochs"),
        ({"records": []}, 400, "INVALID_INPUT", "records"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(plane, change, status, code, param):
    with plane.http() as http:
        answer = http.post(PATH, json=BODY | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error


def test_the_newest_that_fits_is_the_one_for_a_job(plane):
    job = least_spec(task="causal-lm", cut=1, tail=1, skip="tuned")
    with ControlPlane(plane.url, plane.key) as control, plane.http() as http:
        with pytest.raises(JobNotFound, match="privtune teachings start"):
            newest_for(control, job)
        ids = []
        for seed, cut in ((0, 1), (1, 1), (2, 0)):
            ids.append(http.post(PATH, json=BODY | {"seed": seed, "cut": cut}).json()["id"])
            plane.teachings.claim()
            teaching = plane.teachings.get(ids[-1])
            plane.teachings.succeed(ids[-1], "result", {}, plane.teachings.sources(teaching.spec))
        http.post(PATH, json=BODY | {"seed": 3})  # not ready
        assert newest_for(control, job) == ids[1]
        assert len(list_teachings(control)) == 4
        assert list_corpora(control) == ["reviews"]
        body = {"model": "tiny", "training_file": "device://x", "privtune": {"task": "causal-lm", "taught": ids[1]}}
        refused = http.post("/v1/fine_tuning/jobs", json=body)
        assert (refused.status_code, "needs a tail" in refused.json()["error"]["message"]) == (400, True)
        body["privtune"] |= {"cut": 1, "tail": 1, "skip": "tuned"}
        assert http.post("/v1/fine_tuning/jobs", json=body).status_code == 200
        body["privtune"] |= {"taught": "teach-" + "0" * 24}
        assert http.post("/v1/fine_tuning/jobs", json=body).status_code == 404
