"""The audit's page: what an owner reads of it."""

import re

import pytest

from privtune.device.audit.report.document import Audit
from privtune.device.audit.report.page import render


def figure(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.01, "floor": 0.05}


def row(name, knowledge, value):
    figures = {key: figure(value) for key in ("top1", "top5", "top10", "content_top1", "rouge_l", "exact")}
    return {"name": name, "variant": "bayes", "knowledge": knowledge, "kind": "inversion", "figures": figures}


def page(*rows, examples=(), text="A sentence."):
    document = {
        "attacks": list(rows),
        "verdict": {"level": "some", "headline": "Some of it", "text": text},
        "side_channels": [{"name": "labels", "figure": figure(0.5), "text": text}],
        "utility": {},
        "frontier": [],
        "statement": {"text": text, "caveats": [text]},
        "not_tested": [text],
        "model": "m",
        "cut": 1,
        "tail": 0,
        "skip": None,
        "injection": "cut",
        "mechanism": {"name": "dchi", "params": {}},
        "records": {"attacked": 5, "public": 0, "own_as_public": 9},
        "size": "quick",
        "seconds": 1.0,
        "privtune": "0",
    }
    return render(Audit(document=document, examples=list(examples)))


def test_every_attack_has_a_bar_with_its_interval_and_the_floor():
    shown = page(row("EIA-1", "oblivious", 0.25), row("EIA-2a", "adaptive", 0.5))
    assert shown.count('class="track"') == 2
    assert '<span class="bar pale" style="width:25.0%">' in shown
    assert '<span class="interval" style="left:48.0%;width:3.0%">' in shown
    assert shown.count('<span class="floor" style="left:5.0%">') == 2


@pytest.mark.parametrize(
    ("tokens", "written"),
    [
        (["un", "##sat", "##is", "##fying", "film", "."], "unsatisfying film ."),
        (["\u0120un", "satisfying", "\u0120film", "."], "unsatisfying film."),
        (["\u2581un", "satisfying", "\u2581film"], "unsatisfying film"),
        (["##", "a"], "## a"),
    ],
)
def test_pieces_of_a_word_stand_together(tokens, written):
    guess = ["x", *tokens[1:]]
    shown = page(examples=[(tokens, guess)])
    yours, attacker = re.findall(r'<span class="who">\w+</span>(.*?)</p>', shown)
    assert yours.strip() == written
    assert attacker.count("<mark>") == len(tokens) - 1
    assert not re.search(r"<mark>[^<]*x", attacker)


def test_what_stands_in_backticks_is_code_and_nothing_is_markup():
    shown = page(text="Use `--label-epsilon <2>`, <b>now</b>.")
    assert "<code>--label-epsilon &lt;2&gt;</code>, &lt;b&gt;now&lt;/b&gt;." in shown
    assert "<b>now" not in shown
