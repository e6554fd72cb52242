"""The map of a record: copies stay copies, the way back is exact, and what leaves says nothing of what was replaced."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privtune.device.data.records import Columns, Record, Records
from privtune.device.surrogates.surrogate_map import SurrogateMap
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.errors import InvalidInput
from privtune.shared.job_spec import SurrogateSpec

NAMES = ["Priya", "priya", "PRIYA", "Raghunathan", "Will", "O'Brien's", "Jean-Luc", "Oslo", "oslo", "(Smith)", "ſmith"]
OTHERS = [
    "will",
    "hope",
    "the",
    "a",
    "of.",
    "met,",
    "May",
    "may",
    "zxqv",
    "zxqvs",
    "é",
    "Zoë",
    "...",
    "🙂",
    "İ",
    "\n",
    "",
]
FORMATS = ["12", "12,5", "121", "1,250.50", "2021", "x7y88", "a@b.com", "www.x.org", "+1 (212) 555-0134", "3.4.2020"]
WORDS = st.sampled_from(NAMES + OTHERS + FORMATS)
TEXTS = st.lists(WORDS, min_size=1, max_size=25).map(" ".join)
SLOW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def learned(surrogates: Surrogates, *texts: str) -> SurrogateMap:
    own = surrogates.fresh()
    own.learn(texts)
    return own


@SLOW
@given(first=TEXTS, second=TEXTS)
def test_the_way_back_is_exact(surrogates: Surrogates, first: str, second: str) -> None:
    own = learned(surrogates, first, second)
    assert own.restore(own.replace(first)) == first
    assert own.restore(own.replace(second)) == second


@SLOW
@given(text=TEXTS, cuts=st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_a_streamed_answer_is_restored_as_a_whole_one(surrogates: Surrogates, text: str, cuts: list[int]) -> None:
    own = learned(surrogates, text)
    answer = own.replace(text) + " " + own.replace(text)[3:]
    restorer, given_out, at = own.restorer(), "", 0
    for size in cuts * len(answer):
        given_out += restorer.push(answer[at : at + size])
        at += size
    assert given_out + restorer.finish() == own.restore(answer)


def test_what_is_certain_is_given_out_at_once(surrogates: Surrogates) -> None:
    text = "I met Katherine in town."
    own = learned(surrogates, text)
    restorer = own.restorer()
    assert restorer.push("qq ww. ") == "qq ww. "
    name = own.replace(text).split()[2]
    assert restorer.push(name) == ""
    assert restorer.push(" ") == "Katherine "


def test_copies_stay_copies_in_every_text_and_case(surrogates: Surrogates) -> None:
    prompt, answer = "Did Katherine call? KATHERINE did.", "Yes, it was Katherine."
    own = learned(surrogates, prompt, answer)
    name = own.replace(answer).split()[-1].strip(".")
    assert name != "Katherine"
    assert own.replace(prompt) == f"Did {name} call? {name.upper()} did."


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I met Priya Raghunathan in town.", "I met Katherine Hawkins in town."),
        ("Call 0171 555 0134 or mail a.b@c.org.", "Call 0209 318 7765 or mail somebody.else@mail.example.com."),
        ("The rash was erysipeloid.", "The rash was brachycephalous."),
        ("Ann paid Bob 47 and Bob paid Ann 12.", "Zoe paid Tom 99 and Tom paid Zoe 71."),
    ],
)
def test_what_leaves_depends_on_kinds_and_pattern_only(surrogates: Surrogates, one: str, other: str) -> None:
    """The claim: between words of one kind the loss is 0, so the same secret gives the same text."""
    left = []
    for text in (one, other):
        own = surrogates._map("the same")
        own.learn([text])
        left.append(own.replace(text))
    assert left[0] == left[1]


def test_a_word_in_clear_that_equals_a_surrogate_is_replaced_too(surrogates: Surrogates) -> None:
    text = "I met Katherine in town."
    own = surrogates._map("clash")
    own.learn([text])
    name = own.replace(text).split()[2]
    both = f"I met Katherine in town, {name.lower()} or not {name}."
    own = surrogates._map("clash")
    own.learn([both])
    assert own.restore(own.replace(both)) == both
    assert name.lower() not in own.replace(both).lower().split("town,")[1]


def test_many_short_numbers_have_a_surrogate_each(surrogates: Surrogates) -> None:
    text = " ".join(str(number) for number in range(10, 100))
    own = learned(surrogates, text)
    replaced = own.replace(text).split()
    assert len(set(replaced)) == 90
    assert own.restore(own.replace(text)) == text


def test_a_later_turn_keeps_the_surrogates_of_earlier_ones(surrogates: Surrogates) -> None:
    turns = ["My name is Katherine Hawkins.", "Nice to meet you, Katherine.", "Tell Bob and Ann that I moved to Leeds."]
    first = surrogates.conversation(turns[:1])
    later = surrogates.conversation(turns)
    assert later.replace(turns[0]) == first.replace(turns[0])
    assert later.restore(later.replace(turns[2])) == turns[2]


def test_records_have_maps_of_their_own(surrogates: Surrogates) -> None:
    items = tuple(Record(number=number, text="Katherine came.", prompt="Is Katherine here?") for number in range(20))
    records = Records(source="r", unit="line", columns=Columns(prompt="p", completion="c"), items=items)
    replaced, covered = surrogates.records(records, "train")
    names = [record.text.split()[0] for record in replaced]
    assert all(f"Is {name} here?" == record.prompt for name, record in zip(names, replaced, strict=True))
    assert len(set(names)) > 10
    assert covered.kinds["given name"] == 40
    again, _ = surrogates.records(records, "train")
    assert again == replaced
    other, _ = surrogates.records(records, "validation")
    assert other != replaced


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(InvalidInput, match=r"wordfreq: pip install '\.\[device,surrogates\]'"):
        Surrogates(SurrogateSpec(replace="identifying"), b"s" * 32)


def test_a_language_without_word_frequencies_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no word frequencies for the language 'xx'"):
        Surrogates(SurrogateSpec(replace="identifying", language="xx"), b"s" * 32)


def test_a_record_keeps_its_surrogates_whichever_records_of_the_file_are_used(surrogates: Surrogates) -> None:
    items = tuple(Record(number=number, text=f"{name} called.") for number, name in enumerate(("Ann", "Bob", "Zoe"), 2))
    whole = Records(source="a.csv", unit="line", columns=Columns(text="text"), items=items)
    sample = whole.pick([2])
    sent, _ = surrogates.records(whole, "held out")
    assert surrogates.records(sample, "held out")[0].items == sent.items[2:]
