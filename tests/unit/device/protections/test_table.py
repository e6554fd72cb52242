"""The table of protections: what is measured is quoted, what is not says so, and the README holds the same table."""

import json

import pytest

from privtune.device.privacy.statements.shared_target import codes_statement
from privtune.device.privacy.statements.statement import ATTENTION
from privtune.device.protections import measured as module
from privtune.device.protections.announce import announcement, departures
from privtune.device.protections.measured import (
    NO_GAIN,
    NO_TAUGHT_GAIN,
    NO_TEXT_GAIN,
    MeasuredRow,
    TaughtRow,
    cloud_gain,
    measured,
    rows,
)
from privtune.device.protections.protection import PROTECTIONS, protection
from privtune.device.protections.readable import what_the_cloud_reads
from privtune.device.protections.table import HEADINGS, first_line, listing, markdown, table
from tests.support.builders import least_spec
from tests.support.real import ROOT


def job(name, task="classification", **changes):
    return least_spec(**{"task": task} | protection(name).fields(task) | changes)


def row(name, **figures):
    fields = protection(name).fields("classification")
    setting = {key: fields[key] for key in ("cut", "tail")} | {"skip": fields.get("skip", "frozen")}
    setting |= {"mechanism": fields["mechanism"]["name"], "params": fields["mechanism"]["params"]}
    setting["surrogates"] = fields["surrogates"].get("rank")
    least = {"model": "M", "data": "D", "accuracy": (0.8, 0.7, 0.9), "cell": "c", "seeds": 3, "sources": ("c.jsonl",)}
    return MeasuredRow.model_validate(least | setting | figures)


@pytest.fixture
def known(monkeypatch):
    """Sets the rows that are known."""
    return lambda *found: monkeypatch.setattr(module, "rows", lambda: found)


def test_the_file_is_of_the_committed_results():
    committed = json.loads((ROOT / "docs" / "results" / "cloud-gain.json").read_text())
    assert [one.model_dump(mode="json") for one in rows()] == committed["rows"]
    assert rows()


def test_the_readme_and_the_page_hold_the_table():
    for page in ("README.md", "docs/protections.md"):
        assert markdown() in (ROOT / page).read_text(), f"{page}: take the table of `privtune protections`"


def test_every_protection_has_a_row_with_every_cell():
    cells = table()
    assert [one[0] for one in cells] == [f"`{name}`" for name in PROTECTIONS]
    assert {len(one) for one in cells} == {len(HEADINGS)}
    assert all(all(one) for one in cells)
    assert [one["name"] for one in listing()] == list(PROTECTIONS)
    json.dumps(listing())


def test_codes_claim_no_more_than_their_mechanism_does():
    """Attention lets one token move every code of its record, so a bound holds for a vector and never for a token."""
    statement = codes_statement(name="codes", codes=8, epsilon=1.0)
    assert statement.position_epsilon == 1
    assert ATTENTION in statement.caveats
    assert protection("all").claim.startswith("1 nat a vector, n nats a record of n vectors or a word in it;")


def test_what_was_not_measured_says_so(known):
    known()
    assert table()[2][1:7] == ("not measured",) * 6
    assert cloud_gain(job("words")) == NO_GAIN
    assert listing()[2]["measured"] is None


def test_a_gain_that_may_be_none_is_in_the_first_line(known):
    known(row("words", gain=(0.007, -0.005, 0.018)), row("all", gain=(0.02, 0.001, 0.04)))
    assert first_line(PROTECTIONS["words"]).startswith(
        "words: Measured on M, D: the cloud added nothing measurable, 0.7 [-0.5, 1.8] points over the same device "
    )
    assert "cloud added" not in first_line(PROTECTIONS["all"])
    said = "Measured on M, D: the cloud added 2.0 [0.1, 4.0] points over the same device alone."
    assert cloud_gain(job("all")) == said


def test_the_readme_says_whether_anything_that_hides_words_pays():
    """Recovery is that of the strongest attacker that was run."""
    said = "no setting has a cloud gain above 0: **train on the device alone**"
    hiding = [one for one in rows() if one.hides_words and one.gain is not None]
    assert hiding
    paying = [one.cell for one in hiding if one.gain[1] > 0]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert (said in text) == (not paying), paying


def test_the_strongest_attacker_that_was_run_decides(known):
    weak = {"informed": (0.1, 0.1, 0.1), "content": (0.01, 0.01, 0.01)}
    assert row("words", **weak).hides_words
    assert not row("words", **weak, strong=(0.25, 0.2, 0.3), strong_content=(0.02, 0.02, 0.02)).hides_words
    assert not row("words").hides_words
    known(row("words", **weak, strong=(0.25, 0.2, 0.3), strong_content=(0.02, 0.02, 0.02), strong_texts=3000))
    assert table()[2][2] == "25.0% of all, 2.0% of content words"
    assert "named 25.0% of all words and 2.0% of" in what_the_cloud_reads(job("words"))[0]


def test_a_row_is_that_of_the_same_settings(known):
    found = row("words", gain=(0.01, 0.0, 0.02))
    known(found)
    params = protection("words").fields("classification")["mechanism"]["params"]
    spelt = {"name": "codes", "params": params | {"task_weight": 2.0}}  # a default
    assert measured(job("words", mechanism=spelt).model_dump()) == found
    other = {"name": "codes", "params": params | {"codes": 31}}
    for changes in ({"cut": 1}, {"tail": 2}, {"skip": "none"}, {"mechanism": other}, {"surrogates": {}}):
        assert measured(job("words", **changes).model_dump()) is None
    assert cloud_gain(job("words", "causal-lm", mechanism=spelt)) == NO_TEXT_GAIN  # measured for classifiers


def test_a_row_without_a_tail_has_no_skip(known):
    known(row("none", gain=(0.05, 0.04, 0.06)))
    assert measured(job("none", skip="tuned").model_dump()) is not None


def test_an_overridden_setting_is_said(known):
    assert departures(job("words"), "words") == []
    changed = job("words", cut=3, surrogates={"rank": 9_000})
    assert departures(changed, "words") == ["cut 3 instead of 2", "surrogates replace identifying instead of nothing"]
    assert departures(job("names", surrogates={"rank": 290_000}), "names") == [
        "surrogates rank 290000 instead of 200000"
    ]
    fewer = {"codes": 16} | {name: value for name, value in job("words").mechanism.params.items() if name != "codes"}
    changed_codes = job("words", mechanism={"name": "codes", "params": fewer})
    assert departures(changed_codes, "words") == ["mechanism params codes=16 instead of codes=32"]
    known(row("names", gain=(0.05, 0.04, 0.06)))
    assert measured(job("names", surrogates={"rank": 290_000}).model_dump()) is None
    lines = announcement(changed, "words")
    assert lines[0].startswith("protection words: one of 32 codes")
    assert lines[1].startswith("overridden: cut 3 instead of 2; ")
    assert not any(line.startswith("overridden") for line in announcement(job("all"), "all"))


@pytest.mark.parametrize(
    ("task", "blocks", "cut", "tail"),
    [
        ("classification", None, 3, 1),
        ("classification", 6, 3, 1),
        ("classification", 12, 6, 1),
        ("classification", 3, 1, 1),
        ("classification", 2, 1, 1),
        ("causal-lm", 30, 15, 4),
        ("causal-lm", 6, 1, 4),
    ],
)
def test_all_keeps_half_of_the_model_whatever_its_depth(task, blocks, cut, tail):
    fields = protection("all").fields(task, blocks)
    assert (fields["cut"], fields["tail"]) == (cut, tail)
    assert protection("words").fields(task, blocks)["cut"] == 2
    spec = least_spec(task=task, **fields)
    assert departures(spec, "all", blocks) == []
    assert f"(cut {cut}, tail {tail}" in announcement(spec, "all", blocks)[0]


@pytest.mark.parametrize(
    ("asked", "text", "labels"),
    [
        (job("none"), "nearly every word: nothing is replaced", "gradients reveal most of them"),
        (job("names"), "every word that is not replaced; names, places", "`--label-epsilon` bounds this"),
        (job("names", label_epsilon=2.0), "rarer than the 200,000 most common", "at most 2 nats of each label"),
        (job("names", labels="shared", num_labels=2), "is not replaced", "the cloud gets every label as it is"),
        (job("names", "causal-lm"), "is not replaced", "with surrogates in place of what is replaced"),
        (job("none", "causal-lm"), "nearly every word", "gradients name every word that the model learns to write"),
        (job("words"), "named 24.7% of all words and 1.6% of", "no label and no gradient leaves"),
        (job("words", "causal-lm"), "names from them is not measured", "no label and no gradient leaves"),
        (job("names", mechanism={"name": "dchi"}), "words rarer than", "gradients reveal most"),
    ],
)
def test_three_lines_say_what_the_cloud_reads_whatever_the_protection_is_called(asked, text, labels):
    lines = what_the_cloud_reads(asked)
    assert [line.split(":")[0] for line in lines] == ["Text", "Labels", "Always"]
    assert text in lines[0]
    assert labels in lines[1]
    answers = "knows what the tuned model answers" in lines[2]
    assert answers == (asked.task == "causal-lm" and not asked.tail)


def test_slopes_have_their_own_line_and_no_gain_that_was_measured_with_gradients():
    slopes = job("names", zeroth_order={"epsilon": 4.0})
    assert cloud_gain(job("names")) != cloud_gain(slopes) == NO_GAIN
    _, labels, _ = what_the_cloud_reads(slopes)
    assert "slopes that train the cloud reveal at most epsilon 4" in labels
    assert labels.endswith("of a record beyond its vectors.")


def test_a_taught_job_says_what_teachers_added_and_that_its_own_gain_is_not_measured(monkeypatch):
    found = TaughtRow(
        model="M",
        data="D",
        cut=2,
        pieces=30_000,
        adds=(0.017, 0.004, 0.03),
        over_untaught=(0, 0, 0),
        seeds=3,
        sources=(),
    )
    monkeypatch.setattr(module, "teachings", lambda: (found,))
    said = cloud_gain(job("words", tail=1, taught="teach-" + 24 * "a"))
    assert said == (
        f"{NO_TAUGHT_GAIN} Measured on M, D (cut 2, 30,000 public pieces, 3 seeds): "
        "the teacher added 1.7 [0.4, 3.0] points over the same public text without a teacher."
    )
    maybe = found.model_copy(update={"adds": (0.001, -0.01, 0.01)})
    assert "the teacher added nothing measurable, 0.1 [-1.0, 1.0] points" in maybe.sentence()
    monkeypatch.setattr(module, "teachings", tuple)
    assert cloud_gain(job("words", tail=1, taught="teach-" + 24 * "a")) == NO_TAUGHT_GAIN
