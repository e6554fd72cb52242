import pytest

from privtune.device.audit import identifying
from privtune.device.audit.attacks.channels import Finding
from privtune.device.audit.metrics import Figure
from privtune.device.audit.outcome import AttackRow, Outcome
from privtune.device.audit.report.verdict import judge


def row(name, knowledge, words, content):
    figures = {
        key: Figure(value=value, low=value, high=value + 0.01, floor=0.05)
        for key, value in (("top1", words), ("content_top1", content))
    }
    return AttackRow(name=name, variant="", knowledge=knowledge, kind="inversion", records=9, figures=figures)


def test_who_knows_the_mechanism_may_also_ignore_it():
    outcome = Outcome(rows=[row("a", "oblivious", 0.3, 0.2), row("b", "adaptive", 0.2, 0.3)])
    assert outcome.worst("adaptive").name == "a"
    assert outcome.worst("adaptive", "content_top1").name == "b"
    assert outcome.worst("oblivious", "content_top1").name == "a"


def test_the_verdict_follows_the_upper_end_of_the_interval():
    def level(words, content):
        return judge(Outcome(rows=[row("a", "oblivious", 0.0, 0.0), row("b", "adaptive", words, content)])).level

    assert level(0.15, 0.05) == "little"
    assert level(0.15, 0.095) == "some"  # its interval reaches over a tenth
    assert level(0.195, 0.05) == "some"
    assert level(0.51, 0.05) == level(0.1, 0.51) == "most"


def test_words_that_surrogates_leave_readable_are_no_reason_for_more_noise():
    own = Finding(name=identifying.NAME, figure=Figure(value=0.0, low=0.0, high=0.01, floor=0.03), text="")
    rows = [row("a", "oblivious", 0.9, 0.9), row("b", "adaptive", 0.9, 0.9)]
    found = judge(Outcome(rows=rows, findings=[own]), clear=True)
    assert (found.level, found.headline) == ("some", "What was replaced stays hidden, and all other words can be read")
    assert "readable on purpose" in found.text
    assert "more noise" not in found.text.lower()
    assert "Use more noise" in judge(Outcome(rows=rows)).text


@pytest.mark.parametrize("clear", [True, False])
def test_replaced_words_that_are_named_decide_the_verdict(clear):
    own = Finding(name=identifying.NAME, figure=Figure(value=0.05, low=0.02, high=0.08, floor=0.01), text="")
    rows = [row("a", "oblivious", 0.0, 0.0), row("b", "adaptive", 0.0, 0.0)]
    found = judge(Outcome(rows=rows, findings=[own]), clear=clear)
    assert (found.level, found.headline) == ("most", "Words that were replaced can be recovered")
