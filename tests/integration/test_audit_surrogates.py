"""Audits of jobs with surrogates count the owner's own words, in frames that were sent and in what would be sent."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from privtune.device.audit import identifying, linking
from privtune.device.audit.attacks.attack import silent
from privtune.device.audit.case import build_case
from privtune.device.audit.jobs import gate, transcript_audit
from privtune.device.audit.jobs.transcript_audit import JobAudit, audit_job
from privtune.device.audit.owner import AuditRequest, run_audit
from privtune.device.audit.report.page import render
from privtune.device.audit.sizes import QUICK
from privtune.device.home.job_folder import JobFolder
from privtune.device.home.policy import AuditRule
from privtune.shared.errors import JobConflict
from privtune.shared.job_spec import MechanismSpec, SurrogateSpec
from tests.support.planted import MAX_LENGTH, WORDS, planted_world, texts
from tests.support.running import run
from tests.support.world import InProcessCloud, Watcher

# One attack: what is tested here is what it is given, and what is counted in its guesses.
SIZE = replace(QUICK, metrics=("euclidean",), optimise=replace(QUICK.optimise, iterations=2), attacked=24)
IDENTIFYING = SurrogateSpec(replace="identifying")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = planted_world(tmp_path_factory.mktemp("audited"), InProcessCloud)
    ends = ("nice", "long", "small", "warm", "new", "late")
    rows = [f"{text} It was {end}.\t{place % 2}" for end in ends for place, text in enumerate(texts())]
    (built.folder / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    yield built
    built.cloud.stop()


@pytest.fixture(scope="module")
def job(world):
    spec = world.spec(
        cut=0,
        surrogates=IDENTIFYING.model_dump(),
        train={"max_steps": 20, "batch_size": 8, "accumulation": 1, "max_length": MAX_LENGTH},
    )
    return run(world, spec)[0]


def audited(world, job):
    request = JobAudit(job_id=job, model=str(world.models["enc"]), sources=(world.data, world.validation), size=SIZE)
    return audit_job(request, world.settings.home, silent)


def own_words(found):
    (one,) = [one for one in found.document["side_channels"] if one["name"] == identifying.NAME]
    return one["figure"]["value"]


def test_recorded_frames_hold_none_of_the_words_that_were_replaced(world, job, monkeypatch):
    found = audited(world, job)
    right = [row["figures"]["top1"]["value"] for row in found.document["attacks"] if row["kind"] == "inversion"]
    assert max(right) > 0.9, "the text that surrogates make is readable"
    assert own_words(found) == 0
    assert found.document["surrogates"]["coverage"]["replaced"] > 100
    assert found.document["statement"]["row"] == "surrogate"
    assert "Of your own words that were replaced, 0 in 100 are in what" in found.document["verdict"]["text"]
    assert found.document["verdict"]["headline"].startswith("What was replaced stays hidden")
    assert "replaced words" in render(found)
    assert "your own words among what the cloud reads" in render(found)
    # Words that did leave are found by the same search.
    in_clear = frozenset(word for words in WORDS[:1] for word in words.split())

    def left(own, data, longest, tokenizer):
        texts = (tokenizer.decode(ids_T.tolist()) for ids_T in data.ids)
        return [in_clear if WORDS[0] in text else frozenset() for text in texts]

    monkeypatch.setattr(transcript_audit, "hidden_words", left)
    read = audited(world, job)
    assert own_words(read) > 0.9
    assert read.document["verdict"]["headline"] == "Words that were replaced can be recovered"


def test_the_gate_judges_replaced_words_alone_where_the_others_are_in_clear_by_design(world, tmp_path, monkeypatch):
    monkeypatch.setitem(gate.SIZES, "quick", SIZE)
    counted = []
    monkeypatch.setattr(gate, "build_case", lambda *args, **given: counted.append(given) or build_case(*args, **given))
    spec = world.spec(
        cut=0, surrogates=IDENTIFYING.model_dump(), train={"max_steps": 1, "batch_size": 8, "max_length": MAX_LENGTH}
    )
    watcher, settings = Watcher(), replace(world.settings, audit=AuditRule(), home=tmp_path)
    run(world, spec, watcher=watcher, validation=False, settings=settings)
    said = "\n".join(watcher.messages)
    passed = r"audit passed: the attacks name at most \d\.\d% of the words that were replaced \(allowed: 2% beyond"
    assert re.search(passed, said), said  # the surrogates are random, and one of few may be named
    assert "the cloud can read all of them" in said
    (given,) = counted
    assert any("brandvold" in words for words in given["hidden"])


def test_an_audit_before_a_job_attacks_the_text_that_surrogates_make(world):
    request = AuditRequest(
        model=str(world.models["enc"]),
        source=world.data,
        cut=0,
        mechanism=MechanismSpec(name="none"),
        surrogates=IDENTIFYING,
        max_length=MAX_LENGTH,
        size=SIZE,
    )
    found = run_audit(request, world.settings.home, silent)
    assert own_words(found) == 0
    (linked,) = [one["figure"] for one in found.document["side_channels"] if one["name"] == linking.NAME]
    assert linked["value"] <= linked["floor"] + 0.1, "each record has surrogates of its own"
    assert found.document["statement"]["row"] == "surrogate"
    plain = run_audit(
        replace(request, surrogates=SurrogateSpec(replace="nothing"), source=replace(world.data, own_terms=None)),
        world.settings.home,
        silent,
    )
    assert plain.document["surrogates"] is None
    assert not any(one["name"] == identifying.NAME for one in plain.document["side_channels"])


def test_other_rules_than_the_jobs_are_refused(world, job):
    folder = JobFolder(world.settings.home, job)
    state = folder.load()
    folder.save(replace(state, surrogate_fingerprint="of another version"))
    try:
        with pytest.raises(JobConflict, match="have changed since the job ran"):
            audited(world, job)
    finally:
        folder.save(state)
