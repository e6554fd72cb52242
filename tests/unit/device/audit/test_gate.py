"""Which figures of an audit decide whether a job may run: with surrogates, without, and with noise besides."""

from __future__ import annotations

import threading

import pytest

from privtune.device.audit.case import choose_attacked
from privtune.device.audit.jobs import gate
from privtune.device.audit.sizes import QUICK
from privtune.device.home.policy import AuditRule
from privtune.shared.errors import AuditRefused
from privtune.shared.job_spec import JobSpec
from tests.support.builders import dataset


def figure(high, floor=0.0):
    return {"attack": "EIA-1", "value": high, "low": high, "high": high, "floor": floor}


def gated(spec, data, hidden):
    """A job whose records have these hidden words."""
    job = gate.Gated(spec=spec, data=data, fingerprint="", parts=None, noise=None, scope="", local_model=None)
    job.__dict__["hidden"] = list(hidden)
    return job


@pytest.fixture
def judged(tmp_path, monkeypatch):
    def judge(surrogates, mechanism, words, replaced, hidden=()):
        spec = JobSpec.model_validate(
            {
                "model": "enc",
                "training_file": "device://texts",
                "mechanism": {"name": mechanism},
                "surrogates": {"replace": surrogates},
            }
        )
        found = {"day": "today", "top1": figure(words), "content_top1": figure(words), "replaced": replaced}
        monkeypatch.setattr(gate, "_attacked", lambda *_: found)
        monkeypatch.setattr(gate, "_known", lambda _: None)
        job = gated(spec, dataset([[1]] * 3), hidden)
        said = []
        gate.hold(AuditRule(), job, tmp_path, said.append, threading.Event())
        return "\n".join(said)

    return judge


def test_under_surrogates_alone_only_replaced_words_count(judged):
    said = judged("identifying", "none", 1.0, figure(0.03, floor=0.02))
    assert "at most 3.0% of the words that were replaced (allowed: 2% beyond 2.0% by chance)" in said
    assert "content words" not in said
    assert "the cloud can read all of them" in said
    with pytest.raises(AuditRefused, match=r"up to 5.0% of the words that were replaced \(allowed: 2% beyond 2.0%"):
        judged("identifying", "none", 0.0, figure(0.05, floor=0.02))


def test_where_nothing_was_replaced_that_is_said(judged):
    said = judged("identifying", "none", 1.0, None, hidden=[frozenset()] * 3)
    assert "audit passed: surrogates replaced nothing in what leaves of 3 records" in said
    assert "max_replaced bounds nothing in this file" in said
    assert "max_replaced bounds nothing" in judged("identifying", "dchi", 0.1, None)
    assert "max_replaced" not in judged("nothing", "dchi", 0.1, None)


@pytest.mark.parametrize("mechanism", ["none", "dchi"])
def test_a_bound_is_not_met_by_a_figure_that_was_not_measured(judged, mechanism):
    with pytest.raises(AuditRefused, match="no attack was judged by them"):
        judged("identifying", mechanism, 0.1, None, hidden=[frozenset({"anna"}), frozenset(), frozenset()])


def test_the_remedy_is_that_of_the_broken_bound(judged):
    with pytest.raises(AuditRefused) as names:
        judged("identifying", "none", 1.0, figure(0.5))
    assert "own terms" in str(names.value)
    assert "more noise" not in str(names.value)
    with pytest.raises(AuditRefused) as noise:
        judged("identifying", "dchi", 0.9, figure(0.0))
    assert "more noise" in str(noise.value)
    assert "own terms" not in str(noise.value)


@pytest.mark.parametrize("mechanism", ["none", "dchi"])
def test_records_with_something_replaced_are_attacked_first(mechanism):
    """One name in a thousand records must not pass because a sample of them had none, with noise neither."""
    data = dataset([[0, 1, 2]] * 1000)
    spec = JobSpec(model="enc", training_file="device://texts", mechanism={"name": mechanism})
    job = gated(spec, data, [frozenset({"anna"} if place in (3, 700) else ()) for place in range(1000)])
    chosen = gate._attacked_records(job, QUICK)
    assert {3, 700} == set(chosen[:2].tolist())
    assert len(set(chosen.tolist())) == len(chosen) == len(choose_attacked(data, QUICK, 0))
    many = gate._attacked_records(gated(spec, data, [frozenset({"anna"})] * 500 + [frozenset()] * 500), QUICK)
    assert (many < 500).all() == (mechanism == "none"), "with noise, all words of all records are judged too"


def test_with_noise_both_bars_hold(judged):
    assert "all words" in judged("identifying", "dchi", 0.1, figure(0.0))
    with pytest.raises(AuditRefused, match=r"90.0% of content words .* and 90.0% of all words \(allowed: 30%"):
        judged("identifying", "dchi", 0.9, figure(0.0))
    with pytest.raises(AuditRefused, match=r"up to 9.0% of the words that were replaced"):
        judged("identifying", "dchi", 0.1, figure(0.09))


def test_without_surrogates_the_words_decide(judged):
    with pytest.raises(AuditRefused, match=r"90.0% of all words"):
        judged("nothing", "none", 0.9, None)
