"""Which figures of an audit decide whether a job may run: with surrogates, without, and with noise besides."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from privtune.device.audit.case import choose_attacked
from privtune.device.audit.jobs import gate
from privtune.device.audit.sizes import QUICK
from privtune.device.data.encode import EncodedDataset
from privtune.device.home.policy import AuditRule
from privtune.shared.errors import AuditRefused
from privtune.shared.job_spec import JobSpec


def figure(high, floor=0.0):
    return {"attack": "EIA-1", "value": high, "low": high, "high": high, "floor": floor}


@pytest.fixture
def judged(tmp_path, monkeypatch):
    def judge(surrogates, mechanism, words, replaced):
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
        job = gate.Gated(
            spec=spec, data=None, fingerprint="", parts=None, noise=None, scope="", local_model=None, replaced=()
        )
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
    assert "no record had anything to replace" in judged("identifying", "none", 1.0, None)


def test_records_with_something_replaced_are_attacked_first():
    """One name in a thousand records must not pass because a sample of them had none."""
    data = EncodedDataset(ids=(np.arange(3, dtype=np.int32),) * 1000, truncated=0, places=tuple(range(1000))[::-1])
    replaced = [frozenset({"anna"} if place in (3, 700) else ()) for place in range(1000)]
    spec = JobSpec(model="enc", training_file="device://texts")
    job = gate.Gated(
        spec=spec, data=data, fingerprint="", parts=None, noise=None, scope="", local_model=None, replaced=replaced
    )
    chosen = gate._attacked_records(job, QUICK)
    assert {999 - 3, 999 - 700} == set(chosen[:2].tolist())
    assert len(set(chosen.tolist())) == len(chosen) == len(choose_attacked(data, QUICK, 0))


def test_with_noise_both_bars_hold(judged):
    assert "all words" in judged("identifying", "dchi", 0.1, figure(0.0))
    with pytest.raises(AuditRefused, match=r"90.0% of content words .* and 90.0% of all words \(allowed: 30%"):
        judged("identifying", "dchi", 0.9, figure(0.0))
    with pytest.raises(AuditRefused, match=r"up to 9.0% of the words that were replaced"):
        judged("identifying", "dchi", 0.1, figure(0.09))


def test_without_surrogates_the_words_decide(judged):
    with pytest.raises(AuditRefused, match=r"90.0% of all words"):
        judged("nothing", "none", 0.9, None)
