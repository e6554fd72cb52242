"""What became of each word of a record, for an audit that looks for them."""

from __future__ import annotations

from privtune.device.data.records import Columns, Record, Records
from privtune.device.surrogates.own_words import OwnWords, names_in_clear
from privtune.device.surrogates.surrogates import Surrogates


def words_of(surrogates: Surrogates, *texts: str) -> list[OwnWords]:
    items = tuple(Record(number=number, text=text) for number, text in enumerate(texts))
    found: list[OwnWords] = []
    records = Records(source="x", unit="line", columns=Columns(text="text"), items=items)
    surrogates.records(records, "x", own_words=found)
    return found


def test_words_are_told_apart_by_what_became_of_them(surrogates: Surrogates) -> None:
    """`surrogates` always replaces the term Project Bluebird, in which a common word stands."""
    first, second = words_of(surrogates, "Ask Anna Brandvold of Project Bluebird, 27 days.", "A project was cold.")
    replaced = frozenset().union(*(mine for mine, _ in first.units))
    assert {"Anna", "Brandvold", "Project", "Bluebird", "27"} <= replaced
    assert {"Anna", "Brandvold"} <= first.names
    assert "Project" not in first.names, "a common word says nothing where it stays"
    assert first.clear == {"Ask", "of", "days"}
    assert (second.units, second.names, second.clear) == ((), frozenset(), {"A", "project", "was", "cold"})
    assert names_in_clear([first, second]) == [frozenset(), frozenset()]


def test_a_name_that_stays_in_one_record_and_is_replaced_in_another_is_found() -> None:
    name = frozenset({"Ann"})
    ann = OwnWords(units=((name, frozenset({"Mia"})),), clear=frozenset({"met"}), names=name)
    missed = OwnWords(units=(), clear=frozenset({"Ann", "met"}), names=frozenset())
    assert names_in_clear([ann, missed]) == [frozenset(), {"Ann"}]
