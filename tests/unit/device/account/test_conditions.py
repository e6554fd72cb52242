"""What changed between two jobs, in words; and refusals of it before anything is fetched or submitted."""

from __future__ import annotations

import pytest

from privtune.device.account.conditions import changes, conditions, unlike
from privtune.device.account.early_refusal import refuse_early
from privtune.device.account.ledger import Ledger
from privtune.device.home.policy import Budget
from privtune.shared.errors import PolicyRefused
from privtune.shared.job_spec import JobSpec

SOURCE = "/data/reviews.csv"
UNSEEN = {"weights": "w", "rules": "r", "noise": "n", "draw": "d", "store": "s"}


def spec(**fields):
    return JobSpec.model_validate({"model": "minilm", "training_file": "device://reviews", **fields})


def row(job="ftjob-1", unseen=(), model="minilm", **fields):
    return {"job": job, "conditions": conditions(spec(**fields)), "unseen": UNSEEN | dict(unseen), "model": model}


def dchi(ratio):
    return {"name": "dchi", "params": {"noise_ratio": ratio}}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"cut": 2}, ["cut 2 instead of 1"]),
        ({}, {"surrogates": {"rank": 50_000}}, ["surrogate rank 50,000 instead of 200,000"]),
        ({}, {"surrogates": {"language": "de"}}, ["surrogate language de instead of en"]),
        ({}, {"surrogates": {"replace": "nothing"}}, ["surrogates nothing instead of identifying"]),
        ({"mechanism": dchi(6)}, {"mechanism": dchi(8)}, ["dchi noise_ratio 8.0 instead of 6.0"]),
        ({"mechanism": {"name": "dchi"}}, {"mechanism": dchi(6)}, []),
        ({}, {"mechanism": dchi(8)}, ["mechanism dchi instead of none"]),
        (
            {},
            {"train": {"max_length": 64}, "codec": "fp32"},
            ["codec fp32 instead of bf16", "max_length 64 instead of 128"],
        ),
        ({}, {"train": {"epochs": 7}, "tail": 2, "labels": "private"}, []),
    ],
)
def test_each_setting_that_makes_a_draw_is_named_and_no_other(before, now, said):
    assert changes(conditions(spec(**before)), conditions(spec(**now))) == said


@pytest.mark.parametrize(
    ("unseen", "said"),
    [
        ({"weights": "other", "noise": "other"}, "other weights of the model"),
        ({"rules": "other", "draw": "other"}, "other recognisers or tables of surrogates"),
        ({"noise": "other"}, "other public texts or tables of the mechanism, or another version"),
        ({"draw": "other"}, "other surrogates: with noise every job draws its own"),
        ({"store": "other"}, "a new store of releases"),
    ],
)
def test_what_no_setting_shows_is_named_by_its_cause(unseen, said):
    assert unlike([row()], row(unseen=unseen)) == f" than in job ftjob-1 ({said})"


def test_it_is_compared_with_the_most_similar_job():
    rows = [row("far", cut=3, codec="fp32"), row("near", cut=2)]
    assert unlike(rows, row("new")) == " than in job near (cut 1 instead of 2)"
    assert unlike(rows, row("new", unseen={"weights": "x"}, model="mpnet", cut=2)) == (
        " than in job near (model mpnet instead of minilm)"
    )
    assert unlike([], row("new")) == ""


@pytest.fixture
def home(tmp_path):
    """A device on which job ftjob-1 drew ten records under `names`."""
    entry = {**row(), "source": SOURCE, "part": "train", "law": "law-1", "records": 10, "epsilon": None, "delta": 0.0}
    with Ledger(tmp_path) as ledger:
        ledger.admit(entry, Budget())
    return tmp_path


def entries(home):
    with Ledger(home) as ledger:
        return ledger.entries()


def test_the_ledger_names_what_changed(home):
    entry = {**row("ftjob-2", cut=2), "source": SOURCE, "part": "train", "law": "law-2", "records": 10}
    with Ledger(home) as ledger, pytest.raises(PolicyRefused, match=r"than in job ftjob-1 \(cut 2 instead of 1\), and"):
        ledger.admit(entry | {"epsilon": None, "delta": 0.0}, Budget())


def test_what_the_settings_alone_decide_is_refused_early_and_nothing_is_entered(home):
    before = entries(home)
    other = spec(surrogates={"rank": 50_000})
    with pytest.raises(PolicyRefused, match="surrogate rank 50,000 instead of 200,000"):
        refuse_early(home, other, SOURCE, Budget())
    noisy = spec(mechanism=dchi(6))
    for budget, words in (
        ({"jobs": 1}, "one more"),
        ({"nats_per_record": 9.0}, "no such bound"),
        ({"releases": 12}, "2 left"),
    ):
        budget = Budget.model_validate({"noises": None} | budget)
        with pytest.raises(PolicyRefused, match=words):
            refuse_early(home, other, SOURCE, budget, records=3)
    assert entries(home) == before
    refuse_early(home, other, SOURCE, Budget(noises=2))
    refuse_early(home, other, "/data/other.csv", Budget())
    refuse_early(home, other, SOURCE, Budget(), resumed=["ftjob-1"])
    refuse_early(home, spec(train={"epochs": 9}), SOURCE, Budget(releases=10))  # it may send what was drawn
    refuse_early(home / "nowhere", noisy, SOURCE, Budget())


def test_with_noise_and_surrogates_every_job_draws_anew(tmp_path):
    mechanism = dchi(6)
    entry = {**row(mechanism=mechanism), "source": SOURCE, "part": "train", "law": "a", "records": 9}
    with Ledger(tmp_path) as ledger:
        ledger.admit(entry | {"epsilon": 1.0, "delta": 0.0}, Budget())
    with pytest.raises(PolicyRefused, match=r"ftjob-1 \(other surrogates: with noise every job draws its own\)"):
        refuse_early(tmp_path, spec(mechanism=mechanism), SOURCE, Budget())
    refuse_early(tmp_path, spec(mechanism=mechanism), SOURCE, Budget(), resumed=["ftjob-1"])
