"""What options, policy and ledger decide is refused before the cloud is asked for anything."""

from __future__ import annotations

import pytest

from privtune.device.account.conditions import conditions
from privtune.device.account.ledger import Ledger
from privtune.device.account.run_account import source_of
from privtune.device.data.source import DataSource
from privtune.device.home.policy import AuditRule, Budget
from privtune.device.home.run_request import RunRequest
from privtune.device.training import submit as module
from privtune.device.training.submit import Consent, check_request, resume, submit
from privtune.shared.errors import InvalidInput, PolicyRefused
from privtune.shared.job_spec import JobSpec

OPEN = {"surrogates": {"replace": "nothing"}}
NOISY = {**OPEN, "mechanism": {"name": "dchi"}}
TEXT = {**NOISY, "task": "causal-lm"}


class NoCloud:
    """A cloud that must not be asked."""

    url = "https://cloud.example"

    def __getattr__(self, name):
        raise AssertionError(f"the cloud was asked: {name}")


@pytest.fixture
def asked(tmp_path):
    def ask(**fields):
        data = tmp_path / "data.csv"
        data.write_text("text,label\n" + "".join(f"some text {place},{place % 2}\n" for place in range(8)))
        text_only = tmp_path / "text.csv"
        text_only.write_text("text\n" + "".join(f"some text {place}\n" for place in range(8)))
        spec = JobSpec.model_validate({"model": "enc", "training_file": "device://texts", **fields})
        path = str(text_only if spec.task == "causal-lm" else data)
        return RunRequest(cloud="", spec=spec, train=DataSource(path=path), validation=None)

    return ask


@pytest.mark.parametrize(("fields", "words"), [(OPEN, "Nothing is replaced"), (TEXT, "name its text")])
def test_one_consent_is_enough_for_a_text_that_the_cloud_can_read(asked, tmp_path, fields, words):
    for least in ("names", "words"):
        with pytest.raises(InvalidInput, match=rf"{words}.* Say --protect none if you mean it"):
            check_request(asked(**fields), tmp_path, Consent(protection=least), lambda _: None)
    check_request(asked(**fields), tmp_path, Consent(protection="none"), lambda _: None)
    check_request(asked(**{**fields, "tail": 1, "mechanism": {"name": "dchi"}}), tmp_path, Consent(), lambda _: None)


def test_an_audit_that_can_not_run_is_refused_first(asked, tmp_path):
    consent = Consent(protection="none")
    with pytest.raises(InvalidInput, match="--local-model"):
        check_request(asked(**TEXT), tmp_path, consent, lambda _: None, AuditRule())
    (tmp_path / "policy.yaml").write_text("protections: [none]\ngradients: any\naudit: {}\n")
    with pytest.raises(InvalidInput, match="--local-model"):
        check_request(asked(**TEXT), tmp_path, consent, lambda _: None)
    check_request(asked(**NOISY), tmp_path, consent, lambda _: None)


def test_another_noise_distribution_is_refused_before_a_job_exists(asked, tmp_path):
    request = asked(**NOISY)
    entry = {
        "job": "ftjob-1",
        "source": source_of(request.train.path),
        "conditions": conditions(request.spec),
        "unseen": {},
        "model": "enc",
        "part": "train",
        "law": "law-1",
        "records": 8,
        "epsilon": None,
        "delta": 0.0,
    }
    with Ledger(tmp_path) as ledger:
        ledger.admit(entry, Budget())
    other = asked(**NOISY, cut=2)
    with pytest.raises(PolicyRefused, match="cut 2 instead of 1"):
        submit(other, tmp_path, NoCloud(), lambda _: None, new=True)
    for allowed in (asked(**NOISY), RunRequest(**{**vars(other), "another_noise": True})):
        with pytest.raises(AssertionError, match="create_job"):
            submit(allowed, tmp_path, NoCloud(), lambda _: None, new=True)


def test_slopes_over_the_budget_are_refused_before_a_job_exists(asked, tmp_path):
    (tmp_path / "policy.yaml").write_text("protections: [none]\nbudget: {noises: null}\n")
    request = asked(**OPEN, zeroth_order={"epsilon": 5.0})
    entry = {
        "job": "ftjob-1",
        "source": source_of(request.train.path),
        "part": "slopes",
        "law": "slopes-1",
        "records": 8,
        "epsilon": 4.0,
        "delta": 1e-5,
    }
    with Ledger(tmp_path) as ledger:
        ledger.admit(entry, Budget())
    with pytest.raises(PolicyRefused, match="cost a record 9 nats of the 8 allowed"):
        submit(request, tmp_path, NoCloud(), lambda _: None, new=True)
    with pytest.raises(AssertionError, match="create_job"):
        submit(asked(**OPEN, zeroth_order={"epsilon": 4.0}), tmp_path, NoCloud(), lambda _: None, new=True)


def test_a_job_is_not_resumed_where_the_packages_of_surrogates_are_missing(asked, tmp_path, monkeypatch):
    class Cloud(NoCloud):
        def get_job(self, job_id):
            return {"id": job_id, "status": "paused"}

    def missing(*_):
        raise InvalidInput("surrogates need the package spacy")

    asked().save(tmp_path, "ftjob-1")
    monkeypatch.setattr(module, "Surrogates", missing)
    with pytest.raises(InvalidInput, match="spacy"):
        resume("ftjob-1", tmp_path, Cloud(), None, None, Consent(), lambda _: None)
