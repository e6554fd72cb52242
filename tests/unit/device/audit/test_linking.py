"""Records about the same person are linked by a surrogate that they share, and by none drawn for each record."""

import pytest

from privtune.device.audit.linking import linked_records
from privtune.device.data.records import Columns, Record, Records

NAMES = ("Anna", "Boris", "Carla", "Dmitri")
OTHERS = tuple(f"Person{number}" for number in range(40))


def records(texts):
    items = tuple(Record(number=number, text=text) for number, text in enumerate(texts))
    return Records(source="x", unit="line", columns=Columns(text="text"), items=items)


def drawn_anew(some):
    return records([f"Nobody{record.number} likes tea" for record in some])


OWN = records([f"{NAMES[number % 4]} likes tea" for number in range(40)])


@pytest.mark.parametrize(("drawn", "least", "most"), [("once", 0.95, 1.0), ("for each record", 0.0, 0.05)])
def test_only_surrogates_drawn_once_for_all_records_link_them(drawn, least, most):
    place = (lambda number: number % 4) if drawn == "once" else (lambda number: number)
    sent = records([f"{OTHERS[place(number)]} likes tea" for number in range(40)])
    (found,) = linked_records(OWN, sent, drawn_anew)
    assert least <= found.figure.value <= most
    assert found.figure.floor <= 0.05


def test_without_a_common_replaced_word_there_is_nothing_to_link():
    assert linked_records(OWN, OWN, drawn_anew) == []
