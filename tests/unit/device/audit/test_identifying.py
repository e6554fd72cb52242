"""Which of the owner's words an attack must not name: what leaves of a record, and what else the file shows to be one.

A unit is written as its own words and its surrogate's; the texts below are what the tokenizer makes of the ids.
"""

from __future__ import annotations

from privtune.device.audit.identifying import hidden_words
from privtune.device.surrogates.own_words import OwnWords
from tests.support.builders import dataset

LONGEST = 9  # tokens; a shorter record leaves whole


class Texts:
    """A tokenizer whose every text begins with its number."""

    def __init__(self, *texts):
        self.texts = texts

    def decode(self, ids):
        return self.texts[ids[0]]


def own(*units, clear=""):
    pairs = tuple((frozenset(mine.split()), frozenset(theirs.split())) for mine, theirs in units)
    names = frozenset(word for mine, _ in pairs for word in mine if word != "Street")
    return OwnWords(units=pairs, clear=frozenset(clear.split()), names=names)


def hidden(*records, leaves=()):
    """leaves: what leaves of the first records; all of the others."""
    rows = [[number, *range(1, LONGEST if number < len(leaves) else 3)] for number in range(len(records))]
    data = dataset(rows)
    object.__setattr__(data, "places", tuple(range(len(rows))))
    return [set(words) for words in hidden_words(records, data, LONGEST, Texts(*leaves))]


def test_words_beyond_the_longest_record_never_leave():
    long = own(("Ann Lee", "Mia Orr"), ("Bob", "Tom"), clear="met")
    assert hidden(long) == [{"ann", "lee", "bob"}]
    assert hidden(long, leaves=["mia orr met"]) == [{"ann", "lee"}]


def test_a_clear_word_that_does_not_leave_excuses_nothing():
    """`met` is in clear only where the text was cut; in what leaves it was replaced."""
    assert hidden(own(("met", "sat"), clear="met it"), leaves=["sat it"]) == [{"met"}]


def test_a_name_in_clear_elsewhere_in_the_record_counts():
    found = own(("Elm Street", "Oak Road"), clear="the Elm Street is a street")
    assert hidden(found) == [{"elm"}], "a common word of the name says nothing where it stays"


def test_a_name_in_clear_in_another_record_counts_there_if_it_is_written_alike():
    assert hidden(own(("Ann", "Mia")), own(clear="Ann came"), own(clear="ann came")) == [{"ann"}, {"ann"}, set()]


def test_names_are_compared_as_a_model_writes_them():
    assert hidden(own(("José", "Ángel")), own(clear="José"), leaves=["angel", "jose"]) == [{"jose"}, {"jose"}]


def test_surrogates_that_are_words_of_the_record_hide_nothing():
    assert hidden(own(("Ann", "Bob"), ("Bob", "Cid"))) == [{"ann"}]
